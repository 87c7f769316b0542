"""Files that name extension types: refused before Arrow hands them to whoever registered such a type."""

import json
import string
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm4msr import storage
from llm4msr.bundle.id_table import IdTable
from llm4msr.data.reading import pieces
from llm4msr.data.reading.files import SourceFile
from llm4msr.data.reading.pieces import Piece
from llm4msr.errors import DataError, StorageError
from llm4msr.storage import arrow_files

READ: list[bytes] = []
"""What Arrow handed to the type below."""


class Recorder(pa.ExtensionType):
    """Stands for a type that unpickles what a file says of it."""

    def __init__(self) -> None:
        super().__init__(pa.binary(), "llm4msr.tests.recorder")

    def __arrow_ext_serialize__(self) -> bytes:
        return b"payload"

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: pa.DataType, serialized: bytes) -> "Recorder":
        READ.append(serialized)
        return cls()


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    pa.register_extension_type(Recorder())
    yield
    pa.unregister_extension_type("llm4msr.tests.recorder")


def column(kind: str) -> pa.Array:
    plain = pa.ExtensionArray.from_storage(Recorder(), pa.array([b"x", b"y"], pa.binary()))
    if kind == "list":
        return pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), plain)
    return pa.StructArray.from_arrays([plain], ["inner"]) if kind == "struct" else plain


def refused(source: pa.NativeFile) -> None:
    READ.clear()
    with pytest.raises(pa.ArrowInvalid, match="a column has an Arrow extension type"):
        arrow_files.open_parquet(source)
    assert READ == []


@pytest.mark.parametrize("kind", ["plain", "list", "struct"])
@pytest.mark.parametrize("length", range(1, 14))  # names of all lengths move the mark through the base64 groups
def test_a_column_of_an_extension_type_is_refused_before_the_type_reads_anything(kind: str, length: int) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({string.ascii_lowercase[:length]: column(kind), "n": [1, 2]}), sink)
    READ.clear()
    pq.ParquetFile(pa.BufferReader(sink.getvalue()))
    assert READ  # as it is without us
    refused(pa.BufferReader(sink.getvalue()))


def test_a_footer_longer_than_the_first_read_is_looked_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow_files, "_FOOTER_READ", 16)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"a": column("plain")}), sink)
    refused(pa.BufferReader(sink.getvalue()))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"a": [1, 2]}), sink)
    assert arrow_files.open_parquet(pa.BufferReader(sink.getvalue())).read()["a"].to_pylist() == [1, 2]


def test_types_that_parquet_itself_annotates_come_as_what_they_are_stored_as() -> None:
    sink = pa.BufferOutputStream()
    texts = pa.ExtensionArray.from_storage(pa.json_(), pa.array(["{}"]))
    pq.write_table(pa.table({"a": texts}), sink, store_schema=False)  # as writers other than Arrow do
    native = sink.getvalue()
    assert pq.ParquetFile(pa.BufferReader(native)).schema_arrow.types == [pa.json_()]
    assert arrow_files.open_parquet(pa.BufferReader(native)).schema_arrow.types == [pa.string()]


@pytest.mark.parametrize(
    ("end", "problem"),
    [
        (b"", "the end of a Parquet file is missing"),
        (b"PAR1", "the end of a Parquet file is missing|longer than the file"),
        (b"PAR1" + b"\0" * 20 + b"\xff\xff\xff\xffPAR1", "the footer is longer than the file"),
        (b"PAR1" + b"\0" * 20 + b"\x04\0\0\0PARE", "the footer is encrypted"),
    ],
)
def test_what_has_no_readable_end_is_refused(end: bytes, problem: str) -> None:
    with pytest.raises(pa.ArrowInvalid, match=problem):
        arrow_files.open_parquet(pa.BufferReader(end))


def test_every_reader_of_ours_says_so_with_the_file(tmp_path: Path) -> None:
    ours, theirs = storage.path(tmp_path / "ours.parquet"), storage.path(tmp_path / "theirs.parquet")
    storage.write_table(ours, pa.table({"id": ["a", "b"], "x": column("plain")}))
    pq.write_table(pa.table({"id": ["a", "b"], "x": column("plain")}), str(theirs))
    READ.clear()
    with pytest.raises(StorageError, match=r"ours\.parquet: .*a column has an Arrow extension type"):
        storage.read_table(ours, ["id"])
    with pytest.raises(StorageError, match=r"ours\.parquet: .*a column has an Arrow extension type"):
        storage.record_file(ours)
    with pytest.raises(DataError, match=r"theirs\.parquet: .*a column has an Arrow extension type"):
        next(pieces.read_rows(Piece(SourceFile(theirs, theirs.name, 1), 0, 1), ["id"]))
    assert READ == []


def test_a_table_of_ids_with_an_extension_type_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "t.arrow"
    rows = pa.table({"id": pa.array(["a", "b"], pa.large_string()), "x": column("plain")})
    with pa.ipc.new_file(str(file), rows.schema) as writer:
        writer.write_table(rows)
    READ.clear()
    with pytest.raises(StorageError, match=r"t\.arrow: not a table of ids \(a column has an Arrow extension type"):
        IdTable(file)
    assert READ == []
    for length in (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f"):
        file.write_bytes(file.read_bytes()[:-10] + length + b"ARROW1")
        with pytest.raises(StorageError, match=r"t\.arrow: not a table of ids"):
            IdTable(file)


def test_plain_tables_of_pandas_are_read(tmp_path: Path) -> None:
    rows = pa.table({"a": [1], "b": [["x"]]}).replace_schema_metadata({"pandas": json.dumps({"columns": []})})
    pq.write_table(rows, tmp_path / "t.parquet")
    assert storage.read_table(storage.path(tmp_path / "t.parquet")).equals(rows)
