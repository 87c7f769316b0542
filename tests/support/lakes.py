"""The same small data as a Delta and an Iceberg table, as a saved dataset and in a database."""

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from llm4msr.config import SourceConfig

KINDS = ("delta", "iceberg", "huggingface", "sql")
COLUMNS = ("user_id", "item_id", "scenario", "label", "ts", "device")
_TYPES = [*[pa.string()] * 3, pa.int64(), pa.int64(), pa.string()]


def rows(count: int, start: int = 0) -> list[list[Any]]:
    return [
        [f"u{at % 7}", f"i{at % 11}", "ab"[at % 2], at % 2, 1000 + at, "tv" if at % 3 else None]
        for at in range(start, start + count)
    ]


def as_table(values: Sequence[Sequence[Any]]) -> pa.Table:
    columns = list(zip(*values, strict=True)) or [()] * len(COLUMNS)
    return pa.table({n: pa.array(c, t) for n, c, t in zip(COLUMNS, columns, _TYPES, strict=True)})


def write(kind: str, folder: Path, values: Sequence[Sequence[Any]]) -> None:
    """Tables `clicks` of these rows, `people` and `things`."""
    folder.mkdir(parents=True, exist_ok=True)
    people = pa.table({"user_id": [f"u{at}" for at in range(7)], "age": [20 + at for at in range(7)]})
    things = pa.table({"item_id": [f"i{at}" for at in range(11)], "name": [f"Title {at}" for at in range(11)]})
    for name, table in {"clicks": as_table(values), "people": people, "things": things}.items():
        _WRITE[kind](folder, name, table)


def append(kind: str, folder: Path, values: Sequence[Sequence[Any]]) -> None:
    """More rows of `clicks`."""
    _WRITE[kind](folder, "clicks", as_table(values))


def config_of_kind(kind: str, folder: Path, **table: Any) -> SourceConfig:
    names = {"clicks": "interactions", "people": "users", "things": "items"}
    prefix = "shop." if kind == "iceberg" else ""
    columns = {key: prefix + name for name, key in names.items()}
    columns |= {"label": "label", "order": "ts", "title": "name", "context": ["device"], "user_features": ["age"]}
    path = {"sql": f"{folder}/shop.db", "iceberg": f"sqlite:///{folder}/catalog.db"}.get(kind, str(folder))
    return SourceConfig.model_validate({"kind": kind, "path": path, "table": columns | table})


def _write_delta(folder: Path, name: str, table: pa.Table) -> None:
    from deltalake import write_deltalake

    write_deltalake(f"{folder}/{name}", table, mode="append")


def _write_iceberg(folder: Path, name: str, table: pa.Table) -> None:
    from pyiceberg.catalog import load_catalog

    catalog = load_catalog("default", uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}")
    catalog.create_namespace_if_not_exists("shop")
    catalog.create_table_if_not_exists(f"shop.{name}", table.schema).append(table)


def _write_dataset(folder: Path, name: str, table: pa.Table) -> None:
    import shutil

    import datasets

    datasets.disable_progress_bars()
    place = folder / name
    if place.exists():
        before = datasets.load_from_disk(str(place)).with_format("arrow")
        table = pa.concat_tables([before[:].cast(table.schema), table])
        shutil.rmtree(place)
    datasets.Dataset(table).save_to_disk(str(place))


def _write_database(folder: Path, name: str, table: pa.Table) -> None:
    with sqlite3.connect(folder / "shop.db") as connection:
        connection.execute(f"CREATE TABLE IF NOT EXISTS {name} ({', '.join(table.column_names)})")
        marks = ", ".join("?" * len(table.column_names))
        values = zip(*table.to_pydict().values(), strict=True)
        connection.executemany(f"INSERT INTO {name} VALUES ({marks})", list(values))


_WRITE = {"delta": _write_delta, "iceberg": _write_iceberg, "huggingface": _write_dataset, "sql": _write_database}
