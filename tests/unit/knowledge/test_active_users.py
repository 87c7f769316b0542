"""Users who get knowledge: the most active ones of all partitions."""

from pathlib import Path

import numpy as np
import pytest

from llm4msr.data import partitions
from llm4msr.knowledge.active_users import most_active, users_to_read
from tests.support.partitioned import in_partitions
from tests.support.versions import with_extract
from tests.unit.conftest import World

ACTIVITY = [{9: 1, 5: 2, 1: 4}, {}, {7: 3, 5: 1}, {5: 1, 2: 1}]
"""Of each partition, how many users have so many interactions: thirteen users in all."""


@pytest.mark.parametrize(
    ("most", "counts"),
    [
        (1, [1, 0, 0, 0]),
        (3, [1, 0, 2, 0]),
        (4, [1, 0, 3, 0]),
        (5, [2, 0, 3, 0]),
        (7, [3, 0, 4, 0]),
        (8, [3, 0, 4, 1]),
        (9, [3, 0, 4, 2]),
        (10, [4, 0, 4, 2]),
        (13, [7, 0, 4, 2]),
    ],
)
def test_the_most_active_of_all_come_first_and_among_equals_the_first_partitions(most: int, counts: list[int]):
    assert most_active(ACTIVITY, most) == counts


@pytest.mark.parametrize("max_users", [0, 1, 17, 39, 40, 99])
def test_one_partition_gives_its_first_users(world: World, max_users: int):
    assert users_to_read(with_extract(world.config, max_users=max_users), world.data) == [min(max_users or 40, 40)]


def test_all_users_are_read_without_a_limit(world: World, tmp_path: Path):
    config, data = in_partitions(world.config, world.data, 4, tmp_path)
    rows = np.diff(partitions.offsets(data, "histories")).tolist()
    assert users_to_read(config, data) == users_to_read(with_extract(config, max_users=40), data) == rows
