"""Anyone's CSV (plain or .gz) or Parquet files: interactions, and optionally items and users."""

import functools
from collections.abc import Iterator, Sequence

import pyarrow as pa
from upath import UPath

from llm4msr import storage
from llm4msr.config import SourceConfig, TableColumns
from llm4msr.data.reading import files, pieces
from llm4msr.data.reading.columns import Rows
from llm4msr.data.reading.csv_blocks import EmptyFileError
from llm4msr.data.reading.file_rows import FileRows
from llm4msr.data.reading.named_columns import Convert, read_named, tables_of
from llm4msr.data.reading.pieces import Piece
from llm4msr.data.reading.raw_data import RawData, RawTable
from llm4msr.errors import DataError


def fingerprint(config: SourceConfig) -> str:
    """Hash that changes when a file or the naming of columns changes."""
    columns, folder = config.table, storage.path(config.path)
    prints = (files.fingerprint(files.find_files(folder, name)) for name in tables_of(columns))
    return storage.digest(columns.model_dump_json(), *prints)


def read(config: SourceConfig) -> RawData:
    """As `Source.read`."""
    folder = storage.path(config.path)
    return read_named(config.table, lambda name: FileTable(folder, name, config.table))


class FileTable:
    """A table in one file or in many."""

    in_order = True

    def __init__(self, folder: UPath, name: str, columns: TableColumns):
        self.where = str(folder / name if name else folder)
        self._files, self._delimiter = files.find_files(folder, name), columns.delimiter
        self._orders_are_numbers = not columns.order
        if len(self._files) == 1:
            self.where = str(self._files[0].path)
        self._first: Rows | None = None

    def first(self, names: Sequence[str]) -> Rows:
        """The first block of the first file that has rows."""
        if self._first is None:
            self._first = self._read_first(names)
        return self._first

    def _read_first(self, names: Sequence[str]) -> Rows:
        for place, file in enumerate(self._files):
            try:
                return next(pieces.read_rows(Piece(file, place, file.size), names, self._delimiter))
            except EmptyFileError:
                if len(self._files) == 1:
                    raise
        raise DataError(f"{self.where}: no rows in any of its {len(self._files)} files")

    def read(self, names: Sequence[str], convert: Convert, layout: pa.Schema) -> RawTable:
        """All rows of the files in the order of their names."""
        plan = pieces.plan(self._files, self.first(names))
        read = functools.partial(_read_piece, list(names), self._delimiter, convert, layout)
        reading = repr((names, self._delimiter, convert.args, layout.names, layout.types))
        size = sum(file.size for file in self._files)
        return FileRows(layout, plan.rows, plan.pieces, read, size, reading, self._orders_are_numbers)


def _read_piece(
    names: list[str], delimiter: str, convert: Convert, layout: pa.Schema, piece: Piece
) -> Iterator[pa.Table]:
    for rows in pieces.read_piece(piece, names, delimiter):
        table = convert(rows, pieces.first_number(piece, rows))
        if table.schema != layout:
            raise DataError(_other_layout(table.schema, layout, piece))
        yield table


def _other_layout(ours: pa.Schema, layout: pa.Schema, piece: Piece) -> str:
    name = next(field.name for field in layout if ours.field(field.name) != field)
    what = {True: "lists", False: "single values"}
    here, there = (what[pa.types.is_list(kind.field(name).type)] for kind in (ours, layout))
    return f"{piece.file.path}: column '{name[2:]}' holds {here}, and in the first file {there}; write all files alike"
