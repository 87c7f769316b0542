"""Prepared data in partitions: which one a user is in, and numbers that count over all of them."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from llm4msr import storage
from llm4msr.data import partitions
from llm4msr.storage import StageOutput, StageResult


def two_partitions(folder: Path) -> StageOutput:
    tables = {
        "users": [{"user": [0, 1, 2]}, {"user": [0, 1]}],
        "seen": [{"user": [1, 1, 2, 2]}, {"user": [0]}],
        "train": [{"user": [2, 1], "seen": [3, 0]}, {"user": [1, 0], "seen": [0, 1]}],
    }

    def build(at: Path) -> StageResult:
        names = {
            partitions.file_name(table, number): pa.table(columns)
            for table, parts in tables.items()
            for number, columns in enumerate(parts)
        }
        return StageResult(files={name: storage.write_table(at / name, rows) for name, rows in names.items()}, rows=0)

    return storage.publish(storage.path(folder), "prepare", 1, {}, {}, build)


def test_partitions_of_twice_the_number_lie_within_those_of_the_number():
    hash_N = partitions.hash_ids([f"u{i}" for i in range(1000)])
    eight, two = partitions.numbers_of(hash_N, 8), partitions.numbers_of(hash_N, 2)
    assert set(eight) == set(range(8))
    np.testing.assert_array_equal(eight // 4, two)


def test_numbers_count_over_all_partitions(tmp_path: Path):
    prepared = two_partitions(tmp_path / "out")
    assert partitions.count(prepared) == 2
    assert partitions.offsets(prepared, "users").tolist() == [0, 3, 5]
    assert partitions.rows(prepared, "train") == 4
    users = pa.concat_tables(partitions.read_each(prepared, "users"))
    assert users["user"].to_pylist() == [0, 1, 2, 3, 4]
    seen = pa.concat_tables(partitions.read_each(prepared, "seen"))
    assert seen["user"].to_pylist() == [1, 1, 2, 2, 3]


def test_a_row_that_knowledge_has_not_seen_stays_so_in_every_partition(tmp_path: Path):
    train = pa.concat_tables(partitions.read_each(two_partitions(tmp_path / "out"), "train"))
    assert train.to_pydict() == {"user": [2, 1, 4, 3], "seen": [3, 0, 0, 5]}


def named_partitions(folder: Path) -> tuple[StageOutput, list[str]]:
    """Users in four partitions by the hash of their ids, and the ids by number."""
    ids = [f"u{i}" for i in range(30)]
    home = partitions.numbers_of(partitions.hash_ids(ids), 4)
    names = [["", *np.array(ids)[home == 0]], *(list(np.array(ids)[home == number]) for number in (1, 2, 3))]

    def build(at: Path) -> StageResult:
        files: dict[str, int | storage.FileRecord] = {}
        for number, part in enumerate(names):
            table = pa.table({"user": np.arange(len(part)), "user_id": pa.array(part, pa.string())})
            file = partitions.file_name("users", number)
            files[file] = storage.write_table(at / file, table)
        return StageResult(files=files, rows=0)

    prepared = storage.publish(storage.path(folder), "prepare", 1, {}, {}, build)
    return prepared, [raw_id for part in names for raw_id in part]


def test_users_are_found_by_id_and_ids_by_number(tmp_path: Path):
    prepared, ids = named_partitions(tmp_path / "out")
    numbers = np.array([30, 0, 7, 7, 19])
    assert partitions.raw_ids(prepared, numbers) == [ids[number] for number in numbers]
    assert partitions.raw_ids(prepared, numbers[:0]) == []
    found = partitions.find_users(prepared, ["u3", "u29", "nobody", ""])
    assert found == {"u3": ids.index("u3"), "u29": ids.index("u29")}
    assert partitions.find_users(prepared, []) == {}


def test_an_id_is_sought_in_its_own_partition_alone(tmp_path: Path):
    prepared, ids = named_partitions(tmp_path / "out")
    number = ids.index("u5")
    (home,) = partitions.homes(prepared, np.array([number])).tolist()
    for other in {0, 1, 2, 3} - {home}:
        (prepared.folder / partitions.file_name("users", other)).unlink()
    assert partitions.find_users(prepared, ["u5"]) == {"u5": number}
    assert partitions.raw_ids(prepared, np.array([number])) == ["u5"]


def test_the_unknown_user_has_an_empty_id_in_every_partition():
    users = pa.chunked_array([["u1", "u2"]])
    assert partitions.local_ids(users, pa.chunked_array([[1, -7, 0]])).to_pylist() == ["u2", "", "u1"]
    assert partitions.local_ids(users.slice(0, 0), pa.chunked_array([[-7]])).to_pylist() == [""]
