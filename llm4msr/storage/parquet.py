"""Tables in Parquet files, with checksums of their content."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, Field
from upath import UPath

from llm4msr.errors import StorageError
from llm4msr.storage import arrow_files, files
from llm4msr.storage.s3 import FAULTS

GROUP_ROWS = 1 << 16
"""Rows of a row group by default."""
_FAULTS: tuple[type[Exception], ...] = (*FAULTS, pa.ArrowException, KeyError)
CHECKED_AT_ONCE = 1 << 26
"""Bytes up to which a file is read once, checked, and used from memory."""
SMALL = 1 << 20
"""The same for a file that stays open beside many others, to read row groups of."""
_checked: set[tuple[str, str, int]] = set()
"""Larger files that this process has read through once: place, checksum, and time of the last change."""


class FileRecord(BaseModel):
    """What a manifest says of one file: its rows, its bytes and the digest of its content."""

    rows: int = Field(ge=0)
    bytes: int = Field(ge=0)
    digest: str = Field(pattern="^[0-9a-f]{32}$")


def write_table(file: UPath, table: pa.Table, rows_per_group: int = GROUP_ROWS) -> FileRecord:
    """Write a Parquet file in one piece."""
    groups = [table.slice(start, rows_per_group) for start in range(0, max(len(table), 1), rows_per_group)]
    return write_groups(file, groups)


def write_groups(file: UPath, groups: Sequence[pa.Table]) -> FileRecord:
    """Write a Parquet file of these row groups in one piece."""
    data = parquet_bytes(groups)
    files.write_bytes(file, data)
    return FileRecord(rows=sum(map(len, groups)), bytes=len(data), digest=files.digest(data))


def parquet_bytes(groups: Sequence[pa.Table]) -> bytes:
    """A Parquet file of these row groups."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, groups[0].schema, compression="zstd", write_page_checksum=True) as writer:
        for group in groups:
            writer.write_table(group, row_group_size=max(len(group), 1))
    data: bytes = sink.getvalue().to_pybytes()
    return data


def read_table(
    file: UPath, columns: list[str] | None = None, advice: str = files.RERUN, checksum: str = ""
) -> pa.Table:
    """Read a Parquet file; an error ends with the `advice`.

    Raises:
        StorageError: it is missing, damaged, or lacks a column.
    """
    with read_errors(file, advice), open_parquet(file, advice, checksum) as parquet:
        table = parquet.read(columns)
        if missing := set(columns or ()) - set(table.column_names):  # Arrow passes over them
            raise KeyError(f"no column '{min(missing)}'")
        return table


@contextmanager
def read_errors(file: UPath, advice: str = files.RERUN) -> Iterator[None]:
    """What goes wrong when the rows of a Parquet file are read, as one message.

    Raises:
        StorageError: it is damaged, or lacks a column.
    """
    try:
        yield
    except _FAULTS as error:
        raise StorageError(f"{file}: damaged or of another layout ({error}); {advice}") from None


def open_parquet(file: UPath, advice: str = files.RERUN, checksum: str = "", by_group: bool = False) -> pq.ParquetFile:
    """Open a Parquet file for reading row groups, its content compared with its `checksum`; close it after use.

    Args:
        file: where it lies.
        advice: what an error ends with.
        checksum: of its content; empty: not compared.
        by_group: whether it stays open, and single row groups will be read. Then it is not kept in memory but read
            through once a process for its checksum, and a row group is one request.

    Raises:
        StorageError: it is missing or damaged.
    """
    filesystem, inner = files.arrow_filesystem(file)
    at_once = SMALL if by_group else CHECKED_AT_ONCE
    try:
        source = filesystem.open_input_file(inner)
        content = _check(source, file, checksum, advice, at_once) if checksum else source
        return arrow_files.open_parquet(content, pre_buffer=by_group)
    except _FAULTS as error:
        raise StorageError(f"{file}: not a readable Parquet file ({error}); {advice}") from None


def _check(source: pa.NativeFile, file: UPath, checksum: str, advice: str, at_once: int) -> pa.NativeFile:
    """Where to read the file's content from, once it is known to be what its checksum says.

    Parquet's own checksums of pages are not enough: they cover neither the headers of pages nor the footer.
    """
    if source.size() <= at_once:
        data = source.read()
        files.compare(file, files.digest(data), checksum, advice)
        return pa.BufferReader(data)
    key = (str(file), checksum, os.stat(file).st_mtime_ns if isinstance(file, Path) else source.size())
    if key not in _checked:
        files.compare(file, files.digest_file(file), checksum, advice)
        _checked.add(key)
    return source


def record_file(file: UPath, rows: int = -1) -> FileRecord:
    """The record of a file that exists; the rows of a Parquet file need not be given."""
    if rows < 0:
        with open_parquet(file) as parquet:
            rows = parquet.metadata.num_rows
    return FileRecord(rows=rows, bytes=file.stat().st_size, digest=files.digest_file(file))
