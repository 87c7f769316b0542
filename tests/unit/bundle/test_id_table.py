from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from llm4msr import storage
from llm4msr.bundle import id_table
from llm4msr.bundle.id_table import IdTable
from llm4msr.errors import StorageError
from llm4msr.hashes import hash_ids, numbers_of

SCHEMA = id_table.table_schema({"code": pa.list_(pa.float16(), 3), "title": pa.large_string()}, {"coder": "c1"})
TWINS = "plumless", "buckeroo"
"""Two words with the same CRC-32."""
IDS = [*TWINS, "", "a", "ab", "b", "ä", "𝔘", "\uffff", "z" * 300, *(f"user-{i}" for i in range(200))]
STRANGERS = ["aa", "user-", "user-200", "zz", "\U0010ffff", "\0"]


def table(ids: list[str]) -> pa.Table:
    """Each id's code is its place in IDS, its title the id itself and a sign."""
    places = [3 * [IDS.index(raw)] for raw in ids]
    codes = pa.FixedSizeListArray.from_arrays(pa.array(np.array(places, np.float16).reshape(-1)), 3)
    return pa.table({"id": pa.array(ids, pa.string()), "code": codes, "title": [f"{raw}!" for raw in ids]})


def write(folder: Path, tables: list[pa.Table]) -> IdTable:
    id_table.write(storage.path(folder / "t.arrow"), tables, SCHEMA)
    return IdTable(folder / "t.arrow")


def partitions(total: int) -> list[pa.Table]:
    number_N = numbers_of(hash_ids(IDS), total)
    return [table([raw for raw, at in zip(IDS, number_N, strict=True) if at == number]) for number in range(total)]


@pytest.mark.parametrize("total", [1, 2, 8, 1024])
def test_each_id_is_found_in_its_partition_and_no_other(tmp_path: Path, total: int) -> None:
    opened = write(tmp_path, partitions(total))
    assert len(opened) == len(IDS)
    assert opened.metadata == {"coder": "c1"}
    for number, raw in enumerate(IDS):
        place = opened.find(raw)
        assert place is not None
        assert opened.numbers("code", place).tolist() == [number] * 3
        partition, row = place
        assert partition.texts["title"][row].decode() == f"{raw}!"
    assert [opened.find(raw) for raw in STRANGERS] == [None] * len(STRANGERS)


def test_many_ids_are_found_as_each_alone(tmp_path: Path) -> None:
    (partition,) = write(tmp_path, [table(IDS)]).partitions
    mixed = [*STRANGERS, *IDS, *STRANGERS, *IDS[::-1]]
    np.random.default_rng(0).shuffle(mixed)
    row_B = partition.find_all(mixed)
    assert row_B.tolist() == [partition.find(raw) for raw in mixed]
    assert [-1 if row < 0 else int(partition.numbers["code"][row, 0]) for row in row_B] == [
        IDS.index(raw) if raw in IDS else -1 for raw in mixed
    ]
    assert partition.find_all([]).tolist() == []


@pytest.mark.parametrize("known", TWINS)
def test_an_id_with_the_hash_of_another_is_not_taken_for_it(tmp_path: Path, known: str) -> None:
    (partition,) = write(tmp_path, [table([known, "a"])]).partitions
    assert (partition.find_all([*TWINS]) >= 0).tolist() == [twin == known for twin in TWINS]
    assert [partition.find(twin) >= 0 for twin in TWINS] == [twin == known for twin in TWINS]


@pytest.mark.parametrize("tables", [[], [table([])], [table([]), table([])]])
def test_an_empty_table_knows_nobody(tmp_path: Path, tables: list[pa.Table]) -> None:
    empty = write(tmp_path, tables)
    assert (len(empty), empty.find("a")) == (0, None)
    assert [partition.find_all(["a", "b"]).tolist() for partition in empty.partitions] == [[-1, -1]] * len(tables)


@pytest.mark.parametrize("ids", [["a", "b", "a"], [*TWINS, TWINS[0]]])
def test_an_id_that_stands_twice_is_refused_and_nothing_is_left(tmp_path: Path, ids: list[str]) -> None:
    with pytest.raises(StorageError, match=rf"t\.arrow: id '{ids[-1]}' stands twice; nothing written"):
        write(tmp_path, [table(ids)])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("tables", [partitions(2)[::-1], partitions(4)[:3], [*partitions(2), table([]), table([])]])
def test_tables_that_are_not_the_partitions_of_their_ids_are_refused(tmp_path: Path, tables: list[pa.Table]) -> None:
    with pytest.raises(StorageError, match=rf"the {len(tables)} tables are not the partitions of their ids"):
        write(tmp_path, tables)
    assert list(tmp_path.iterdir()) == []


def test_a_table_that_is_cut_is_refused(tmp_path: Path) -> None:
    write(tmp_path, partitions(2))
    whole = (tmp_path / "t.arrow").read_bytes()
    for length in range(0, len(whole), 29):
        (tmp_path / "cut.arrow").write_bytes(whole[:length])
        with pytest.raises(StorageError, match=r"cut\.arrow: not a table of ids"):
            IdTable(tmp_path / "cut.arrow")


KEYS: dict[str, Any] = {"hash": pa.array([1], pa.uint32()), "id": pa.array(["a"], pa.large_string())}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"name": ["a"]}, "the first columns are not 'hash' and 'id'"),
        (KEYS | {"hash": [1]}, "the first columns are not 'hash' and 'id'"),
        (KEYS | {"id": ["a"]}, "the first columns are not 'hash' and 'id'"),
        (KEYS | {"code": ["a"]}, "column 'code' has neither text nor numbers"),
        (KEYS | {"code": pa.array([[1]], pa.list_(pa.int32()))}, "column 'code' has neither text nor numbers"),
        (KEYS | {"code": pa.array([[1.0]], pa.list_(pa.float64(), 1))}, "column 'code' has neither text nor numbers"),
        (KEYS | {"id": pa.array([None], pa.large_string())}, "a value is missing"),
        (KEYS | {"code": pa.array([None], pa.list_(pa.int32(), 1))}, "a value is missing"),
    ],
)
def test_what_is_no_table_of_ids_is_refused(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    rows = pa.table(columns)
    with pa.ipc.new_file(str(tmp_path / "t.arrow"), rows.schema) as writer:
        writer.write_table(rows)
    with pytest.raises(StorageError, match=rf"t\.arrow: not a table of ids \({message}"):
        IdTable(tmp_path / "t.arrow")


def test_places_outside_of_the_file_and_other_numbers_of_partitions_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "t.arrow"
    for content in (b"", b"ARROW1\x00\x00 or not"):
        file.write_bytes(content)
        with pytest.raises(StorageError, match=r"t\.arrow: not a table of ids"):
            IdTable(file)
    batch = pa.record_batch(KEYS)
    with pa.ipc.new_file(str(file), batch.schema) as writer:
        for _ in range(3):
            writer.write_batch(batch)
    with pytest.raises(StorageError, match=r"t\.arrow: not a table of ids \(3 partitions"):
        IdTable(file)
    places = pa.py_buffer(np.array([0, 1 << 40, 1, 2], np.int64))  # the first and the last one are within the text
    ids = pa.LargeStringArray.from_buffers(3, places, pa.py_buffer(b"ab"))
    batch = pa.record_batch({"hash": pa.array([1, 2, 3], pa.uint32()), "id": ids})
    with pa.ipc.new_file(str(file), batch.schema) as writer:
        writer.write_batch(batch)
    with pytest.raises(StorageError, match=r"t\.arrow: not a table of ids"):
        IdTable(file)
