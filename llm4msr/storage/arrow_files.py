"""Parquet and Arrow files, opened only if their raw schema has nothing but plain types.

A file may name Arrow extension types. Opening it passes what the file says about them to whoever registered such a
type in this process, and Ray registers types whose values are pickled Python objects. So the bytes of the schema are
searched before Arrow reads it.
"""

import base64
from collections.abc import Callable
from typing import cast

import pyarrow as pa
import pyarrow.parquet as pq

_MARK = b"ARROW:extension"
"""How the key begins under which a field names its extension type."""
_MARKS_IN_PARQUET = (
    _MARK,
    # a Parquet file holds its Arrow schema in base64, where the mark looks different at each of three offsets
    *(base64.b64encode(bytes(n) + _MARK)[(0, 2, 3)[n] : (n + len(_MARK)) // 3 * 4] for n in range(3)),
)
_FOOTER_READ = 1 << 16
"""Bytes that are read at once from the end of a Parquet file; a footer is seldom longer."""


def open_parquet(source: pa.NativeFile, pre_buffer: bool = False) -> pq.ParquetFile:
    """Open a Parquet file (or a `pa.BufferReader` of one) for reading; its pages are checked as they are read.

    With `pre_buffer` all columns of a read come in as few requests as can be, and are kept until the next read.

    Raises:
        pa.ArrowInvalid: it is damaged, encrypted, or has a column of an extension type.
    """
    size = source.size()
    end = _read(source, max(0, size - _FOOTER_READ), size)
    if end[-4:] != b"PAR1":
        encrypted = end[-4:] == b"PARE"
        raise pa.ArrowInvalid("the footer is encrypted" if encrypted else "the end of a Parquet file is missing")
    length = int.from_bytes(end[-8:-4], "little")
    if length > size - 12:
        raise pa.ArrowInvalid("the footer is longer than the file")
    footer = end[-8 - length : -8] if length <= len(end) - 8 else _read(source, size - 8 - length, size - 8)
    _refuse_extensions(footer, _MARKS_IN_PARQUET)
    source.seek(0)
    open_file = cast("Callable[..., pq.ParquetFile]", pq.ParquetFile)  # pyarrow's stubs lack the last option
    return open_file(source, pre_buffer=pre_buffer, page_checksum_verification=True, arrow_extensions_enabled=False)


def open_arrow(source: pa.NativeFile) -> pa.ipc.RecordBatchFileReader:
    """Open an Arrow IPC file for reading.

    Raises:
        pa.ArrowInvalid: it is damaged, or has a column of an extension type.
    """
    size = source.size()
    end = _read(source, max(0, size - 10), size)
    length = int.from_bytes(end[:4], "little", signed=True)
    if end[4:] != b"ARROW1" or not 0 < length <= size - 18:
        raise pa.ArrowInvalid("the end of an Arrow file is missing")
    _refuse_extensions(_read(source, size - 10 - length, size - 10), (_MARK,))
    source.seek(0)
    return pa.ipc.open_file(source)


def _refuse_extensions(schema: bytes, marks: tuple[bytes, ...]) -> None:
    if any(mark in schema for mark in marks):
        raise pa.ArrowInvalid(
            "a column has an Arrow extension type, such as pickled objects, tensors or UUIDs; only plain types are "
            "read: write it again with that column as text, numbers or lists of these"
        )


def _read(source: pa.NativeFile, start: int, end: int) -> bytes:
    source.seek(start)
    data: bytes = source.read(end - start)
    return data
