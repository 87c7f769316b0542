"""Where the rows of one version of the knowledge lie: in shards that it wrote, and in those of earlier versions.

A version is a folder with an `index/`: for every row of it, the shard and the row there that hold prompt, text and
vector. Shards never change, so versions share them: what did not change from one version to the next is only named
again. An index file covers a range of hashes of raw ids (a bucket), so that two versions can be compared bucket by
bucket in little memory, whatever their number of rows. The same hash decides a user's partition, so a bucket of users
is a partition or a part of one. Rows are known by raw id, since dense ids change with every `prepare`; the dense id in
the index is that of its own version, a user's within the partition.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from upath import UPath

from llm4msr import storage
from llm4msr.arrays import Column, strings
from llm4msr.data import partitions
from llm4msr.errors import StorageError
from llm4msr.knowledge.buckets import Bucket
from llm4msr.schema import INDEX
from llm4msr.storage import stage_files

NOTHING_LIKED = "nothing liked before the cut"
"""The error of a row without a prompt. It is counted, but no retry can mend it, so it is no reason to stop."""

GROUP_ROWS = 8192
"""Rows of a row group of an index file: what is read at once, at most."""


class State(IntEnum):
    """How a row ended; a later version takes over all but the failed."""

    GOOD = 0
    EMPTY = 1
    FAILED = 2


class RowGroup(NamedTuple):
    """A row group of a file of a version (all of the file, if it has no number), and the file's checksum.

    It names its file by URI, so that Ray Data can carry it.
    """

    uri: str
    checksum: str
    number: int | None = None

    @property
    def file(self) -> UPath:
        """The file."""
        return storage.path(self.uri)

    @property
    def version(self) -> UPath:
        """The folder of the version that the file belongs to."""
        return self.file.parent.parent

    @property
    def advice(self) -> str:
        """What to do if it is damaged."""
        return storage.repair_advice(self.version, "extract", self.file)

    @property
    def bucket(self) -> Bucket | None:
        """The bucket of an index file; None for a shard."""
        return Bucket.parse(f"index/{self.uri.rpartition('/')[2]}")


def row_keys(raw_ids: Sequence[str], fingerprints: Sequence[str], writes: str) -> "pa.Array[Any]":
    """128 bits of raw id, vector's fingerprint and how texts are written beside it: binary(16) [N].

    Rows with the same key are the same row, in whatever version.
    """
    end = writes.encode()
    digests = [
        hashlib.blake2b(b"%d\0%b%b%b" % (len(raw_id), raw_id.encode(), fingerprint.encode(), end), digest_size=16)
        for raw_id, fingerprint in zip(raw_ids, fingerprints, strict=True)
    ]
    flat = pa.py_buffer(b"".join(digest.digest() for digest in digests))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(digests), [None, flat])


def states(errors: Iterable[str]) -> Column:
    """`State` of rows by their error: int8 [N]."""
    known = {"": State.GOOD, NOTHING_LIKED: State.EMPTY}
    return pa.array([int(known.get(error, State.FAILED)) for error in errors], pa.int8())


def index_shard(shard: str, table: pa.Table, checksum: str) -> pa.Table:
    """Rows of `schema.INDEX` for a whole shard.

    Args:
        shard: its name, `<version>/vectors/<file>`.
        table: its columns id, raw_id, fingerprint and error, with its metadata.
        checksum: of its file.
    """
    raw_ids = strings(table["raw_id"])
    columns: dict[str, Column] = {
        "id": table["id"],
        "hash": pa.array(partitions.hash_ids(raw_ids)),
        "key": row_keys(raw_ids, strings(table["fingerprint"]), texts_to_write(table)),
        "shard": pa.array([shard] * len(table), pa.string()),
        "checksum": pa.array([checksum] * len(table), pa.string()),
        "row": pa.array(np.arange(len(table)), pa.int32()),
        "state": states(strings(table["error"])),
    }
    return pa.Table.from_arrays(list(columns.values()), schema=INDEX)


def texts_to_write(shard: pa.Table) -> str:
    """How texts were to be written beside the vectors of a shard, as its metadata say; see `Reader.writes`."""
    return (shard.schema.metadata or {}).get(b"writes", b"").decode()


def match(rows: pa.Table, versions: Iterable[Sequence[RowGroup]], present: Column) -> pa.Table:
    """Rows of `schema.INDEX` for those of `rows` (id, hash, key) that a version holds already.

    Args:
        rows: rows of a bucket.
        versions: of each version the index files that may hold them; where several do, the first version counts.
        present: names of the shards that exist; rows of others are not matched.

    Raises:
        StorageError: an index file is damaged.
    """
    matches = [INDEX.empty_table()]
    for files in versions:
        if not len(rows):
            break
        known = _read_places(files)
        usable = pc.less(known["state"], pa.scalar(int(State.FAILED), pa.int8()))
        known = known.filter(pc.and_(usable, pc.is_in(known["shard"], value_set=present)))
        positions = pc.index_in(rows["key"], value_set=known["key"])
        is_known = pc.is_valid(positions)
        places = known.take(pc.drop_null(positions))
        matched = rows.filter(is_known).select(["id", "hash", "key"])
        for name in ("shard", "checksum", "row", "state"):
            matched = matched.append_column(name, places[name])
        matches.append(matched.cast(INDEX))
        rows = rows.filter(pc.invert(is_known))
    return pa.concat_tables(matches)


def _read_places(files: Sequence[RowGroup]) -> pa.Table:
    """All rows of these index files, without their dense ids."""
    columns = ["key", "shard", "checksum", "row", "state"]
    return pa.concat_tables([INDEX.empty_table().select(columns), *(read_index(file, columns) for file in files)])


def read_index(group: RowGroup, columns: Sequence[str] = INDEX.names) -> pa.Table:
    """These columns of rows of an index file.

    An index file from before there were checksums gets those that its shards have now, where it is read whole.

    Raises:
        StorageError: it is missing or damaged.
    """
    if group.number is not None:
        with storage.open_parquet(group.file, group.advice, group.checksum) as parquet:
            return parquet.read_row_group(group.number, list(columns))
    try:
        return storage.read_table(group.file, list(columns), group.advice, group.checksum)
    except StorageError:
        table = storage.read_table(group.file, advice=group.advice, checksum=group.checksum)
        if "checksum" in table.column_names:
            raise
    shards = strings(table["shard"])
    checksums = {shard: _current_checksum(group.version.parent, shard) for shard in set(shards)}
    column = pa.array([checksums[shard] for shard in shards], pa.string())
    return table.append_column("checksum", column).select(list(columns))


def _current_checksum(root: UPath, shard: str) -> str:
    try:
        return storage.digest_file(root / shard) if stage_files.SHARD.fullmatch(shard) else ""
    except StorageError:  # it is gone, so its rows are asked about again
        return ""


def split_by_shard(rows: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """Each shard and its rows, of index rows that are sorted by shard."""
    shards = np.array(strings(rows["shard"]), object)
    changes = np.flatnonzero(shards[1:] != shards[:-1]) + 1
    for start, end in pairwise([*([0] if len(shards) else []), *changes.tolist(), len(shards)]):
        yield shards[start], rows.slice(start, end - start)
