"""Pieces of an index: hashes, buckets, keys, states and shards."""

import numpy as np
import pyarrow as pa
import pytest

from llm4msr.data import partitions
from llm4msr.knowledge import index
from llm4msr.knowledge.index import Bucket, State
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
    ("rows", "buckets"), [(0, 1), (1, 1), (1 << 16, 1), ((1 << 16) + 1, 2), (10**6, 16), (10**9, 1024)]
)
def test_number_of_buckets(rows: int, buckets: int):
    assert index.bucket_count(rows) == buckets


def test_overlap_of_buckets_is_that_of_their_ranges():
    for a in range(4):
        for b in range(8):
            assert Bucket("users", a, 4).overlaps(Bucket("users", b, 8)) == (b // 2 == a)
            assert Bucket("users", b, 8).overlaps(Bucket("users", a, 4)) == (b // 2 == a)
    assert not Bucket("users", 0, 1).overlaps(Bucket("items", 0, 1))
    assert Bucket.parse(Bucket("users", 3, 8).index_file) == Bucket("users", 3, 8)
    assert Bucket.parse("vectors/users-0.parquet") is None


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
