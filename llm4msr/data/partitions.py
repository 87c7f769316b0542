"""Partitions of users: the unit in which every stage reads, works and resumes.

A user's partition is the top bits of a hash of the raw id, so it is the same in every stage and on every day. Tables
that grow with users or rows (`PARTITIONED`) have a file for each partition; a user there is a place in the partition's
`users`. In memory a user's number counts on from partition to partition: the rows of `users` in earlier partitions, and
the place. The same holds for `seen`.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llm4msr.arrays import Ints
from llm4msr.hashes import hash_ids as hash_ids  # what serves looks up by the same hash
from llm4msr.hashes import numbers_of as numbers_of
from llm4msr.storage import StageOutput

PARTITIONED = ("users", "train", "valid", "test", "histories", "seen")


def file_name(table: str, partition: int) -> str:
    """Name of a partition's file, relative to the output of `prepare`."""
    return f"{table}/p={partition:05d}.parquet"


def count(prepared: StageOutput) -> int:
    """How many partitions prepared data has."""
    names = (name.rpartition("/") for name in prepared.manifest.files)
    return len({file for folder, _, file in names if folder in PARTITIONED})


def offsets(prepared: StageOutput, table: str) -> Ints:
    """Rows of a table before each partition, and last all its rows: int64 [P + 1]."""
    files = prepared.manifest.files
    rows = [files[file_name(table, partition)].rows for partition in range(count(prepared))]
    return np.cumsum([0, *rows], dtype=np.int64)


def rows(prepared: StageOutput, table: str) -> int:
    """The rows of a table in all partitions."""
    return int(offsets(prepared, table)[-1])


def parquet(prepared: StageOutput, table: str, partition: int) -> pq.ParquetFile:
    """Open a partition's file, whose users are places in the partition; close it after use."""
    return prepared.parquet(file_name(table, partition))


def read(prepared: StageOutput, table: str, partition: int, columns: list[str] | None = None) -> pa.Table:
    """A partition's rows; `user` and `seen` are numbers that count over all partitions.

    Raises:
        StorageError: the file is missing or damaged.
    """
    return number(prepared, prepared.table(file_name(table, partition), columns), partition)


def read_each(prepared: StageOutput, table: str, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """What `read` gives of each partition."""
    return (read(prepared, table, partition, columns) for partition in range(count(prepared)))


def number(prepared: StageOutput, local: pa.Table, partition: int) -> pa.Table:
    """The same rows of a partition, with numbers that count over all partitions in `user` and `seen`."""
    for column, table in (("user", "users"), ("seen", "seen")):
        if partition and column in local.column_names:
            place = local[column]
            counted = pc.add(place, pa.scalar(int(offsets(prepared, table)[partition])))
            if column == "seen":  # 0 means that knowledge has not seen the row
                counted = pc.if_else(pc.greater(place, pa.scalar(0)), counted, place)
            local = local.set_column(local.column_names.index(column), column, counted)
    return local
