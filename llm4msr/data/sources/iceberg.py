"""Iceberg tables of a catalog, each in the snapshot that is the newest when it is opened."""

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from llm4msr import storage
from llm4msr.config import SourceConfig
from llm4msr.data.reading.named_columns import read_named, tables_of
from llm4msr.data.reading.raw_data import RawData
from llm4msr.data.sources.extras import library_errors, needed_by
from llm4msr.data.sources.library_table import LibraryTable
from llm4msr.errors import DataError

if TYPE_CHECKING:
    import ray.data

_WHAT = "an Iceberg table"


def fingerprint(config: SourceConfig) -> str:
    """Hash that changes with a table's snapshot or the naming of columns."""
    tables = [_open(config, name) for name in tables_of(config.table)]
    prints = (f"{table.metadata.table_uuid} {table.metadata.current_snapshot_id}" for table in tables)
    return storage.digest(config.table.model_dump_json(), *prints)


def read(config: SourceConfig) -> RawData:
    """As `Source.read`."""
    return read_named(config.table, partial(_table, config))


def _catalog(config: SourceConfig) -> dict[str, str | None]:
    """What `load_catalog` gets; without a path, what pyiceberg's own file and variables say."""
    uri = {"uri": config.path} if config.path else {}
    return {"name": config.iceberg.catalog, **uri, **config.iceberg.properties}


def _open(config: SourceConfig, name: str) -> Any:
    with needed_by("iceberg"):
        from pyiceberg.catalog import load_catalog
    with library_errors(_where(config, name), _WHAT):
        return load_catalog(**_catalog(config)).load_table(name)


def _where(config: SourceConfig, name: str) -> str:
    return f"{config.path or config.iceberg.catalog}: {name}"


def _table(config: SourceConfig, name: str) -> LibraryTable:
    opened, where = _open(config, name), _where(config, name)
    snapshot = opened.metadata.current_snapshot_id
    if snapshot is None:
        raise DataError(f"{where}: no rows; the table has no snapshot")
    with library_errors(where, _WHAT):
        rows = opened.scan(snapshot_id=snapshot).count()
    header = list(opened.schema().column_names)
    ways = partial(_batches, opened, snapshot, where), partial(_on_ray, config, name, snapshot)
    return LibraryTable(where, header, rows, *ways)


def _batches(opened: Any, snapshot: int, where: str, names: list[str]) -> Iterator[pa.Table]:
    with library_errors(where, _WHAT):
        for batch in opened.scan(selected_fields=tuple(names), snapshot_id=snapshot).to_arrow_batch_reader():
            yield pa.Table.from_batches([batch])


def _on_ray(config: SourceConfig, name: str, snapshot: int, names: list[str]) -> "ray.data.Dataset":
    import ray

    rows = ray.data.read_iceberg(table_identifier=name, snapshot_id=snapshot, catalog_kwargs=_catalog(config))
    return rows.select_columns(names)
