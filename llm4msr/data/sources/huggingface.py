"""Datasets as Hugging Face's library saves them to a folder (`save_to_disk`).

Ray's `from_huggingface` asks the hub about each dataset and puts it into memory whole; here each task maps the files
and reads a range of rows. Datasets of the hub are Parquet files: `kind = "table"` with a path such as
`hf://datasets/owner/name`.
"""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from llm4msr import storage
from llm4msr.config import SourceConfig
from llm4msr.data.reading.columns import Rows, require_column
from llm4msr.data.reading.named_columns import Convert, read_named
from llm4msr.data.reading.raw_data import RawData, RawTable
from llm4msr.data.reading.raw_tables import SLICE_ROWS, PieceTable
from llm4msr.data.sources.extras import library_errors, needed_by
from llm4msr.data.sources.table import fingerprint as fingerprint  # it is a folder of files too
from llm4msr.errors import DataError, StorageError

PIECE_ROWS = 1 << 20
_WHAT = "a dataset that save_to_disk wrote"


def read(config: SourceConfig) -> RawData:
    """As `Source.read`; a StorageError too where the dataset lies in an object store."""
    folder = storage.path(config.path)
    if not isinstance(folder, Path):
        raise StorageError(f"{folder}: a saved dataset is read from a folder that all machines share, not from a store")
    return read_named(config.table, lambda name: DatasetTable(str(folder / name)))


class DatasetTable:
    """One dataset, in the order of its rows."""

    in_order = True

    def __init__(self, where: str):
        self.where, self._dataset = where, _open(where)
        if not hasattr(self._dataset, "column_names") or isinstance(self._dataset, dict):
            splits = ", ".join(self._dataset)
            raise DataError(f"{where}: a dictionary of datasets; name one of them as a folder below it: {splits}")

    def first(self, names: Sequence[str]) -> Rows:
        """The first rows."""
        for name in names:
            require_column(name, self._dataset.column_names, self.where)
        rows = next(_read_rows(self.where, list(names), range(min(SLICE_ROWS, len(self._dataset)))), None)
        if rows is None:
            raise DataError(f"{self.where}: no rows")
        return rows

    def read(self, names: Sequence[str], convert: Convert, layout: pa.Schema) -> RawTable:
        """All rows, in pieces of `PIECE_ROWS`."""
        count = len(self._dataset)
        pieces = [range(at, min(at + PIECE_ROWS, count)) for at in range(0, count, PIECE_ROWS)]
        read = functools.partial(_read_piece, self.where, list(names), convert)
        return PieceTable(layout, count, pieces, read, int(self._dataset.data.nbytes))


def _open(where: str) -> Any:
    with needed_by("huggingface"):
        from datasets import load_from_disk
    with library_errors(where, _WHAT):
        return load_from_disk(where)


def _read_piece(where: str, names: list[str], convert: Convert, piece: range) -> Iterator[pa.Table]:
    for rows in _read_rows(where, names, piece):
        yield convert(rows, rows.before)


def _read_rows(where: str, names: list[str], piece: range) -> Iterator[Rows]:
    dataset, before = _open(where), piece.start
    with library_errors(where, _WHAT):
        columns = dataset.with_format("arrow").select_columns(list(dict.fromkeys(names)))
        for table in columns.select(piece).iter(SLICE_ROWS):
            yield Rows(table, where, before)
            before += len(table)
