"""Partitions of users: the unit in which every stage reads, works and resumes.

A user's partition is the top bits of a hash of the raw id, so it is the same in every stage and on every day. Tables
that grow with users or rows (`PARTITIONED`) have a file for each partition; a user there is a place in the partition's
`users`. In memory a user's number counts on from partition to partition: the rows of `users` in earlier partitions, and
the place. The same holds for `seen` and `event`.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from upath import UPath

from llm4msr.arrays import Column, Ints, strings
from llm4msr.hashes import hash_ids as hash_ids  # what serves looks up by the same hash
from llm4msr.hashes import numbers_of as numbers_of
from llm4msr.schema import TRAIN_GROUP_ROWS
from llm4msr.storage import GROUP_ROWS, FileRecord, StageOutput, write_table

PARTITIONED = ("users", "train", "valid", "test", "histories", "seen", "events")


def file_name(table: str, partition: int) -> str:
    """Name of a partition's file, relative to the output of `prepare`."""
    return f"{table}/p={partition:05d}.parquet"


def write(folder: UPath, partition: int, tables: dict[str, pa.Table]) -> dict[str, FileRecord]:
    """Write a partition's tables below the folder of an output; their records by file name."""
    files = {}
    for table in PARTITIONED:
        name, is_train = file_name(table, partition), table == "train"
        files[name] = write_table(folder / name, tables[table], TRAIN_GROUP_ROWS if is_train else GROUP_ROWS)
    return files


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


def homes(prepared: StageOutput, user_N: Ints) -> Ints:
    """The partition of each user number: int64 [N]."""
    return np.searchsorted(offsets(prepared, "users"), user_N, side="right") - 1


def find_users(prepared: StageOutput, raw_ids: Sequence[str]) -> dict[str, int]:
    """The numbers of these users, less those whom there are not; only the partitions that can hold them are read."""
    home_N = numbers_of(hash_ids(raw_ids), count(prepared))
    numbers: dict[str, int] = {}
    for partition in np.unique(home_N).tolist():
        users = read(prepared, "users", partition, ["user", "user_id"])
        hits = users.filter(pc.is_in(users["user_id"], value_set=pa.array(raw_ids, pa.string())))
        numbers |= dict(zip(strings(hits["user_id"]), hits["user"].to_numpy().tolist(), strict=True))
    return {raw_id: number for raw_id, number in numbers.items() if number}


def raw_ids(prepared: StageOutput, user_N: Ints) -> list[str]:
    """The raw ids of these user numbers; that of the unknown user is empty."""
    home_N, start_P = homes(prepared, user_N), offsets(prepared, "users")
    ids = np.empty(len(user_N), object)
    for partition in np.unique(home_N).tolist():
        table = read(prepared, "users", partition, ["user_id"])
        here = home_N == partition
        ids[here] = table["user_id"].take(pa.array(user_N[here] - start_P[partition])).to_pylist()
    return [str(raw_id) for raw_id in ids]


def people(prepared: StageOutput, user_N: Ints, event_N: Ints) -> Ints:
    """A number for each person whom rows are of: the user's, and beyond all users one for each unknown one.

    Args:
        prepared: the data.
        user_N: the rows' users, of whom all unknown ones have number 0.
        event_N: the rows' events, by which these are told apart; not looked at where all users are known.
    """
    unknown = np.flatnonzero(user_N == 0)
    if not len(unknown):
        return user_N
    person_N, start_P = user_N.copy(), offsets(prepared, "events")
    home_N = np.searchsorted(start_P, event_N[unknown], side="right") - 1
    for partition in np.unique(home_N).tolist():
        earlier_E = read(prepared, "events", partition, ["earlier"])["earlier"].to_numpy()
        here = unknown[home_N == partition]
        first_N = event_N[here] - earlier_E[event_N[here] - start_P[partition]]
        person_N[here] = rows(prepared, "users") + first_N
    return person_N


def local_ids(users: Column, place_N: Column) -> Column:
    """The raw ids of places in a partition, as its files have them; that of the unknown user is empty.

    Args:
        users: the raw ids of the partition's `users`.
        place_N: places, of which those of the unknown user are below 0, or 0 in the first partition.
    """
    known = pc.greater_equal(place_N, pa.scalar(0))
    return pc.if_else(known, users.take(pc.if_else(known, place_N, pa.scalar(None, pa.int64()))), pa.scalar(""))


def parquet(prepared: StageOutput, table: str, partition: int) -> pq.ParquetFile:
    """Open a partition's file, whose users are places in the partition; close it after use."""
    return prepared.parquet(file_name(table, partition))


def read(prepared: StageOutput, table: str, partition: int, columns: list[str] | None = None) -> pa.Table:
    """A partition's rows; `user`, `seen` and `event` are numbers that count over all partitions.

    Raises:
        StorageError: the file is missing or damaged.
    """
    return number(prepared, prepared.table(file_name(table, partition), columns), partition)


def read_each(prepared: StageOutput, table: str, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """What `read` gives of each partition."""
    return (read(prepared, table, partition, columns) for partition in range(count(prepared)))


def number(prepared: StageOutput, local: pa.Table, partition: int) -> pa.Table:
    """The same rows of a partition, with numbers that count over all partitions in `user`, `seen` and `event`."""
    for column, table in (("user", "users"), ("seen", "seen"), ("event", "events")):
        if partition and column in local.column_names:
            place = local[column]
            counted = pc.add(place, pa.scalar(int(offsets(prepared, table)[partition])))
            if column == "seen":  # 0 means that knowledge has not seen the row
                counted = pc.if_else(pc.greater(place, pa.scalar(0)), counted, place)
            local = local.set_column(local.column_names.index(column), column, counted)
    return local
