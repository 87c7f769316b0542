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
