"""Files in pieces that can be read apart: whole ones, and some row groups of a large Parquet file."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from llm4msr import storage
from llm4msr.data.reading import stream
from llm4msr.data.reading.columns import Rows, require_column
from llm4msr.data.reading.csv_blocks import EmptyFileError, add_keys, csv_rows
from llm4msr.data.reading.files import THREADS, SourceFile
from llm4msr.errors import DataError, StorageError
from llm4msr.storage import arrow_files
from llm4msr.storage.s3 import FAULTS

PIECE_BYTES = 1 << 28
"""A larger Parquet file is read in several pieces."""
FOOTERS = 64
"""Parquet files whose rows are counted, if they are not larger; of the others the number is estimated."""
_BATCH_ROWS = 1 << 16
FILE_BITS = 40
"""Lower bits of a row's number, which count within a file."""
_FAULTS_OF_PARQUET: tuple[type[Exception], ...] = (pa.ArrowException, ValueError, *FAULTS)
"""A ValueError: names of columns are no UTF-8, or a server sends no parts of files."""


class Piece(NamedTuple):
    """A file, or some row groups of a Parquet file."""

    file: SourceFile
    place: int
    """Of the file among those of its table."""
    size: int
    """In bytes."""
    groups: list[int] | None = None
    """None = all of the file."""
    before: int = 0
    """Rows of the file that stand before these."""


class Plan(NamedTuple):
    """The pieces of all files in order, and how many rows they have, or about how many."""

    pieces: list[Piece]
    rows: int


def first_number(piece: Piece, rows: Rows) -> int:
    """The number of the first of these rows of the piece: those of later rows, and of later files, are greater."""
    return (piece.place << FILE_BITS) + (rows.before or 0)


def read_piece(piece: Piece, names: Sequence[str], delimiter: str = "") -> Iterator[Rows]:
    """Columns of a CSV as text, or of a Parquet file as they are, in bounded tables; of an empty file none.

    Raises:
        DataError: a column is missing, or the file is damaged or of another format.
        StorageError: it cannot be read.
    """
    try:
        yield from read_rows(piece, names, delimiter)
    except EmptyFileError:
        return


def read_rows(piece: Piece, names: Sequence[str], delimiter: str = "") -> Iterator[Rows]:
    """The same of a file that must not be empty.

    Raises:
        EmptyFileError: it is.
    """
    names = list(dict.fromkeys(names))
    if not piece.file.is_parquet:
        yield from csv_rows(piece.file.path, names, delimiter, piece.file.keys)
        return
    before = piece.before
    with _open_parquet(piece.file) as parquet:
        header, keys = parquet.schema_arrow.names, piece.file.keys
        there = [name for name in names if name in header or name not in keys]
        for name in there:
            require_column(name, header, piece.file.path)
        for batch in parquet.iter_batches(_BATCH_ROWS, row_groups=piece.groups, columns=there):
            table = add_keys(pa.Table.from_batches([batch]), names, keys)
            yield Rows(table, piece.file.path, before)
            before += len(table)
    if before == piece.before:
        raise EmptyFileError(f"{piece.file.path}: no rows")


@contextmanager
def _open_parquet(file: SourceFile) -> Iterator[pq.ParquetFile]:
    filesystem, inner = storage.arrow_filesystem(file.path)
    try:
        with arrow_files.open_parquet(filesystem.open_input_file(inner)) as parquet:
            yield parquet
    except (FileNotFoundError, PermissionError) as error:
        why = f"cannot be read ({type(error).__name__}); check source.path and access"
        raise StorageError(f"{file.path}: {why}") from None
    except _FAULTS_OF_PARQUET as error:
        raise DataError(f"{file.path}: not readable as Parquet: {error}") from None


def plan(files: Sequence[SourceFile], first: Rows) -> Plan:
    """The pieces of the files; `first` are the first rows of one of them."""
    footers = _read_footers(files)
    pieces = [piece for place, file in enumerate(files) for piece in _split(file, place, footers.get(place))]
    counted = sum(rows for groups in footers.values() for rows, _ in groups)
    rest = sum(file.size for place, file in enumerate(files) if place not in footers)
    if footers:
        per_byte = counted / max(1, sum(files[place].size for place in footers))
    else:
        per_byte = _rows_per_byte(next(file for file in files if file.path == first.file), len(first.table))
    return Plan(pieces, counted + max(round(rest * per_byte), min(rest, 1)))  # 0 would say that there is none


def _rows_per_byte(file: SourceFile, rows: int) -> float:
    """Of a CSV whose first block has so many rows."""
    ratio = stream.packing_ratio(file.path)
    return rows * ratio / max(1, min(stream.BLOCK, file.size * ratio))


def _read_footers(files: Sequence[SourceFile]) -> dict[int, list[tuple[int, int]]]:
    """Place of a Parquet file -> rows and bytes of each of its row groups, for large files and some others."""
    small = [place for place, file in enumerate(files) if file.is_parquet and file.size <= PIECE_BYTES]
    large = [place for place, file in enumerate(files) if file.is_parquet and file.size > PIECE_BYTES]
    chosen = large + small[:: max(1, -(-len(small) // FOOTERS))]
    with ThreadPoolExecutor(THREADS) as threads:
        return dict(zip(chosen, threads.map(_row_groups, (files[place] for place in chosen)), strict=True))


def _row_groups(file: SourceFile) -> list[tuple[int, int]]:
    with _open_parquet(file) as parquet:
        groups = (parquet.metadata.row_group(at) for at in range(parquet.metadata.num_row_groups))
        return [(group.num_rows, group.total_byte_size) for group in groups]


def _split(file: SourceFile, place: int, groups: list[tuple[int, int]] | None) -> Iterator[Piece]:
    if groups is None or file.size <= PIECE_BYTES:
        yield Piece(file, place, file.size)
        return
    chosen, size, rows, before = list[int](), 0, 0, 0
    for at, (group_rows, group_bytes) in enumerate(groups):
        chosen, size, rows = [*chosen, at], size + group_bytes, rows + group_rows
        if size >= PIECE_BYTES or at == len(groups) - 1:
            yield Piece(file, place, size, chosen, before)
            chosen, size, rows, before = [], 0, 0, before + rows
