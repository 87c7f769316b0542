"""CSV files of any delimiter, read as text and block by block: UTF-8, quoted cells, any line end."""

import codecs
import csv
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import IO, Literal, cast

import pyarrow as pa
import pyarrow.csv as pacsv
from upath import UPath

from llm4msr.data.reading import stream
from llm4msr.data.reading.columns import Rows, require_column
from llm4msr.errors import DataError
from llm4msr.text import shorten

DELIMITERS = (",", "\t", ";", "|")
_NO_KEYS: Mapping[str, str | None] = MappingProxyType({})

_NO_TEXT = {
    codecs.BOM_UTF32_LE: "the encoding is UTF-32; save it as UTF-8",  # begins as UTF-16 does
    codecs.BOM_UTF16_LE: "the encoding is UTF-16; save it as UTF-8",
    codecs.BOM_UTF16_BE: "the encoding is UTF-16; save it as UTF-8",
    b"PAR1": "a Parquet file; its name has to end in .parquet",
    b"\x1f\x8b": "packed with gzip; its name has to end in .gz",
    b"PK\x03\x04": "a zip file; unpack it",
    b"\x28\xb5\x2f\xfd": "packed with zstd; unpack it",
    b"BZh9": "packed with bzip2; unpack it",
}
"""How files begin that are no UTF-8 text, and what to do."""


class EmptyFileError(DataError):
    """A file without rows."""


def csv_rows(
    file: UPath, columns: Sequence[str], delimiter: str = "", keys: Mapping[str, str | None] = _NO_KEYS
) -> Iterator[Rows]:
    """Columns of a plain or .gz file as text, block by block; an empty cell is null.

    Args:
        delimiter: what stands between cells; empty = one of `DELIMITERS`, as the header shows.
        keys: columns of one value, which the file need not have.

    Raises:
        EmptyFileError: no rows.
        DataError: a column is missing, a row has too many or too few cells, an open quote, another encoding than
            UTF-8, a damaged file.
        StorageError: the file cannot be opened.
    """
    columns = tuple(dict.fromkeys(columns))
    chunks = decoded(file)
    first = next(chunks, b"").lstrip(b"\r\n")
    if not first.strip():
        raise EmptyFileError(f"{file}: the file is empty")
    line = re.split(rb"[\r\n]", first, maxsplit=1)[0]
    required = [name for name in columns if name not in keys]
    delimiter, names = _header(line.decode(errors="replace"), required, delimiter, file)
    there = [name for name in columns if name in names]
    before = 0
    for block, fault in _blocks(itertools.chain([first[len(line) :]], chunks), delimiter):
        if fault:
            raise DataError(f"{file}: row {before + 1}: {fault}")
        try:
            table = parse(block, names, delimiter, there)
        except RowError as error:
            number, row = before + error.number, f"{error.cells} cells; expected {len(names)}"
            raise DataError(f"{file}: row {number}: {row}") from None
        except pa.ArrowInvalid as error:
            raise DataError(f"{file}: not readable as CSV after row {before}: {error!s:.200}") from None
        if table.num_rows:
            yield Rows(add_keys(table, columns, keys), file, before)
        before += table.num_rows
    if not before:
        raise EmptyFileError(f"{file}: no rows below the header")


def add_keys(table: pa.Table, columns: Sequence[str], keys: Mapping[str, str | None]) -> pa.Table:
    """The table with those of the columns that it lacks, of one value each."""
    for name in columns:
        if name in keys and name not in table.column_names:
            table = table.append_column(name, pa.repeat(pa.scalar(keys[name], pa.string()), len(table)))
    return table


def decoded(file: UPath) -> Iterator[bytes]:
    """The content of a file, piece by piece, known to be UTF-8 and without its byte order mark.

    Raises:
        DataError: another encoding; the message names it, or the line.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    line, mark = 1, codecs.BOM_UTF8
    for chunk in itertools.chain(stream.unpacked(file), [b""]):
        for beginning, remedy in _NO_TEXT.items() if mark else ():
            if chunk.startswith(beginning):
                raise DataError(f"{file}: {remedy}")
        try:
            decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            line += error.object[: error.start].count(b"\n")
            byte = error.object[error.start]
            raise DataError(
                f"{file}: the encoding is not UTF-8 (line {line} has the byte 0x{byte:02x}); save it as UTF-8"
            ) from None
        line += chunk.count(b"\n")
        yield chunk.removeprefix(mark)
        mark = b""


def _header(line: str, columns: Sequence[str], delimiter: str, file: UPath) -> tuple[str, list[str]]:
    """The delimiter and the names of the columns."""
    if "\0" in line:
        raise DataError(f"{file}: the encoding is not UTF-8 (the header has zero bytes); save it as UTF-8")
    try:
        rows = {mark: next(csv.reader([line], delimiter=mark)) for mark in ([delimiter] if delimiter else DELIMITERS)}
    except csv.Error as error:
        raise DataError(f"{file}: not readable as CSV: header: {error}") from None
    possible = {mark: names for mark, names in rows.items() if len(names) > 1} or dict(
        itertools.islice(rows.items(), 1)
    )
    if len(possible) > 1:
        possible = {mark: names for mark, names in possible.items() if set(columns) <= set(names)} or possible
    if len(possible) > 1:
        raise DataError(
            f"{file}: columns may be separated by {' or '.join(map(repr, possible))}: {shorten(line, 200)}; "
            "set source.table.delimiter"
        )
    [(delimiter, names)] = possible.items()
    for name in columns:
        require_column(name, names, file)
    return delimiter, names


def _blocks(chunks: Iterable[bytes], delimiter: str) -> Iterator[tuple[bytes, str]]:
    """Whole rows, and what is wrong with the row that comes next, if that is known."""
    # a quote opens a cell only where the cell begins; elsewhere it is a character like any other
    start = rb"[%b\r\n]" % re.escape(delimiter).encode()
    cells = rb'(?:[^"\r\n]++|(?:(?<=%b)|^)"[^"]*+(?:""[^"]*+)*+"|(?<!%b)(?<!^)")*+' % (start, start)
    rows, cut_row = re.compile(rb"(?:%b[\r\n]++)*+" % cells), re.compile(cells)
    rest, is_open = b"", False
    for chunk in chunks:
        data = rest + chunk
        end, is_open = _last_end(data, rows, cut_row)
        if data[:end].strip():
            yield data[:end], ""
        rest = data[end:]
        if len(rest) > stream.MAX_LINE:
            yield b"", f"no end within {stream.MAX_LINE} bytes; is a quote left open?"
    if is_open:
        yield b"", "a quote is left open to the end of the file; close it, or double it and enclose the cell in quotes"
    if rest.strip():
        yield rest, ""


def _last_end(data: bytes, rows: re.Pattern[bytes], cut_row: re.Pattern[bytes]) -> tuple[int, bool]:
    """Place behind the last line break that is not between quotes, 0 if there is none; and whether quotes are open."""
    whole = rows.match(data)
    end = whole.end() if whole else 0
    rest = cut_row.match(data, end)
    return end, rest is None or rest.end() < len(data)


class RowError(Exception):
    """A row with too many or too few cells; its number counts from 1 within what was parsed."""

    def __init__(self, number: int, cells: int):
        super().__init__(f"row {number}: {cells} cells")
        self.number, self.cells = number, cells


def parse(
    data: bytes, names: Sequence[str], delimiter: str, columns: Sequence[str] = (), quotes: bool = True
) -> pa.Table:
    """Columns (none named = all) of whole rows as text; with `quotes`, an empty cell is null.

    Raises:
        RowError: a row has too many or too few cells.
        pa.ArrowInvalid: anything else is wrong.
    """
    refused: list[pacsv.InvalidRow] = []

    def refuse(row: pacsv.InvalidRow) -> Literal["error"]:
        refused.append(row)
        return "error"

    # only an empty cell is missing: an id may well be "NA" or "null"
    as_text = pacsv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()),
        include_columns=list(columns),
        strings_can_be_null=quotes,
        null_values=[""],
    )
    # one thread, since only then pyarrow counts rows
    read = pacsv.ReadOptions(column_names=list(names), use_threads=False, block_size=max(len(data), 1))
    cells = pacsv.ParseOptions(
        delimiter=delimiter,
        quote_char='"' if quotes else False,
        newlines_in_values=quotes,
        invalid_row_handler=refuse,
    )
    source = cast(IO[bytes], pa.BufferReader(data))  # Arrow's stubs know no reader of its own here
    try:
        return pacsv.read_csv(source, read, cells, as_text)
    except pa.ArrowInvalid:
        if not refused:
            raise
        raise RowError(refused[0].number or 0, refused[0].actual_columns) from None
