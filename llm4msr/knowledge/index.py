"""Where the rows of one version of the knowledge lie: in shards that it wrote, and in those of earlier versions.

A version is a folder with an `index/`: for every row of it, the shard and the row there that hold prompt, text and
vector. Shards never change, so versions share them: what did not change from one version to the next is only named
again. An index file covers a range of hashes of raw ids (a bucket), so that two versions can be compared bucket by
bucket in little memory, whatever their number of rows. Rows are known by raw id, since dense ids change with every
`prepare`; the dense id in the index is that of its own version.
"""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from upath import UPath

from llm4msr import storage
from llm4msr.arrays import Hashes, Ints
from llm4msr.errors import StorageError
from llm4msr.schema import INDEX
from llm4msr.storage import FileRecord, stage_files
from llm4msr.text import shorten

NOTHING_LIKED = "nothing liked before the cut"
"""The error of a row without a prompt. It is counted, but no retry can mend it, so it is no reason to stop."""

PART_ROWS = 8192
"""Rows that are read at once, at most."""

BUCKET_ROWS = 1 << 16
MOST_BUCKETS = 1 << 10
"""Rows of a bucket, until there are so many buckets; beyond that (67 million rows) the buckets grow."""

CHECKSUMS = ".checksums.json"
"""What is added to a shard's name for the file that `prune` writes beside it."""


class State(IntEnum):
    """How a row ended; a later version takes over all but the failed."""

    GOOD = 0
    EMPTY = 1
    FAILED = 2


def bucket_count(rows: int) -> int:
    """A power of two, so that the buckets of two versions lie within each other."""
    wanted = max(1, min(MOST_BUCKETS, math.ceil(rows / BUCKET_ROWS)))
    return 1 << (wanted - 1).bit_length()


def bucket_of(hash_N: Hashes, buckets: int) -> Ints:
    """The bucket of each hash: its highest bits."""
    if buckets == 1:
        return np.zeros(len(hash_N), np.int64)
    return (hash_N >> np.uint64(64 - (buckets.bit_length() - 1))).astype(np.int64)


def hashes(raw_ids: Iterable[str]) -> Hashes:
    """64 bits of each raw id."""
    digests = [hashlib.blake2b(raw_id.encode(), digest_size=8).digest() for raw_id in raw_ids]
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64)


def keys(raw_ids: Sequence[str], fingerprints: Sequence[str], writes: str) -> pa.FixedSizeBinaryArray:
    """128 bits of the raw id, the vector's fingerprint, and what is written beside the vector.

    Rows with the same key are the same row.
    """
    end = writes.encode()
    digests = [
        hashlib.blake2b(b"%d\0%b%b%b" % (len(raw_id), raw_id.encode(), fingerprint.encode(), end), digest_size=16)
        for raw_id, fingerprint in zip(raw_ids, fingerprints, strict=True)
    ]
    flat = pa.py_buffer(b"".join(digest.digest() for digest in digests))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(digests), [None, flat])


def states(errors: Iterable[str]) -> pa.Array:
    """`State` of rows by their error."""
    found = {"": State.GOOD, NOTHING_LIKED: State.EMPTY}
    return pa.array([int(found.get(error, State.FAILED)) for error in errors], pa.int8())


def entries(shard: str, table: pa.Table, checksum: str) -> pa.Table:
    """Rows of `schema.INDEX` for a whole shard: its columns id, raw_id, fingerprint and error, and its metadata."""
    raw_ids = table["raw_id"].to_pylist()
    columns = {
        "id": table["id"],
        "hash": pa.array(hashes(raw_ids)),
        "key": keys(raw_ids, table["fingerprint"].to_pylist(), writes_of(table)),
        "shard": pa.array([shard] * len(table), pa.string()),
        "checksum": pa.array([checksum] * len(table), pa.string()),
        "row": pa.array(np.arange(len(table)), pa.int32()),
        "state": states(table["error"].to_pylist()),
    }
    return pa.table(columns, INDEX)


def writes_of(shard: pa.Table) -> str:
    """What was to be written beside the vectors of a shard."""
    return (shard.schema.metadata or {}).get(b"writes", b"").decode()


class IndexFile(NamedTuple):
    """One bucket of one kind (`users`, `scenarios`, `items`) of one version."""

    kind: str
    bucket: int
    buckets: int

    @property
    def file(self) -> str:
        """File name."""
        return f"{self.kind}-{self.bucket:05d}-of-{self.buckets:05d}.parquet"

    @property
    def name(self) -> str:
        """The same within the version."""
        return f"index/{self.file}"

    @classmethod
    def of(cls, name: str) -> "IndexFile | None":
        """From a file name within a version; None for other files."""
        found = re.fullmatch(r"index/(\w+)-(\d+)-of-(\d+)\.parquet", name)
        return cls(found[1], int(found[2]), int(found[3])) if found else None

    def overlaps(self, other: "IndexFile") -> bool:
        """Whether a hash can lie in both."""
        most = max(self.buckets, other.buckets)
        one, two = self.bucket * most // self.buckets, other.bucket * most // other.buckets
        same = one < two + most // other.buckets and two < one + most // self.buckets
        return self.kind == other.kind and same


def match(rows: pa.Table, wanted: IndexFile, versions: Sequence[Sequence[str]], present: pa.Array) -> pa.Table:
    """Rows of `schema.INDEX` for those of `rows` (id, hash, key) that a version holds already.

    Args:
        rows: all of the bucket `wanted`.
        wanted: the bucket.
        versions: parts that are index files of each version, the one to ask first in front.
        present: shards that are there; rows of others are not found.
    """
    found = [INDEX.empty_table()]
    for files in versions:
        if not len(rows):
            break
        known = _bucket(files, wanted)
        usable = pc.and_(pc.less(known["state"], int(State.FAILED)), pc.is_in(known["shard"], value_set=present))
        known = known.filter(usable)
        place = pc.index_in(rows["key"], value_set=known["key"])
        hit = pc.is_valid(place)
        mine = rows.filter(hit).select(["id", "hash", "key"])
        theirs = known.take(pc.drop_null(place)).select(["shard", "checksum", "row", "state"])
        joined = zip(mine.column_names + theirs.column_names, [*mine.columns, *theirs.columns], strict=True)
        found.append(pa.table(dict(joined)).cast(INDEX))
        rows = rows.filter(pc.invert(hit))
    return pa.concat_tables(found)


def _bucket(files: Sequence[str], wanted: IndexFile) -> pa.Table:
    """A version's rows that may lie in the bucket, without their dense ids."""
    columns = ["key", "shard", "checksum", "row", "state"]
    found = [INDEX.empty_table().select(columns)]
    for file, checksum, _ in map(place, files):
        if (at := IndexFile.of(f"index/{file.name}")) and at.overlaps(wanted):
            found.append(rows_of(file, columns, checksum))
    return pa.concat_tables(found)


def rows_of(file: UPath, columns: Sequence[str], checksum: str = "") -> pa.Table:
    """These columns of an index file; one of an older version gets the checksums that its shards have now."""
    fix = storage.repair_advice(file.parent.parent, "extract", file)
    try:
        return storage.read_table(file, list(columns), fix, checksum)
    except StorageError:
        table = storage.read_table(file, repair=fix, checksum=checksum)
        if "checksum" in table.column_names:
            raise
    shards = table["shard"].to_pylist()
    now = {shard: _checksum_now(file.parent.parent.parent, shard) for shard in set(shards)}
    return table.append_column("checksum", pa.array([now[shard] for shard in shards], pa.string())).select(columns)


def _checksum_now(root: UPath, shard: str) -> str:
    try:
        return storage.digest_file(root / shard) if stage_files.SHARD.fullmatch(shard) else ""
    except StorageError:  # gone: its rows are asked anew
        return ""


def parts(folder: UPath, files: Mapping[str, FileRecord], kind: str) -> list[str]:
    """Parts of at most `PART_ROWS` rows that together hold each row of a kind once.

    Without an index, they are the shards of that kind in the folder.
    """
    indexed = sorted(name for name in files if name.startswith(f"index/{kind}-"))
    if indexed:
        groups = [(name, group) for name in indexed for group in range(-(-files[name].rows // PART_ROWS))]
        return [part(folder / name, files[name].digest, str(group)) for name, group in groups]
    shards = [name for name in sorted(files) if name.rpartition("/")[2].startswith(f"{kind}-")]
    return [part(folder / name, files[name].digest) for name in shards]


def part(file: UPath, checksum: str, group: str = "") -> str:
    """A file of a version and one of its row groups (empty: all), as text for Ray's tables."""
    return f"{file}#{checksum}#{group}"


def place(part: str) -> tuple[UPath, str, str]:
    """File, its checksum and the row group of a part."""
    file, checksum, group = part.rsplit("#", 2)
    return storage.path(file), checksum, group


def read(part: str, columns: Sequence[str]) -> pa.Table:
    """These columns of the rows of a part; `id` is the version's own.

    Raises:
        StorageError: a shard is missing, damaged, or holds other rows than the version was made of.
    """
    file, checksum, group = place(part)
    version = file.parent.parent
    if not group:
        return storage.read_table(file, list(columns), storage.repair_advice(version, "extract", file), checksum)
    index = read_entries(part)
    pieces = {shard: _rows(version, shard, rows, columns) for shard, rows in by_shard(index)}
    _refuse_other_widths(version, pieces)
    table = pa.concat_tables(pieces.values())
    return table.append_column("id", index["id"]).select(list(columns)) if "id" in columns else table


def lookup(
    folder: UPath, files: Mapping[str, FileRecord], kind: str, raw_ids: Sequence[str], columns: Sequence[str]
) -> pa.Table:
    """These columns and `raw_id` of the rows of these raw ids: reads their buckets, and the shards that they lie in.

    Without an index, all shards of that kind are searched.

    Raises:
        StorageError: a shard is missing, damaged, or holds other rows than the version was made of.
    """
    wanted, value_set = hashes(raw_ids), pa.array(raw_ids, pa.large_string())
    chosen, found = ["raw_id", *columns], []
    indexed = [at for name in sorted(files) if (at := IndexFile.of(name)) and at.kind == kind]
    for at in indexed:
        here = wanted[bucket_of(wanted, at.buckets) == at.bucket]
        if len(here):
            bucket = read_entries(part(folder / at.name, files[at.name].digest))
            hits = bucket.filter(pc.is_in(bucket["hash"], value_set=pa.array(here))).sort_by("shard")
            found += [_rows(folder, shard, rows, chosen) for shard, rows in by_shard(hits)]
    if not indexed:
        found = [read(shard, chosen) for shard in parts(folder, files, kind)]
    ours = [t.filter(pc.is_in(t["raw_id"].cast(pa.large_string()), value_set=value_set)) for t in found]
    empty = pa.table({name: pa.array([], pa.string()) for name in chosen})
    return pa.concat_tables(ours, promote_options="default") if ours else empty


def read_entries(part: str, columns: list[str] | None = None) -> pa.Table:
    """Rows of an index file, or of one of its row groups."""
    file, checksum, group = place(part)
    with storage.open_parquet(file, storage.repair_advice(file.parent.parent, "extract", file), checksum) as parquet:
        return parquet.read_row_group(int(group), columns) if group else parquet.read(columns)


def _refuse_other_widths(version: UPath, pieces: Mapping[str, pa.Table]) -> None:
    widths = {
        shard: t.schema.field("vector").type.list_size for shard, t in pieces.items() if "vector" in t.schema.names
    }
    common = Counter(widths.values()).most_common()
    if len(common) > 1:
        odd = next(shard for shard, width in widths.items() if width == common[-1][0])
        file = version.parent / odd
        raise StorageError(
            f"{file}: {widths[odd]} numbers in a vector, others of {version} have {common[0][0]}; "
            + storage.repair_advice(version, "extract", file)
        )


def by_shard(index: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """Each shard and its rows, of index rows that are sorted by shard."""
    runs = pc.run_end_encode(index["shard"].combine_chunks())
    start = 0
    for shard, end in zip(runs.values.to_pylist(), runs.run_ends.to_pylist(), strict=True):
        yield shard, index.slice(start, end - start)
        start = end


def _rows(version: UPath, shard: str, index: pa.Table, columns: Sequence[str]) -> pa.Table:
    if not stage_files.SHARD.fullmatch(shard):
        raise StorageError(f"{version / 'index'}: names '{shorten(shard)}', which is no shard; do not use this version")
    file = version.parent / shard
    repair = storage.repair_advice(version, "extract", file)
    wanted = [name for name in columns if name != "id"]
    table = read_shard(
        file, list(dict.fromkeys([*wanted, "raw_id", "fingerprint"])), index["checksum"][0].as_py(), repair
    )
    if pc.max(index["row"]).as_py() >= len(table):
        raise StorageError(f"{file}: {len(table)} rows, not all that {version} refers to; {repair}")
    writes, table = writes_of(table), table.take(index["row"])
    held = keys(table["raw_id"].to_pylist(), table["fingerprint"].to_pylist(), writes)
    if not held.equals(index["key"].combine_chunks()):
        raise StorageError(
            f"{file}: other rows than {version} was made of, such as another model's or another prompt's; {repair}"
        )
    return table.select(wanted).replace_schema_metadata()


def read_shard(file: UPath, columns: list[str] | None, checksum: str, repair: str) -> pa.Table:
    """A shard's columns; its content is what an index says, or what `prune` has left of that since.

    Raises:
        StorageError: it is missing or damaged.
    """
    try:
        return storage.read_table(file, columns, repair, checksum)
    except StorageError:
        history = checksums(file)
        now = storage.digest_file(file) if checksum in history else ""
        if now not in history:
            raise
        return storage.read_table(file, columns, repair, now)


def checksums(shard: UPath) -> list[str]:
    """Those that a shard has had, the oldest first, where `prune` has erased rows in it; else none."""
    try:
        found = json.loads(storage.read_bytes(shard.with_name(shard.name + CHECKSUMS)))
    except (StorageError, ValueError, RecursionError):
        return []
    return [str(one) for one in found] if isinstance(found, list) else []
