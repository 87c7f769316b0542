"""What is left to ask: prompts of all rows, less the rows that earlier versions below the same storage hold.

Two passes over Ray Data. The first renders windows of the prepared tables and writes each window's prompts sorted
into buckets of raw ids; the second takes one bucket out of the windows of its partition, finds its rows in the earlier
versions, and cuts the others into shards of prompts of like length. So memory is that of a window or a bucket, however
many users there are, and no row passes through the driver or stays in Ray's object store. When the shards are written,
a third pass writes the index, bucket by bucket.

What the first two write lies below `work/` of the new version, and goes when it is published.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from upath import UPath

from llm4msr import ray_session, storage
from llm4msr.arrays import Column, strings
from llm4msr.config import Config
from llm4msr.data import partitions
from llm4msr.knowledge import drift, index, versions
from llm4msr.knowledge.active_users import users_to_read
from llm4msr.knowledge.actor_pool import nodes, rows_per_shard
from llm4msr.knowledge.buckets import OF_USERS, Bucket, bucket_count
from llm4msr.knowledge.forget import check_list, ids_to_forget
from llm4msr.knowledge.index import NOTHING_LIKED, RowGroup, State
from llm4msr.knowledge.prompts import templates
from llm4msr.knowledge.prompts.render import Window, items_to_read, render, windows
from llm4msr.knowledge.reader import Reader
from llm4msr.knowledge.snapshots import KIND
from llm4msr.knowledge.sources import items_by_kind
from llm4msr.knowledge.work import Shard, Work
from llm4msr.progress import track
from llm4msr.schema import INDEX
from llm4msr.storage import StageOutput

WINDOW_ROWS = 1 << 16
"""Rows whose prompts one task renders, at most."""
FEW = 2
"""Windows or buckets that are no work for Ray: those of some items, or users, and of the scenarios."""


def plan_work(config: Config, data: StageOutput, folder: UPath, readers: dict[str, Reader]) -> Work:
    """Plan the version in `folder`, or take up the plan of a run that was interrupted.

    Raises:
        StorageError: an earlier version's index is damaged, or nobody in the list of users to forget is known.
    """
    earlier = Work.load(folder)
    if earlier and earlier.planned and earlier.readers == readers and earlier.files == _planned_files(folder):
        return earlier
    storage.remove(folder / "work")
    names = storage.files_below(folder.parent)
    bases = versions.index_files(folder.parent, names)
    work = Work(readers=readers, bases=list(bases))
    work.forgotten = len(check_list(config, data, bases.values()).known)
    work.save(folder)  # from now on `prune` leaves the bases alone
    scenarios, work.steady = drift.keep_steady(
        data.table("scenarios.parquet"), drift.read_earlier(folder, bases), config.extract.scenario_tolerance
    )
    storage.write_table(folder / drift.FILE, scenarios)
    users = users_to_read(config, data) if "users" in readers else []
    items = items_to_read(config, data.table("items.parquet", ["f:item_id"]))
    todo = windows(users, items_by_kind(readers, items), WINDOW_ROWS, config.extract.snapshots)
    counts = bucket_counts(todo, partitions.count(data), config.extract.snapshots)
    jobs = [window._asdict() for window in todo]
    rows = sum(window.stop - window.start for window in todo) + data.manifest.info["scenarios"] - 1
    with track("render", rows) as progress:
        for done in ray_session.run_each(
            render_window,
            jobs,
            few=FEW,
            config=config,
            data=data,
            folder_uri=str(folder),
            readers=readers,
            counts=counts,
        ):
            progress.advance(done["rows"])
    spilled = spilled_by_bucket(todo, counts, partitions.count(data))
    work.buckets, held = list(spilled), versions.Earlier(bases.values(), names)
    jobs = [match_job(bucket, files, held.of(bucket)) for bucket, files in spilled.items()]
    per_shard = rows_per_shard(config, nodes())
    for done in ray_session.run_each(match_bucket, jobs, few=FEW, folder_uri=str(folder), rows=per_shard):
        work.kept[done["kind"]] = work.kept.get(done["kind"], 0) + done["kept"]
        work.shards += [Shard.model_validate(shard) for shard in json.loads(done["shards"])]
    storage.remove(folder / "work" / "spill")
    work.shards.sort(key=lambda shard: (shard.kind, shard.name))
    work.planned, work.files = True, _planned_files(folder)
    storage.flush(folder, list(work.files))
    work.save(folder, durable=True)
    return work


def bucket_counts(todo: Sequence[Window], total: int, histories: int = 1) -> dict[str, int]:
    """How many buckets each kind of rows has, with `total` partitions of users whose histories are read so often."""
    rows = Counter[str]()
    for window in todo:
        rows[window.kind] += (window.stop - window.start) * (histories if window.kind == KIND else 1)
    return {kind: bucket_count(count, total if kind in OF_USERS else 1) for kind, count in rows.items()}


def spilled_by_bucket(todo: Sequence[Window], counts: Mapping[str, int], total: int) -> dict[Bucket, list[str]]:
    """For each bucket that may have rows the files of its partition's windows, which `render_window` writes."""
    files: dict[tuple[str, int], list[str]] = defaultdict(list)
    for window in todo:
        files[window.kind, window.partition].append(window.file)
    spilled: dict[Bucket, list[str]] = {}
    for (kind, partition), names in files.items():
        whole = Bucket(kind, partition, total if kind in OF_USERS else 1)
        spilled |= dict.fromkeys(whole.overlapping(counts[kind]), names)
    return spilled


def match_job(bucket: Bucket, spilled: Sequence[str], held: versions.Held) -> dict[str, Any]:
    """What `match_bucket` works on: it gets the names of those files alone that can hold a row of the bucket."""
    indexes = [[file._asdict() for file in files] for files in held.indexes]
    return bucket._asdict() | {"spilled": list(spilled), "indexes": indexes, "present": held.shards}


def _planned_files(folder: UPath) -> dict[str, int]:
    sizes = storage.files_below(folder / "work")
    return {f"work/{name}": size for name, size in sizes.items() if name.startswith(("todo/", "kept/"))}


def render_window(
    batch: pa.Table,
    config: Config,
    data: StageOutput,
    folder_uri: str,
    readers: dict[str, Reader],
    counts: dict[str, int],
) -> pa.Table:
    """Write prompts, fingerprints and keys of one window, with a row group for each bucket that has rows.

    Args:
        batch: one row, the `Window`.
        config: the run's.
        data: what was prepared.
        folder_uri: of the new version.
        readers: who will read the prompts, by kind.
        counts: number of buckets by kind.
    """
    (window,) = (Window(**row) for row in batch.to_pylist())
    reader = readers[window.kind]
    rows = render(window, config, data, storage.path(folder_uri) / drift.FILE, reader)
    kept = rows.filter(pc.invert(pc.is_in(rows["raw_id"], value_set=ids_to_forget(config, window.kind))))
    raw_ids, texts = strings(kept["raw_id"]), strings(kept["prompt"])
    fingerprints = [templates.fingerprint(text, reader.reads) for text in texts]
    hash_N = partitions.hash_ids(raw_ids)
    columns: dict[str, Column] = {
        "fingerprint": pa.array(fingerprints, pa.string()),
        "error": pa.array(["" if text else NOTHING_LIKED for text in texts], pa.string()),
        "hash": pa.array(hash_N),
        "key": index.row_keys(raw_ids, fingerprints, reader.writes[window.kind]),
    }
    for name, column in columns.items():
        kept = kept.append_column(name, column)
    kept = _with_prompts(kept, pa.large_string())  # `take` and `sort_by` make one piece, which may pass 2 GiB
    bucket_N = partitions.numbers_of(hash_N, counts[window.kind])
    order_N = np.argsort(bucket_N, kind="stable")
    filled, starts = np.unique(bucket_N[order_N], return_index=True)
    kept = kept.take(order_N).replace_schema_metadata({"buckets": json.dumps(filled.tolist())})
    groups = [kept.slice(start, end - start) for start, end in pairwise([*starts, len(kept)])]
    storage.write_groups(storage.path(folder_uri) / "work" / "spill" / window.file, groups or [kept])
    return pa.table({"rows": [window.stop - window.start or len(rows)]})


def match_bucket(batch: pa.Table, folder_uri: str, rows: int) -> pa.Table:
    """Write a bucket's rows: those that earlier versions hold to `work/kept`, the others to `work/todo`, by shard.

    Args:
        batch: one row, what `match_job` gives.
        folder_uri: of the new version.
        rows: rows of a shard, which is a row group in `work/todo`.

    Returns:
        One row: the bucket's kind, how many rows were kept, and the new `Shard`s as JSON.
    """
    (job,) = batch.to_pylist()
    bucket, work = Bucket(job["kind"], job["number"], job["total"]), storage.path(folder_uri) / "work"
    indexes = [[RowGroup(**file) for file in files] for files in job["indexes"]]
    prompts = pa.concat_tables(_read_spilled(work / "spill" / name, bucket) for name in job["spilled"])
    kept = index.match(prompts, indexes, pa.array(job["present"], pa.string()))
    if len(kept):
        storage.write_table(work / "kept" / bucket.file, kept)
    left = prompts.filter(pc.invert(pc.is_in(prompts["key"], value_set=kept["key"]))).drop_columns(["hash"])
    left = left.append_column("length", pc.utf8_length(left["prompt"]))
    left = left.sort_by([("length", "ascending"), ("fingerprint", "ascending"), ("raw_id", "ascending")])
    left = left.drop_columns(["length"])  # those of the same text lie together, and are read once
    groups = [left.slice(start, rows) for start in range(0, len(left), rows)]
    shards = []
    for number, group in enumerate(groups):
        keys = cast("list[bytes]", group["key"].to_pylist())  # the stubs allow for None
        content = storage.digest(*keys)[:12]
        name = f"{bucket.file.removesuffix('.parquet')}-{content}.parquet"
        shards.append({"name": name, "kind": bucket.kind, "todo": bucket.file, "group": number, "rows": len(group)})
    if groups:
        asked = [_with_prompts(group.drop_columns(["key"]), pa.string()) for group in groups]
        storage.write_groups(work / "todo" / bucket.file, asked)
    return pa.table({"kind": [bucket.kind], "kept": [len(kept)], "shards": [json.dumps(shards)]})


def _with_prompts(rows: pa.Table, text: pa.DataType) -> pa.Table:
    """The same rows, their prompts as this type of text."""
    return rows.set_column(rows.column_names.index("prompt"), "prompt", rows["prompt"].cast(text))


def _read_spilled(file: UPath, bucket: Bucket) -> pa.Table:
    """The rows of a bucket in one window's file."""
    with storage.open_parquet(file) as parquet:
        filled = json.loads((parquet.schema_arrow.metadata or {})[b"buckets"])
        groups = [filled.index(bucket.number)] if bucket.number in filled else []
        return parquet.read_row_groups(groups).replace_schema_metadata()


def read_prompts(batch: pa.Table, folder_uri: str) -> pa.Table:
    """A shard's rows with their prompts, out of `work/todo`, and the name of its file."""
    (shard,) = batch.to_pylist()
    with storage.open_parquet(storage.path(folder_uri) / "work" / "todo" / shard["todo"]) as parquet:
        rows = parquet.read_row_group(shard["group"])
    return rows.append_column("file", pa.array([shard["name"]] * len(rows), pa.string()))


def seal_bucket(batch: pa.Table, folder_uri: str) -> pa.Table:
    """Write one index file from the rows that were kept and those of the new shards.

    Returns:
        One row: the file's name and record, its kind, its `empty` and `failed` rows, and the version's `own` shards.

    Raises:
        StorageError: a shard is missing or damaged.
    """
    (job,) = batch.to_pylist()
    folder, bucket = storage.path(folder_uri), Bucket(job["kind"], job["number"], job["total"])
    kept = folder / "work" / "kept" / bucket.file
    tables = [storage.read_table(kept)] if kept.exists() else [INDEX.empty_table()]
    for name, noted in zip(job["shards"], job["checksums"], strict=True):
        file = folder / "vectors" / name
        checksum = noted or storage.digest_file(file)  # a run that was interrupted wrote it, and noted no checksum
        advice = storage.repair_advice(folder, "extract", file)
        table = storage.read_table(file, ["id", "raw_id", "fingerprint", "error"], advice, checksum)
        tables.append(index.index_shard(f"{folder.name}/vectors/{name}", table, checksum))
    rows = pa.concat_tables(tables).sort_by([("shard", "ascending"), ("row", "ascending")])
    shards = strings(pc.unique(rows["shard"]))
    part = storage.write_table(folder / bucket.index_file, rows, index.GROUP_ROWS)
    states = np.bincount(rows["state"].to_numpy(), minlength=len(State))
    summary = {"file": bucket.index_file, "kind": bucket.kind} | part.model_dump()
    summary |= {"empty": int(states[State.EMPTY]), "failed": int(states[State.FAILED])}
    summary["own"] = [shard.partition("/")[2] for shard in shards if shard.startswith(f"{folder.name}/")]
    return pa.table({name: [value] for name, value in summary.items()})
