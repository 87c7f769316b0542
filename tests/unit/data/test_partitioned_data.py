"""The helper that lays out prepared data in several partitions says the same rows."""

from pathlib import Path

import numpy as np
import pytest

from llm4msr.data import partitions
from tests.support.partitioned import in_partitions, rows_by_raw_id
from tests.unit.conftest import World


@pytest.mark.parametrize("total", [1, 2, 8])
def test_partitions_hold_the_rows_of_one_renumbered(world: World, tmp_path: Path, total: int):
    _, data = in_partitions(world.config, world.data, total, tmp_path)
    assert partitions.count(data) == total
    for name in partitions.PARTITIONED:
        assert rows_by_raw_id(data, name).equals(rows_by_raw_id(world.data, name)), name
    for number in range(total):
        users = data.table(partitions.file_name("users", number))
        assert users["user"].to_pylist() == list(range(len(users)))
        hashes = partitions.hash_ids(users["user_id"].to_pylist()[number == 0 :])
        assert set(partitions.numbers_of(hashes, total)) <= {number}


def test_a_seen_number_leads_to_the_same_row(world: World, tmp_path: Path):
    _, data = in_partitions(world.config, world.data, 4, tmp_path)
    for name in ("train", "valid", "test"):
        for number in range(4):
            rows, seen = partitions.read(data, name, number), partitions.read(data, "seen", number)
            start = partitions.offsets(data, "seen")[number]
            place_R = rows["seen"].to_numpy()
            known_R = place_R > 0
            owners = seen["user"].to_numpy()[place_R[known_R] - 1 - start]
            np.testing.assert_array_equal(owners, rows["user"].to_numpy()[known_R])
