"""Anyone's CSV (plain or .gz) or Parquet: interactions, and optionally items and users."""

import gzip
import io
import zlib

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from upath import UPath

from llm4msr import storage
from llm4msr.config import SourceConfig, TableColumns
from llm4msr.errors import DataError
from llm4msr.sources.base import RawData, file_fingerprint, refuse_duplicates


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
    rows = _read_file(file)
    interactions = pa.table(
        {
            "user_id": _ids(rows, columns.user, file),
            "item_id": _ids(rows, columns.item, file),
            "scenario_id": _ids(rows, columns.scenario, file),
            "label": _labels(rows, columns.label, file),
            "order": _numbers(rows, columns.order, file)
            if columns.order
            else pa.array(range(rows.num_rows), pa.float64()),
        }
        | {name: _texts(rows, name, file) for name in columns.context}
    )
    users, user_features = _read_side(
        folder, columns.users, columns.user, "user_id", columns.user_features, interactions
    )
    items, item_features = _read_items(folder, columns, interactions)
    raw = RawData(interactions, users, items, columns.context, user_features, item_features, implicit=not columns.label)
    return raw.checked(str(file))


def _read_items(folder: UPath, columns: TableColumns, interactions: pa.Table) -> tuple[pa.Table, tuple[str, ...]]:
    wanted = columns.item_features
    items, features = _read_side(folder, columns.items, columns.item, "item_id", wanted, interactions)
    file = folder / columns.items
    raw = _read_file(file) if columns.items else None
    title = _texts(raw, columns.title, file) if raw is not None and columns.title else items["item_id"]
    items = items.add_column(1, "title", title)
    if raw is not None and columns.category:
        path = pc.split_pattern(_texts(raw, columns.category, file), columns.category_separator)
        items, features = items.append_column("category", path), (*features, "category")
    return items, features


def _read_side(
    folder: UPath, name: str, key: str, renamed: str, features: tuple[str, ...], interactions: pa.Table
) -> tuple[pa.Table, tuple[str, ...]]:
    """The table of users or items: from its file, or only the ids that occur."""
    if not name:
        if features:
            raise DataError(f"source.table: features {', '.join(features)} need a file of {renamed.split('_')[0]}s")
        return pa.table({renamed: pa.array([], pa.string())}), ()
    file = folder / name
    rows = _read_file(file)
    ids = _ids(rows, key, file)
    refuse_duplicates(ids, str(file), key)
    return pa.table({renamed: ids} | {f: _texts(rows, f, file) for f in features}), features


def _read_file(file: UPath) -> pa.Table:
    """A CSV with every column as text, or a Parquet file as it is."""
    data = storage.read_bytes(file)
    if not data:
        raise DataError(f"{file}: the file is empty")
    try:
        if file.suffix == ".gz":
            data = gzip.decompress(data)
        if file.name.removesuffix(".gz").endswith(".parquet"):
            table = pq.read_table(pa.BufferReader(data))
        else:
            table = _read_csv(data)
    except (pa.ArrowException, OSError, zlib.error, EOFError) as error:
        raise DataError(f"{file}: not readable as {'Parquet' if '.parquet' in file.name else 'CSV'}: {error}") from None
    if not table.num_rows:
        raise DataError(f"{file}: no rows below the header")
    return table


def _read_csv(data: bytes) -> pa.Table:
    header = pacsv.open_csv(io.BytesIO(data)).schema.names
    # only an empty cell is missing: an id may well be "NA" or "null"
    as_text = pacsv.ConvertOptions(
        column_types=dict.fromkeys(header, pa.string()), strings_can_be_null=True, null_values=[""]
    )
    parse = pacsv.ParseOptions(newlines_in_values=True)
    return pacsv.read_csv(pa.BufferReader(data), convert_options=as_text, parse_options=parse)


def _column(rows: pa.Table, name: str, file: UPath) -> pa.ChunkedArray:
    if name not in rows.column_names:
        raise DataError(f"{file}: column '{name}' is missing; it has {', '.join(rows.column_names)}")
    if rows.column_names.count(name) > 1:
        raise DataError(f"{file}: column '{name}' stands twice in the header")
    if pa.types.is_nested(rows[name].type):
        raise DataError(f"{file}: column '{name}' holds {rows[name].type}; expected text or numbers")
    return rows[name]


def _refuse_where(bad: pa.ChunkedArray, shown: pa.ChunkedArray, name: str, file: UPath, rule: str) -> None:
    if pc.any(bad).as_py():
        row = pc.index(bad, True).as_py()
        raise DataError(f"{file}: column '{name}': {shown[row].as_py()!r} in row {row + 1}; {rule}")


def _ids(rows: pa.Table, name: str, file: UPath) -> pa.ChunkedArray:
    column = _column(rows, name, file).cast(pa.string())
    empty = pc.or_kleene(pc.is_null(column), pc.equal(pc.fill_null(column, ""), ""))
    _refuse_where(empty, column, name, file, "an id cannot be empty")
    return column


def _texts(rows: pa.Table, name: str, file: UPath) -> pa.ChunkedArray:
    return pc.fill_null(_column(rows, name, file).cast(pa.string()), "")


def _numbers(rows: pa.Table, name: str, file: UPath) -> pa.ChunkedArray:
    column = _column(rows, name, file)
    if pa.types.is_temporal(column.type):
        column = column.cast(pa.timestamp("us")).cast(pa.int64())
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        pattern = r"^\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*$"
        bad = pc.invert(pc.fill_null(pc.match_substring_regex(column, pattern), False))
        _refuse_where(bad, column, name, file, "expected a number")
        column = pc.utf8_trim_whitespace(column)
    if pa.types.is_binary(column.type):
        raise DataError(f"{file}: column '{name}' holds {column.type}; expected numbers")
    numbers = column.cast(pa.float64())
    bad = pc.fill_null(pc.invert(pc.is_finite(numbers)), True)
    _refuse_where(bad, column, name, file, "expected a number")
    return numbers


def _labels(rows: pa.Table, name: str, file: UPath) -> pa.ChunkedArray | pa.Array:
    if not name:
        return pa.array([1.0] * rows.num_rows, pa.float32())
    labels = _numbers(rows, name, file)
    bad = pc.or_(pc.less(labels, 0), pc.greater(labels, 1))
    _refuse_where(bad, labels, name, file, "a label lies between 0 and 1; make a rating binary first")
    return labels.cast(pa.float32())
