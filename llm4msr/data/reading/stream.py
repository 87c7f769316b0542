"""Files larger than memory: read block by block; the wanted columns are written to a temporary file and mapped.

Memory holds a few blocks of the file. The tables lie in temporary files, so `TMPDIR` needs room for the wanted
columns, and they last as long as the tables that map them.
"""

import itertools
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
from upath import UPath

from llm4msr import storage
from llm4msr.errors import DataError, StorageError
from llm4msr.storage.s3 import FAULTS

MAX_LINE = 10_000_000
"""Bytes of a line (of a row of a CSV) that may stand open at the end of a block."""
MIN_UNPACKED = 1 << 30
"""Bytes that a packed file may always unpack to, however small it is."""

BLOCK = 1 << 22
"""Bytes of a file that are read at once."""
_ROWS = 1 << 15
_FAULTS_OF_READING: tuple[type[Exception], ...] = (ValueError, *FAULTS)
"""A ValueError says that a server sends no parts of files."""


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
    names_there = names_in(folder)
    for name in names:
        if name in names_there:
            return folder / name
    raise StorageError(f"{folder}: no {' or '.join(names)}; {describe(names_there)}")


def describe(names: list[str]) -> str:
    """What a folder holds, as an error message says it."""
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return f"it holds {', '.join(names[:20]) or 'nothing'}{more}"


def lines(file: UPath) -> Iterator[tuple[int, bytes]]:
    """Each line of a plain or .gz file that is not blank, and its number counted from 1.

    Raises:
        DataError: a damaged file, one that unpacks to too much, or a line that does not end.
        StorageError: the file cannot be opened.
    """
    number, rest = 1, b""
    for chunk in unpacked(file):
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            if line and not line.isspace():
                yield number, line
            number += 1
        if len(rest) > MAX_LINE:
            raise DataError(f"{file}: line {number}: no end within {MAX_LINE} bytes; is this the right file?")
    if rest and not rest.isspace():
        yield number, rest


def unpacked(file: UPath) -> Iterator[bytes]:
    """The content of a plain or .gz file, piece by piece.

    Raises:
        DataError: a damaged file, or one that unpacks to too much.
        StorageError: the file cannot be opened.
    """
    packed = file.suffix == ".gz"
    filesystem, inner = storage.arrow_filesystem(file)
    try:
        bound = Bound(file, file.stat().st_size) if packed else None
        with filesystem.open_input_stream(inner, compression="gzip" if packed else None) as source:
            while data := source.read(BLOCK):
                if bound:
                    bound.add(len(data))
                yield data
    except (FileNotFoundError, PermissionError) as error:
        raise StorageError(f"{file}: cannot be read ({type(error).__name__}); check source.path and access") from None
    except _FAULTS_OF_READING as error:
        raise DataError(f"{file}: cannot be read to its end ({error}); fetch it again") from None


def packing_ratio(file: UPath) -> float:
    """How many times its size the beginning of a .gz file unpacks to; 1 for any other."""
    if file.suffix != ".gz":
        return 1.0
    with file.open("rb") as source:
        packed = source.read(BLOCK >> 2)
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16)
    size = len(unpacker.decompress(packed, 100 * BLOCK))
    return max(1.0, size / max(1, len(packed) - len(unpacker.unconsumed_tail) - len(unpacker.unused_data)))


class Bound:
    """A limit on what a packed file may unpack to: 200 times its own size, or 1 GiB if that is more."""

    def __init__(self, file: UPath | str, packed: int):
        self.file, self.left = file, max(200 * packed, MIN_UNPACKED)
        self.limit = self.left

    def add(self, size: int) -> None:
        """Count `size` more unpacked bytes.

        Raises:
            DataError: the file has unpacked to too many.
        """
        self.left -= size
        if self.left < 0:
            raise DataError(
                f"{self.file}: unpacks to more than {self.limit} bytes, which no table does; "
                "if it is right, unpack it yourself and give the plain file"
            )


def spool(layout: pa.Schema, record_batches: Iterable[pa.RecordBatch]) -> pa.Table:
    """The batches as a table that is mapped from a temporary file, which is gone once the table is.

    Raises:
        StorageError: the temporary file cannot be written.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="llm4msr-") as folder:
            file = str(Path(folder) / "table.arrow")
            with pa.OSFile(file, "wb") as sink, pa.ipc.new_file(sink, layout) as writer:
                for batch in record_batches:
                    writer.write_batch(batch)
            # the map keeps the file's data although its name goes with the folder
            return pa.ipc.open_file(pa.memory_map(file)).read_all()
    except OSError as error:
        raise StorageError(f"temporary file: cannot be written ({error}); set TMPDIR to a folder with room") from None


def batches(layout: pa.Schema, rows: Iterable[tuple[object, ...]]) -> Iterator[pa.RecordBatch]:
    """Rows of plain values as batches of bounded length."""
    rest = iter(rows)
    while chunk := list(itertools.islice(rest, _ROWS)):
        columns = zip(layout, zip(*chunk, strict=True), strict=True)
        yield pa.record_batch([pa.array(values, field.type) for field, values in columns], schema=layout)
