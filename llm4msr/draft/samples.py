"""The first rows of each table: of at most three of its files, and of each no more than one block."""

from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa
import pyarrow.types as types

from llm4msr import storage
from llm4msr.data.reading import pieces
from llm4msr.data.reading.columns import Rows, require_column
from llm4msr.data.reading.csv_blocks import DELIMITERS, EmptyFileError, add_keys, csv_rows
from llm4msr.data.reading.files import SourceFile
from llm4msr.data.reading.pieces import Piece
from llm4msr.draft import tables
from llm4msr.draft.columns import ColumnSample, look_at
from llm4msr.draft.tables import Places, TableFiles
from llm4msr.errors import DataError
from llm4msr.text import quote, shorten

ROWS = 100_000
"""Rows of a file that are looked at."""
FEW_FILES = 8
"""Of files whose names differ in numbers alone, so many are compared by their columns too."""
MOST_COLUMNS = 500


@dataclass(frozen=True)
class Sample:
    """A table, some of its rows, and what its columns look like."""

    name: str
    files: list[SourceFile]
    rows: Rows
    columns: dict[str, ColumnSample]
    delimiter: str
    """The mark between cells if the config has to name it, else empty."""
    about: int
    """How many rows the table has, or about how many."""

    @property
    def is_whole(self) -> bool:
        """Whether all rows of the table are in the sample."""
        return self.about <= len(self.rows.table)

    def is_read_with(self, delimiter: str) -> bool:
        """Whether its columns are the same where cells are separated so."""
        file = self.files[0]
        again = None if file.is_parquet else _try_delimiter(file, delimiter)
        return file.is_parquet or (again is not None and {*again.table.column_names} <= {*self.columns, ""})


def read_samples(places: Places) -> list[Sample]:
    """A sample of each table among the files; files without rows are passed over.

    Raises:
        DataError: a file is damaged, has no header, or has no rows while there is no other.
    """
    parts: list[_Part] = []
    empty: DataError | None = None
    for files in tables.group(places):
        try:
            parts += _read_parts(files)
        except EmptyFileError as error:
            empty = error
    if empty and not parts:
        raise empty
    return [_sample(tables.name_table(part.files, places), part) for part in _join(parts, places)]


class _Part(NamedTuple):
    """Files that are a table or a part of one, the first rows, and the delimiter if the header does not show it."""

    files: list[SourceFile]
    rows: Rows
    delimiter: str

    @property
    def layout(self) -> tuple[object, ...]:
        return (self.files[0].is_parquet, *sorted(self.rows.table.column_names))


def _read_parts(files: list[SourceFile]) -> list[_Part]:
    """The files in one part, or in several if they are few and their columns differ."""
    if len(files) > FEW_FILES:
        return [_Part(files, *_read_first(files))]
    by_layout: dict[tuple[object, ...], _Part] = {}
    for file in files:
        try:
            part = _Part([file], *_read_file(file))
        except EmptyFileError:
            if file is files[-1] and not by_layout:
                raise
            continue
        by_layout.setdefault(part.layout, part._replace(files=[])).files.append(file)
    return [*by_layout.values()]


def _join(parts: list[_Part], places: Places) -> list[_Part]:
    """The same, where all files of a folder that have the same columns are one table."""
    by_folder: dict[str, list[_Part]] = {}
    for part in parts:
        by_folder.setdefault(tables.folder_of(part.files), []).append(part)
    joined = []
    for folder, inside in by_folder.items():
        files = sorted((file for part in inside for file in part.files), key=lambda file: file.name)
        is_one = len({part.layout for part in inside}) == 1 and tables.name_table(files, places).name == folder
        joined += [inside[0]._replace(files=files)] if is_one else inside
    return joined


def _sample(table: TableFiles, part: _Part) -> Sample:
    files, first, delimiter = table.files, part.rows, part.delimiter
    about = pieces.plan(files, first).rows
    rows = _cut(first)
    for file in {files[len(files) // 2].name: files[len(files) // 2], files[-1].name: files[-1]}.values():
        if file.path != first.file:
            rows = _append(rows, file, delimiter)
    names = rows.table.column_names[:MOST_COLUMNS]
    columns = {name: look_at(rows, name) for name in names if name.strip()}
    return Sample(table.name, files, rows, columns, delimiter, about)


def _append(rows: Rows, file: SourceFile, delimiter: str) -> Rows:
    """The rows and the first ones of another file, if it has the same columns."""
    try:
        more, _ = _read_file(file, delimiter)
        both = [rows.table, _cut(more).table.select(rows.table.column_names)]
        return Rows(pa.concat_tables(both), rows.file, before=None)
    except (EmptyFileError, KeyError, pa.ArrowInvalid):
        return rows


def _read_first(files: list[SourceFile]) -> tuple[Rows, str]:
    """The first rows of the first file that has some, and its delimiter if the header does not show it."""
    for file in files[:100]:
        try:
            return _read_file(file)
        except EmptyFileError:
            if file is files[:100][-1]:
                raise
    raise DataError(f"{files[0].path}: no rows")


def _read_file(file: SourceFile, delimiter: str = "") -> tuple[Rows, str]:
    """The first block of a file, with what its folders say, and its delimiter if the header does not show it."""
    if file.is_parquet:
        rows, mark = next(pieces.read_rows(Piece(file, 0, file.size), _columns(file))), ""
    else:
        rows, mark = _read_csv(file, delimiter)
        _check_header(rows.table.column_names, file)
    return Rows(add_keys(rows.table, [*file.keys], file.keys), rows.file, rows.before), mark


def _cut(rows: Rows) -> Rows:
    table = rows.table.slice(0, ROWS)
    for place, field in enumerate(table.schema):
        if types.is_dictionary(field.type):  # Arrow cannot group by several of them
            table = table.set_column(place, field.name, table[place].cast(field.type.value_type))
        if types.is_string_view(field.type):  # nor filter these
            table = table.set_column(place, field.name, table[place].cast(pa.string()))
    return Rows(table, rows.file, rows.before)


def _columns(file: SourceFile) -> list[str]:
    """The columns of a Parquet file but for vectors and structures, which may be large."""
    with storage.open_parquet(file.path, advice="fetch it again", by_group=True) as parquet:
        fields = [field for field in parquet.schema_arrow if not _is_large(field.type)]
    return [field.name for field in fields[:MOST_COLUMNS]]


def _is_large(kind: pa.DataType) -> bool:
    if types.is_nested(kind):
        inner = getattr(kind, "value_type", None)
        return inner is None or types.is_floating(inner) or types.is_nested(inner)
    return types.is_binary(kind) or types.is_large_binary(kind)


def _read_csv(file: SourceFile, delimiter: str) -> tuple[Rows, str]:
    """Where several delimiters are possible, the one by which the rows have the most cells, all alike."""
    try:
        return next(csv_rows(file.path, (), delimiter)), delimiter
    except EmptyFileError:
        raise
    except DataError as error:
        if delimiter or "set source.table.delimiter" not in str(error):
            raise
        readings = {mark: rows for mark in DELIMITERS if (rows := _try_delimiter(file, mark)) is not None}
        if not readings:
            raise
        best = max(readings, key=lambda mark: readings[mark].table.num_columns)
        return readings[best], best


def _try_delimiter(file: SourceFile, mark: str) -> Rows | None:
    try:
        return next(csv_rows(file.path, (), mark))
    except DataError:
        return None


def _check_header(header: list[str], file: SourceFile) -> None:
    for name in filter(str.strip, header):
        require_column(name, header, file.path)
    data = [name for name in header if name.strip() and _is_value(name)]
    if 2 * len(data) >= len(header) or _is_value(header[0]):
        shown = shorten(", ".join(map(quote, header)), 120)
        raise DataError(
            f"{file.path}: the first line looks like data, not like names of columns: {shown}; "
            "write the columns' names above it"
        )


def _is_value(name: str) -> bool:
    plain = name.strip().replace(":", "").replace("-", "").replace("/", "").replace(" ", "")
    return plain.replace(".", "", 1).isdigit()
