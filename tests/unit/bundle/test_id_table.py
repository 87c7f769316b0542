from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from llm4msr import storage
from llm4msr.bundle import id_table
from llm4msr.bundle.id_table import IdTable
from llm4msr.errors import StorageError

SCHEMA = id_table.table_schema({"code": pa.list_(pa.float16(), 3)}, {"coder": "c1"})


def table(ids: list[str], start: int = 0) -> pa.Table:
    numbers = np.arange(start, start + 3 * len(ids), dtype=np.float16)
    return pa.table({"id": pa.array(ids), "code": pa.FixedSizeListArray.from_arrays(pa.array(numbers), 3)})


def write(folder: Path, tables: list[pa.Table], monkeypatch: pytest.MonkeyPatch, batch: int = 4) -> IdTable:
    monkeypatch.setattr(id_table, "ROWS_PER_BATCH", batch)
    id_table.write(storage.path(folder / "t.arrow"), tables, SCHEMA)
    return IdTable(folder / "t.arrow")


@pytest.mark.parametrize("batch", [1, 4, 7, 100])
def test_each_id_is_found_in_its_batch_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    ids = sorted(["", "a", "ab", "b", "ä", "𝔘", "\uffff", "z" * 300, *(f"user-{i}" for i in range(40))])
    parts = [table(ids[:5]), table([]), table(ids[5:6], 15), table(ids[6:], 18)]
    opened = write(tmp_path, parts, monkeypatch, batch)
    assert len(opened) == len(ids)
    assert opened.metadata == {"coder": "c1"}
    for row, raw in enumerate(ids):
        place = opened.find(raw)
        assert place is not None
        assert opened.numbers("code", place).tolist() == [3 * row, 3 * row + 1, 3 * row + 2]
    assert [opened.find(raw) for raw in ("aa", "user-", "user-400", "zz", "\U0010ffff")] == [None] * 5


def test_an_empty_table_knows_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = write(tmp_path, [], monkeypatch)
    assert (len(empty), empty.find("a")) == (0, None)


@pytest.mark.parametrize("ids", [[["b", "a"]], [["a"], ["a"]], [["a", "c"], ["b"]], [list("abcd"), ["d"]]])
def test_ids_that_do_not_ascend_are_refused_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ids: list[list[str]]
) -> None:
    with pytest.raises(StorageError, match=r"t\.arrow: ids do not ascend, or one stands twice"):
        write(tmp_path, [table(part) for part in ids], monkeypatch)
    assert list(tmp_path.iterdir()) == []


def test_a_table_that_is_cut_or_has_other_columns_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, [table([f"user-{i:03d}" for i in range(40)])], monkeypatch)
    file, whole = tmp_path / "t.arrow", (tmp_path / "t.arrow").read_bytes()
    for length in range(0, len(whole), 7):
        (tmp_path / "cut.arrow").write_bytes(whole[:length])
        with pytest.raises(StorageError, match=r"cut\.arrow: not a table of ids"):
            IdTable(tmp_path / "cut.arrow")
    for kind in (pa.string(), pa.list_(pa.int32()), pa.list_(pa.float64(), 3)):
        with pa.ipc.new_file(str(file), pa.schema([("id", pa.large_string()), ("code", kind)])) as writer:
            writer.write_table(pa.table({"id": pa.array([], pa.large_string()), "code": pa.array([], kind)}))
        with pytest.raises(StorageError, match="column 'code' has no fixed number of numbers"):
            IdTable(file)


def test_what_is_no_table_of_ids_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "t.arrow"
    for content in (b"", b"ARROW1\x00\x00 or not"):
        file.write_bytes(content)
        with pytest.raises(StorageError, match=r"t\.arrow: not a table of ids"):
            IdTable(file)
    with pa.ipc.new_file(str(file), pa.schema([("name", pa.string())])) as writer:
        writer.write_table(pa.table({"name": ["a"]}))
    with pytest.raises(StorageError, match="the first column is not 'id'"):
        IdTable(file)
