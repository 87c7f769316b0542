"""Anyone's CSV (plain or .gz) or Parquet: interactions, and optionally items and users."""

import gzip
import io
import zlib

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
from upath import UPath

from llm4msr import arrow_files, schema, storage
from llm4msr.config import SourceConfig, TableColumns
from llm4msr.errors import DataError
from llm4msr.sources.base import RawData, file_fingerprint, refuse_duplicates
from llm4msr.sources.columns import Rows


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
    count = rows.table.num_rows
    interactions = pa.table(
        {
            "user_id": rows.ids(columns.user),
            "item_id": rows.ids(columns.item),
            "scenario_id": rows.ids(columns.scenario),
            "label": rows.labels(columns.label) if columns.label else pa.array([1.0] * count, pa.float32()),
            "order": rows.numbers(columns.order) if columns.order else pa.array(range(count), pa.float64()),
        }
        | {schema.CONTEXT + name: rows.texts(name) for name in columns.context}
    )
    users = _read_side(folder, columns.users, columns.user, "user_id", columns.user_features)
    return RawData(interactions, users, _read_items(folder, columns), implicit=not columns.label).checked(str(file))


def _read_items(folder: UPath, columns: TableColumns) -> pa.Table:
    items = _read_side(folder, columns.items, columns.item, "item_id", columns.item_features)
    file = folder / columns.items
    raw = _read_file(file) if columns.items else None
    title = raw.texts(columns.title) if raw is not None and columns.title else items["item_id"]
    items = items.add_column(1, "title", title)
    if raw is not None and columns.category:
        path = pc.split_pattern(raw.texts(columns.category), columns.category_separator)
        items = items.append_column(schema.FEATURE + "category", path)
    return items


def _read_side(folder: UPath, name: str, key: str, renamed: str, features: tuple[str, ...]) -> pa.Table:
    """The table of users or items: from its file, or only the ids that occur."""
    if not name:
        if features:
            raise DataError(f"source.table: features {', '.join(features)} need a file of {renamed.split('_')[0]}s")
        return pa.table({renamed: pa.array([], pa.string())})
    file = folder / name
    rows = _read_file(file)
    ids = rows.ids(key)
    refuse_duplicates(ids, str(file), key)
    return pa.table({renamed: ids} | {schema.FEATURE + f: rows.texts(f) for f in features})


def _read_file(file: UPath) -> Rows:
    """A CSV with every column as text, or a Parquet file as it is."""
    data = storage.read_bytes(file)
    if not data:
        raise DataError(f"{file}: the file is empty")
    try:
        if file.suffix == ".gz":
            data = gzip.decompress(data)
        if file.name.removesuffix(".gz").endswith(".parquet"):
            table = arrow_files.parquet_file(pa.BufferReader(data)).read()
        else:
            table = _read_csv(data)
    except (pa.ArrowException, OSError, zlib.error, EOFError) as error:
        raise DataError(f"{file}: not readable as {'Parquet' if '.parquet' in file.name else 'CSV'}: {error}") from None
    if not table.num_rows:
        raise DataError(f"{file}: no rows below the header")
    return Rows(table, file)


def _read_csv(data: bytes) -> pa.Table:
    header = pacsv.open_csv(io.BytesIO(data)).schema.names
    # only an empty cell is missing: an id may well be "NA" or "null"
    as_text = pacsv.ConvertOptions(
        column_types=dict.fromkeys(header, pa.string()), strings_can_be_null=True, null_values=[""]
    )
    parse = pacsv.ParseOptions(newlines_in_values=True)
    return pacsv.read_csv(pa.BufferReader(data), convert_options=as_text, parse_options=parse)
