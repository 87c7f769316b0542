"""Delete old versions of the knowledge, and erase every row that no version left refers to. No Ray here."""

import json
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import NamedTuple, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from upath import UPath

from llm4msr import storage
from llm4msr.arrays import Bools, Ints32
from llm4msr.config import Config
from llm4msr.knowledge import versions
from llm4msr.knowledge.buckets import Bucket, ByBucket, bucket_of_shard
from llm4msr.knowledge.index import RowGroup, read_index, split_by_shard
from llm4msr.knowledge.mapped_vectors import cache_path
from llm4msr.knowledge.rows import CHECKSUMS, read_checksums, read_shard
from llm4msr.knowledge.work import Work
from llm4msr.storage import MANIFEST, StageOutput, cache, lock
from llm4msr.storage.vectors import to_column, to_matrix

PRUNED = "pruned"
"""The error of a row that was erased in a shard of which other rows are still in use."""


class Live(NamedTuple):
    """What versions that stay refer to in a shard: its rows, ascending, and the checksum that they know of it."""

    rows: Ints32
    checksum: str


class PruneReport(TypedDict):
    """Names of the versions that were `kept` and `removed`, of `unfinished` ones that stay, and the bytes `freed`."""

    kept: list[str]
    removed: list[str]
    unfinished: list[str]
    freed: int
    dry_run: bool


def prune(
    config: Config, current: StageOutput | None, keep: int = 1, unfinished: bool = False, dry_run: bool = False
) -> PruneReport:
    """Delete all but the newest `keep` versions and the `current` one, and every row that none of them refers to.

    Versions from before the newest one with a list of users to forget go too, whatever `keep` says. What unfinished
    runs refer to stays, unless `unfinished` says that they go as well; what is at work stays in any case. A `dry_run`
    deletes nothing.

    Raises:
        StorageError: a version or a shard is damaged, or this machine's cache cannot be written.
    """
    root = versions.root(config)
    sizes = storage.files_below(root, temporary=True)
    running = _running_versions(root, sizes, unfinished)
    stay, go = _divide(config, current, keep, running)
    in_use = {f"{version.folder.name}/{name}" for version in stay for name in (MANIFEST, *version.manifest.files)}
    unused = {name for name in sizes if name not in in_use and _version_of(name) not in running}
    unused -= {name + CHECKSUMS for name in unused}  # these go with their shards
    shards = [name for name in sizes if name in unused and "/vectors/" in name]
    others = sorted(unused - set(shards), key=lambda name: not name.endswith(f"/{MANIFEST}"))
    freed = sum(sizes[name] for name in others)
    if not dry_run:
        cache.root()  # holds copies that go too: an error before anything goes where it cannot be written
        for name in others:  # manifests first: from then on nobody opens these versions
            (root / name).unlink()
        for version in go:
            _delete_cache(version)
    indexes = [
        RowGroup(str(root / name), "") for name in sizes if "/work/kept/" in name and _version_of(name) in running
    ]
    for version in stay:
        files = version.manifest.files
        indexes += [RowGroup(str(version.folder / name), files[name].digest) for name in files if Bucket.parse(name)]
    in_buckets = versions.by_bucket(indexes)
    for bucket, names in _group_by_bucket(shards).items():
        live = _live_rows(bucket, in_buckets)
        for name in names:
            if name not in live and not dry_run and name + CHECKSUMS in sizes:
                (root / (name + CHECKSUMS)).unlink()
            freed += erase(root / name, live.get(name), sizes[name], dry_run)
    kept, removed = ([version.folder.name for version in group] for group in (stay, go))
    return PruneReport(kept=kept, removed=removed, unfinished=sorted(running), freed=freed, dry_run=dry_run)


def _version_of(name: str) -> str:
    return name.partition("/")[0]


def _running_versions(root: UPath, names: Collection[str], only_busy: bool) -> set[str]:
    """Versions that a run is making, or was making when it was interrupted; with `only_busy` the former alone."""
    begun = {_version_of(name) for name in names if name.endswith(("/work/work.json", f"/{lock.NAME}"))}
    running = {version for version in begun if f"{version}/{MANIFEST}" not in names}
    return {version for version in running if not only_busy or lock.is_held(root / version)}


def _delete_cache(version: StageOutput) -> None:
    """Delete this machine's memory-mapped copies of a version's vectors."""
    cached = cache_path(version)
    for copy in cached.parent.glob(f"{cached.name}.*"):
        storage.remove(storage.path(copy))


def _divide(
    config: Config, current: StageOutput | None, keep: int, running: set[str]
) -> tuple[list[StageOutput], list[StageOutput]]:
    """Versions that stay, and versions that go."""
    finished = versions.finished_versions(config)
    forgetting = next((i for i, v in enumerate(finished) if v.manifest.info.get("forget")), len(finished))
    recent = {version.folder.name for version in finished[:keep]} | ({current.folder.name} if current else set())
    needed = {base for name in running for base in _bases(versions.root(config) / name)}
    stay = [
        v for i, v in enumerate(finished) if v.folder.name in needed or (v.folder.name in recent and i <= forgetting)
    ]
    return stay, [version for version in finished if version not in stay]


def _bases(folder: UPath) -> Sequence[str]:
    """Versions that an unfinished run still has to compare its rows with."""
    work = Work.load(folder)
    return work.bases if work and not work.planned else []


def _group_by_bucket(shards: Sequence[str]) -> dict[Bucket, list[str]]:
    groups: dict[Bucket, list[str]] = defaultdict(list)
    for name in shards:
        groups[bucket_of_shard(name)].append(name)
    return groups


def _live_rows(bucket: Bucket, indexes: ByBucket[RowGroup]) -> dict[str, Live]:
    """What a bucket's index files refer to, by shard."""
    tables = [read_index(file, ["shard", "checksum", "row"]) for file in indexes.overlapping(bucket)]
    if not tables:
        return {}
    rows = pa.concat_tables(tables).sort_by([("shard", "ascending"), ("row", "ascending")])
    return {
        shard: Live(np.unique(part["row"].to_numpy()), part["checksum"][0].as_py())
        for shard, part in split_by_shard(rows)
    }


def erase(shard: UPath, live: Live | None, size: int, dry_run: bool = False) -> int:
    """Delete a shard, or all in its rows that are not `live`; rows keep their places. Gives back the bytes freed.

    Indexes go on to name the checksum that they know, so the new one is noted beside the shard, and before it changes.

    Raises:
        StorageError: the shard is damaged.
    """
    if live is None:
        if not dry_run:
            shard.unlink()
        return size
    with storage.open_parquet(shard) as parquet:
        if parquet.metadata.num_rows == len(live.rows):
            return 0
    table = read_shard(shard, None, live.checksum, "delete it, and `llm4msr extract` asks anew for its rows")
    alive_N = np.isin(np.arange(len(table)), live.rows)
    if dry_run or set(table["error"].filter(pa.array(~alive_N)).to_pylist()) == {PRUNED}:
        return 0
    data = storage.parquet_bytes([_blank(table, alive_N)])
    history = [*(read_checksums(shard) or [live.checksum]), storage.digest(data)]
    storage.write_bytes(shard.with_name(shard.name + CHECKSUMS), json.dumps(history).encode())
    storage.write_bytes(shard, data)
    return size - len(data)


def _blank(table: pa.Table, alive_N: Bools) -> pa.Table:
    """A shard's rows with nothing left in those that are not alive."""
    mask = pa.array(alive_N)
    for at, name in enumerate(table.column_names):
        column = table[name]
        if name == "vector":
            halves_NZ = to_matrix(column).copy()
            halves_NZ[~alive_N] = 0
            column = pa.chunked_array([to_column(halves_NZ)])
        elif pa.types.is_string(column.type):
            column = pc.if_else(mask, column, PRUNED if name == "error" else "")
        else:
            column = pc.if_else(mask, column, 0)
        table = table.set_column(at, table.schema.field(name), column)
    return table
