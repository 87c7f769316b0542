"""Pieces of an index: hashes, buckets, keys, states and shards."""

import numpy as np
import pyarrow as pa
import pytest

from llm4msr.data import partitions
from llm4msr.knowledge import buckets, index
from llm4msr.knowledge.buckets import Bucket, ByBucket
from llm4msr.knowledge.index import State
from llm4msr.schema import INDEX


def test_buckets_are_ranges_of_hashes():
    some = partitions.hash_ids([f"u{i}" for i in range(1000)])
    assert len(set(some.tolist())) == 1000
    assert set(partitions.numbers_of(some, 1)) == {0}
    eight, two = partitions.numbers_of(some, 8), partitions.numbers_of(some, 2)
    assert set(eight) == set(range(8))
    np.testing.assert_array_equal(eight // 4, two)
    assert (np.diff(eight[np.argsort(some)]) >= 0).all()


@pytest.mark.parametrize(
    ("rows", "parts", "count"),
    [
        (0, 1, 1),
        (1, 1, 1),
        (1 << 16, 1, 1),
        ((1 << 16) + 1, 1, 2),
        (10**6, 1, 16),
        (10**9, 1, 1024),
        (100, 8, 8),
        (10**6, 4, 16),
        (10**9, 2048, 16384),
    ],
)
def test_buckets_are_bounded_in_rows_and_lie_within_partitions(rows: int, parts: int, count: int):
    assert buckets.bucket_count(rows, parts) == count


def test_buckets_that_overlap_are_those_that_can_hold_the_same_hash():
    hashes = partitions.hash_ids([f"u{i}" for i in range(1000)])
    for a in range(4):
        for total in (1, 2, 4, 8):
            mine = Bucket("users", a, 4)
            homes = set(partitions.numbers_of(hashes[mine.holds(hashes)], total).tolist())
            assert {other.number for other in mine.overlapping(total)} == homes
            assert all(other.kind == "users" and other.total == total for other in mine.overlapping(total))


def test_things_are_found_by_a_bucket_whatever_the_number_of_buckets():
    homes = [Bucket("users", n, total) for total in (1, 4, 8) for n in range(total)] + [Bucket("items", 0, 1)]
    found = ByBucket((home, home.file) for home in homes).overlapping(Bucket("users", 1, 2))
    wanted = [(0, 1), (2, 4), (3, 4), (4, 8), (5, 8), (6, 8), (7, 8)]
    assert found == [Bucket("users", *home).file for home in wanted]


def test_a_bucket_is_known_by_its_name_and_by_that_of_its_shards():
    bucket = Bucket("users", 3, 8)
    assert Bucket.parse(bucket.index_file) == bucket
    for other in (
        "vectors/users-0.parquet",
        "index/users-00008-of-00008.parquet",
        "index/users-00000-of-00000.parquet",
    ):
        assert Bucket.parse(other) is None
    assert buckets.bucket_of_shard("abc/vectors/users-00003-of-00008-0123456789ab.parquet") == bucket
    assert buckets.bucket_of_shard("abc/vectors/users-000000256.parquet") == Bucket("users", 0, 1)


def test_keys_tell_rows_apart():
    plain = index.row_keys(["a"], ["f"], "")
    assert plain == index.row_keys(["a"], ["f"], "")
    others = [index.row_keys(["b"], ["f"], ""), index.row_keys(["a"], ["g"], ""), index.row_keys(["a"], ["f"], "x")]
    others += [index.row_keys(["af"], [""], ""), index.row_keys(["a"], ["fx"], "")]
    assert all(not plain.equals(other) for other in others)


def test_states_follow_errors():
    assert index.states(["", index.NOTHING_LIKED, "Boom"]).to_pylist() == [State.GOOD, State.EMPTY, State.FAILED]


def test_rows_come_shard_by_shard():
    rows = pa.table({"shard": ["a", "a", "b", "c", "c"], "row": [0, 1, 0, 4, 9]})
    found = {shard: part["row"].to_pylist() for shard, part in index.split_by_shard(rows)}
    assert found == {"a": [0, 1], "b": [0], "c": [4, 9]}
    assert dict(index.split_by_shard(INDEX.empty_table())) == {}
