"""Delta Lake tables, each in the version that is the newest when it is opened."""

import os
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from llm4msr import storage
from llm4msr.config import SourceConfig
from llm4msr.data.reading.named_columns import read_named, tables_of
from llm4msr.data.reading.raw_data import RawData
from llm4msr.data.reading.raw_tables import SLICE_ROWS
from llm4msr.data.sources.extras import library_errors, needed_by
from llm4msr.data.sources.library_table import LibraryTable

if TYPE_CHECKING:
    import ray.data

_WHAT = "a Delta table"


def fingerprint(config: SourceConfig) -> str:
    """Hash that changes with a table's version or the naming of columns."""
    tables = (_open(_place(config, name)) for name in tables_of(config.table))
    return storage.digest(config.table.model_dump_json(), *(f"{t.metadata().id} {t.version()}" for t in tables))


def read(config: SourceConfig) -> RawData:
    """As `Source.read`."""
    return read_named(config.table, lambda name: _table(_place(config, name)))


def _place(config: SourceConfig, name: str) -> str:
    folder = storage.path(config.path)
    return str(folder / name if name else folder)


def _open(place: str) -> Any:
    with needed_by("delta"):
        from deltalake import DeltaTable
    with library_errors(place, _WHAT):
        return DeltaTable(place, storage_options=_options())


def _table(place: str) -> LibraryTable:
    opened = _open(place)
    with library_errors(place, _WHAT):
        names = opened.to_pyarrow_dataset().schema.names
        ways = partial(_batches, opened, place), partial(_on_ray, opened, place)
        return LibraryTable(place, names, opened.count(), *ways)


def _batches(opened: Any, place: str, names: list[str]) -> Iterator[pa.Table]:
    with library_errors(place, _WHAT):
        for batch in opened.to_pyarrow_dataset().to_batches(columns=names, batch_size=SLICE_ROWS):
            yield pa.Table.from_batches([batch])


def _on_ray(opened: Any, place: str, names: list[str]) -> "ray.data.Dataset":
    import ray

    return ray.data.read_delta(place, opened.version(), columns=names, storage_options=_options())


def _options() -> dict[str, str]:
    """What the AWS variables do not tell deltalake: that a store may be reached without TLS."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    return {"allow_http": "true", "endpoint": endpoint} if endpoint.startswith("http://") else {}
