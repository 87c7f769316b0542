"""Buckets: ranges of hashes of raw ids, the unit in which versions of the knowledge are indexed and compared."""

import math
import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Generic, NamedTuple, TypeVar

from llm4msr.arrays import Bools, Hashes
from llm4msr.data.partitions import numbers_of

BUCKET_ROWS = 1 << 16
MOST_BUCKETS = 1 << 10
"""A bucket has about this many rows at most, until a partition has this many buckets; beyond that they grow."""
OF_USERS = ("users", "snapshots")
"""Kinds of rows that lie in the partitions of users."""

T = TypeVar("T")


class Bucket(NamedTuple):
    """A range of hashes of raw ids of one kind (`users`, `scenarios`, `items` ...): one of `total` equal ranges."""

    kind: str
    number: int
    total: int

    @property
    def file(self) -> str:
        """Name of its files, in the index and in the plan of an unfinished run."""
        return f"{self.kind}-{self.number:05d}-of-{self.total:05d}.parquet"

    @property
    def index_file(self) -> str:
        """Its index file, relative to the version."""
        return f"index/{self.file}"

    @classmethod
    def parse(cls, name: str) -> "Bucket | None":
        """From the name of an index file relative to the version; None for other files."""
        match = re.fullmatch(r"index/(\w+)-(\d+)-of-(\d+)\.parquet", name)
        return cls(match[1], int(match[2]), int(match[3])) if match and int(match[2]) < int(match[3]) else None

    def overlapping(self, total: int) -> "list[Bucket]":
        """Of `total` buckets of its kind those that can hold a hash of this one."""
        first = self.number * total // self.total
        return [Bucket(self.kind, number, total) for number in range(first, first + max(1, total // self.total))]

    def partition(self, partitions: int) -> int:
        """The partition of users that it is a part of."""
        return self.number * partitions // self.total

    def holds(self, hash_N: Hashes) -> Bools:
        """Which hashes lie in it: bool [N]."""
        return numbers_of(hash_N, self.total) == self.number


class ByBucket(Generic[T]):
    """Things of which each lies in a bucket, whatever the number of buckets: found by a bucket that overlaps theirs."""

    def __init__(self, things: Iterable[tuple[Bucket, T]]):
        self._things: dict[Bucket, list[T]] = defaultdict(list)
        for bucket, thing in things:
            self._things[bucket].append(thing)
        self._totals = sorted({bucket.total for bucket in self._things})

    def overlapping(self, bucket: Bucket) -> list[T]:
        """Those that a row of the bucket may lie in."""
        near = (other for total in self._totals for other in bucket.overlapping(total))
        return [thing for other in near for thing in self._things.get(other, ())]


def bucket_of_shard(name: str) -> Bucket:
    """The bucket whose rows a shard holds, by its name; all rows of its kind for one of an older layout."""
    stem = name.rpartition("/")[2].rpartition("-")[0]
    return Bucket.parse(f"index/{stem}.parquet") or Bucket(stem.partition("-")[0], 0, 1)


def bucket_count(rows: int, partitions: int = 1) -> int:
    """A power of two, so that the buckets of two versions lie within each other, and a multiple of the partitions."""
    needed = max(1, min(MOST_BUCKETS, math.ceil(rows / partitions / BUCKET_ROWS)))
    return partitions << (needed - 1).bit_length()
