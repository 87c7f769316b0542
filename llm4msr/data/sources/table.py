"""Anyone's CSV (plain or .gz) or Parquet: interactions, and optionally items and users."""

from collections.abc import Sequence

import pyarrow as pa
from upath import UPath

from llm4msr import schema, storage
from llm4msr.arrays import Column
from llm4msr.config import SourceConfig, TableColumns
from llm4msr.data.reading.columns import Rows, require_column, split_texts
from llm4msr.data.reading.csv_blocks import csv_rows
from llm4msr.data.reading.raw_data import RawData, check, file_fingerprint, require_unique
from llm4msr.errors import DataError, StorageError
from llm4msr.storage import arrow_files
from llm4msr.storage.s3 import FAULTS
from llm4msr.text import MAX_ID

# the names of columns are decoded too
_FAULTS_OF_PARQUET: tuple[type[Exception], ...] = (pa.ArrowException, UnicodeDecodeError, *FAULTS)


def fingerprint(config: SourceConfig) -> str:
    """Hash that changes when a file or the naming of columns changes."""
    columns = config.table
    files = [name for name in (columns.interactions, columns.items, columns.users) if name]
    prints = (file_fingerprint(storage.path(config.path) / name) for name in files)
    return storage.digest(columns.model_dump_json(), *prints)


def read(config: SourceConfig) -> RawData:
    """Read the files and bring them into the raw layout.

    Raises:
        DataError: a missing column, a bad or missing cell, an empty file, an id that stands twice.
        StorageError: a file cannot be read.
    """
    columns, folder = config.table, storage.path(config.path)
    file = folder / columns.interactions
    ids = {"user_id": columns.user, "item_id": columns.item, "scenario_id": columns.scenario}
    numbers = [name for name in (columns.label, columns.order) if name]
    rows = _read_file(file, [*ids.values(), *numbers, *columns.context], columns.delimiter)
    count = rows.table.num_rows
    interactions = pa.Table.from_pydict(
        {ours: rows.ids(name) for ours, name in ids.items()}
        | {
            "label": rows.labels(columns.label) if columns.label else pa.array([1.0] * count, pa.float32()),
            "order": rows.order(columns.order) if columns.order else pa.array(range(count), pa.int64()),
        }
        | {schema.CONTEXT + name: rows.texts(name, MAX_ID) for name in columns.context}
    )
    return check(interactions, _users(folder, columns), _items(folder, columns), not columns.label, where=str(file))


def _users(folder: UPath, columns: TableColumns) -> pa.Table:
    if not columns.users:
        return _without_file("users", columns.user_features, schema.RAW_USERS)
    rows = _read_file(folder / columns.users, [columns.user, *columns.user_features], columns.delimiter)
    return pa.Table.from_pydict({"user_id": _unique_ids(rows, columns.user)} | _features(rows, columns.user_features))


def _items(folder: UPath, columns: TableColumns) -> pa.Table:
    if not columns.items:
        return _without_file("items", columns.item_features, schema.RAW_ITEMS)
    texts = [name for name in (columns.title, columns.category) if name]
    rows = _read_file(folder / columns.items, [columns.item, *texts, *columns.item_features], columns.delimiter)
    ids = _unique_ids(rows, columns.item)
    table = {"item_id": ids, "title": rows.texts(columns.title) if columns.title else ids}
    table |= _features(rows, columns.item_features)
    if columns.category:
        path = rows.features(columns.category)
        is_text = pa.types.is_string(path.type)
        table["f:category"] = split_texts(path, columns.category_separator) if is_text else path
    return pa.Table.from_pydict(table)


def _without_file(side: str, features: tuple[str, ...], layout: pa.Schema) -> pa.Table:
    """No rows; users and items are then those that occur."""
    if features:
        raise DataError(f"source.table: features {', '.join(features)} need a file of {side}")
    return layout.empty_table()


def _unique_ids(rows: Rows, name: str) -> Column:
    ids = rows.ids(name)
    require_unique(ids, str(rows.file), name)
    return ids


def _features(rows: Rows, names: tuple[str, ...]) -> dict[str, Column]:
    return {schema.FEATURE + name: rows.features(name) for name in names}


def _read_file(file: UPath, names: Sequence[str], delimiter: str) -> Rows:
    """Columns of a CSV as text, or of a Parquet file as they are."""
    names = list(dict.fromkeys(names))
    if file.suffix.lower() != ".parquet":
        return Rows(pa.concat_tables(rows.table for rows in csv_rows(file, names, delimiter)), file)
    filesystem, inner = storage.arrow_filesystem(file)
    try:
        with arrow_files.open_parquet(filesystem.open_input_file(inner)) as parquet:
            for name in names:
                require_column(name, parquet.schema_arrow.names, file)
            table = parquet.read(names)
    except (FileNotFoundError, PermissionError) as error:
        raise StorageError(f"{file}: cannot be read ({type(error).__name__}); check source.path and access") from None
    except _FAULTS_OF_PARQUET as error:
        raise DataError(f"{file}: not readable as Parquet: {error}") from None
    if not table.num_rows:
        raise DataError(f"{file}: no rows")
    return Rows(table, file)
