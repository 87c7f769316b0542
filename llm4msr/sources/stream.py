"""Files larger than memory: read block by block, with what is wanted written aside and mapped back.

Memory holds a few blocks of the file. The tables lie in temporary files, so `TMPDIR` needs room for the wanted
columns, and they last as long as the tables that map them.
"""

import csv
import itertools
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
from upath import UPath

from llm4msr import storage
from llm4msr.errors import DataError, StorageError
from llm4msr.s3 import FAULTS
from llm4msr.sources.columns import Rows, refuse_missing

MAX_LINE = 10_000_000
"""Bytes of a line (of a row of a CSV) that may stand open at the end of a block."""

_BLOCK = 1 << 22
_ROWS = 1 << 15


def names_in(folder: UPath) -> list[str]:
    """Names of what a folder holds, sorted.

    Raises:
        StorageError: it is no folder or cannot be read.
    """
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except FAULTS as error:
        raise StorageError(
            f"{folder}: not a folder that can be read ({type(error).__name__}); check source.path and access"
        ) from None


def find(folder: UPath, *names: str) -> UPath:
    """The first of the names that the folder holds.

    Raises:
        StorageError: it holds none; the message says what was looked for and what is there.
    """
    there = names_in(folder)
    for name in names:
        if name in there:
            return folder / name
    raise StorageError(f"{folder}: no {' or '.join(names)}; {shown(there)}")


def shown(names: list[str]) -> str:
    """What a folder holds, as an error message says it."""
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return f"it holds {', '.join(names[:20]) or 'nothing'}{more}"


def lines(file: UPath) -> Iterator[tuple[int, bytes]]:
    """Each line of a plain or .gz file that is not blank, and its number counted from 1.

    Raises:
        DataError: a damaged file, or a line that does not end.
        StorageError: the file cannot be opened.
    """
    for first, block in _blocks(file, quoted=False):
        for number, line in enumerate(block.split(b"\n"), start=first):
            if line and not line.isspace():
                yield number, line


def csv_rows(file: UPath, wanted: tuple[str, ...]) -> Iterator[Rows]:
    """The wanted columns of a plain or .gz CSV as text, block by block; an empty cell is null.

    Raises:
        DataError: a wanted column is missing, a row has too many or too few cells, no rows, a damaged file.
        StorageError: the file cannot be opened.
    """
    header: list[str] = []
    before = 0
    for _, block in _blocks(file, quoted=True):
        if not header:
            first, _, block = block.partition(b"\n")
            header = _header(first, wanted, file)
        if not block or block.isspace():
            continue
        table = _parse(block, header, wanted, before, file)
        if table.num_rows:
            yield Rows(table, file, before)
        before += table.num_rows
    if not before:
        raise DataError(f"{file}: no rows below the header" if header else f"{file}: the file is empty")


def spooled(layout: pa.Schema, batches: Iterable[pa.RecordBatch]) -> pa.Table:
    """The batches as a table that is mapped from a temporary file, which is gone once the table is.

    Raises:
        StorageError: the temporary file cannot be written.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="llm4msr-") as folder:
            file = str(Path(folder) / "table.arrow")
            with pa.OSFile(file, "wb") as sink, pa.ipc.new_file(sink, layout) as writer:
                for batch in batches:
                    writer.write_batch(batch)
            # the map keeps the file's data although its name goes with the folder
            return pa.ipc.open_file(pa.memory_map(file)).read_all()
    except OSError as error:
        raise StorageError(f"temporary file: cannot be written ({error}); set TMPDIR to a folder with room") from None


def batched(layout: pa.Schema, rows: Iterable[tuple[Any, ...]]) -> Iterator[pa.RecordBatch]:
    """Rows of plain values as batches of bounded length."""
    rest = iter(rows)
    while chunk := list(itertools.islice(rest, _ROWS)):
        columns = zip(layout, zip(*chunk, strict=True), strict=True)
        yield pa.record_batch([pa.array(values, field.type) for field, values in columns], schema=layout)


def _blocks(file: UPath, quoted: bool) -> Iterator[tuple[int, bytes]]:
    """Whole lines, and the number of the first; a line break between quotes ends none if `quoted`."""
    filesystem, inner = storage.arrow_filesystem(file)
    first, rest = 1, b""
    try:
        with filesystem.open_input_stream(inner, compression="gzip" if file.suffix == ".gz" else None) as source:
            while data := source.read(_BLOCK):
                data = rest + data
                end = _last_end(data, quoted) + 1
                block, rest = data[:end], data[end:]
                if block:
                    yield first, block
                first += block.count(b"\n")
                if len(rest) > MAX_LINE:
                    hint = "is a quote left open?" if quoted else "is this the right file?"
                    raise DataError(f"{file}: line {first}: no end within {MAX_LINE} bytes; {hint}")
    except (FileNotFoundError, PermissionError) as error:
        raise StorageError(f"{file}: cannot be read ({type(error).__name__}); check source.path and access") from None
    except FAULTS as error:
        raise DataError(f"{file}: cannot be read to its end ({error}); fetch it again") from None
    if rest:
        yield first, rest


def _last_end(data: bytes, quoted: bool) -> int:
    """Place of the last line break that is not between quotes; -1 if there is none."""
    end = data.rfind(b"\n")
    is_open = quoted and end >= 0 and data.count(b'"', 0, end) % 2
    while is_open:
        earlier = data.rfind(b"\n", 0, end)
        is_open = earlier >= 0 and (is_open + data.count(b'"', earlier, end)) % 2
        end = earlier
    return end


def _header(line: bytes, wanted: tuple[str, ...], file: UPath) -> list[str]:
    try:
        names = next(csv.reader([line.decode("utf-8-sig")]), [])
    except UnicodeDecodeError:
        raise DataError(f"{file}: not readable as CSV: the header is not UTF-8") from None
    for name in wanted:
        refuse_missing(name, names, file)
    return names


def _parse(block: bytes, header: list[str], wanted: tuple[str, ...], before: int, file: UPath) -> pa.Table:
    refused: list[pacsv.InvalidRow] = []

    def refuse(row: pacsv.InvalidRow) -> str:
        refused.append(row)
        return "error"

    as_text = pacsv.ConvertOptions(
        column_types=dict.fromkeys(header, pa.string()),
        include_columns=wanted,
        strings_can_be_null=True,
        null_values=[""],
    )
    # one thread, since only then pyarrow counts rows
    read = pacsv.ReadOptions(column_names=header, use_threads=False, block_size=max(len(block), 1))
    parse = pacsv.ParseOptions(newlines_in_values=True, invalid_row_handler=refuse)
    try:
        return pacsv.read_csv(pa.BufferReader(block), read, parse, as_text)
    except pa.ArrowInvalid as error:
        if not refused:
            raise DataError(f"{file}: not readable as CSV after row {before}: {error}") from None
        row = refused[0]
        raise DataError(
            f"{file}: row {before + row.number}: {row.actual_columns} cells; expected {row.expected_columns}"
        ) from None
