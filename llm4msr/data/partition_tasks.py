"""What is done to each partition by a task of Ray, between files; a task finds what an earlier run has finished.

Every task takes a row of a table of jobs and returns a table of one row, as `ray_session.run_each` has it.
"""

from typing import Any

import numpy as np
import pyarrow as pa
from upath import UPath

from llm4msr import storage
from llm4msr.config import Config
from llm4msr.data import cuts, partition, partitions, report_counts, scan, split, work_files
from llm4msr.data.cuts import Bracket, Cuts
from llm4msr.data.raw_rows import RawRows
from llm4msr.data.scan import Scan

DONE = pa.table({"done": [1]})


def tell_points(job: pa.Table, folder_uri: str, config: Config, raw: RawRows, sought: str, known: Cuts) -> pa.Table:
    """The first round of finding a cut."""
    told = cuts.points(_cut_keys(job, config, raw, sought, known))
    return pa.table({"total": [told.total], "value": [told.value_M], "rank": [told.rank_M]})


def tell_within(
    job: pa.Table, folder_uri: str, config: Config, raw: RawRows, sought: str, known: Cuts, brackets: list[Bracket]
) -> pa.Table:
    """The second round, for each bracket."""
    key_N = _cut_keys(job, config, raw, sought, known)
    told = [cuts.within(key_N, low, high) for low, high in brackets]
    return pa.table({name: [[part[at] for part in told]] for at, name in enumerate(("below", "value", "count"))})


def _cut_keys(job: pa.Table, config: Config, raw: RawRows, sought: str, known: Cuts) -> np.ndarray[Any, Any]:
    if config.split.first_events:
        rows = split.choose(raw.read_interactions(_number(job)), config.split)
        order_R, row_R = rows.order_R, rows.row_R
    else:
        order_R, row_R = raw.read_orders(_number(job))
    return split.cut_keys(order_R, row_R, sought, known, config.split, config.seed)


def scan_partition(
    job: pa.Table, folder_uri: str, config: Config, raw: RawRows, known: Cuts, parts: int, has_users: bool
) -> pa.Table:
    """Look through a partition's rows; its pairs are written in row groups by a hash of the item."""
    folder, number = storage.path(folder_uri), _number(job)
    record = work_files.place(folder, "scans", number, "json")
    if record.exists():
        return DONE
    every, users = raw.read_interactions(number), raw.read_users(number)
    rows = split.divide(every, config.split, known, config.seed)
    user_ids = users["user_id"] if has_users else None
    counts = report_counts.count_rows(every, rows, user_ids, report_counts.FEW_IDS)
    held = scan.scan(rows, users, counts)
    work_files.write_pairs(work_files.place(folder, work_files.PAIRS, number), held.pairs, parts)
    work_files.write_json(record, _as_json(held))
    return DONE


def _as_json(held: Scan) -> dict[str, object]:
    return {
        "trained": held.trained,
        "users": held.users,
        "counts": held.counts.model_dump(),
        "contexts": {name: words.to_pydict() for name, words in held.contexts.items()},
        "features": {name: words.to_pydict() for name, words in held.features.items()},
    }


def merge_items(job: pa.Table, folder_uri: str, total: int) -> pa.Table:
    """Add the pairs of all partitions for one part of the items."""
    folder, part = storage.path(folder_uri), _number(job)
    merged = work_files.place(folder, "merged", part)
    if not merged.exists():
        files = [work_files.place(folder, work_files.PAIRS, number) for number in range(total)]
        pairs = scan.add_pairs([work_files.read_pairs(file, part) for file in files])
        storage.write_table(merged, work_files.pairs_table(pairs))
    return DONE


def build_partition(job: pa.Table, folder_uri: str, config: Config, raw: RawRows, known: Cuts) -> pa.Table:
    """Write a partition's tables, and the record of them."""
    folder, number = storage.path(folder_uri), _number(job)
    record = work_files.place(folder, "tables", number, "json")
    sums = work_files.place(folder, work_files.SUMS, number, "npz")
    if not (sums.exists() and _is_whole(folder, work_files.read_json(record))):
        place = partition.Place(number, job["earlier_users"][0].as_py(), job["earlier_trained"][0].as_py())
        every, users = raw.read_interactions(number), raw.read_users(number)
        rows = split.divide(every, config.split, known, config.seed)
        del every
        built = partition.build(rows, users, place, work_files.read_words(folder_uri), config)
        del rows
        files = partitions.write(folder, number, built.tables)
        work_files.write_sums(sums, built.sums)
        found = {"files": {name: file.model_dump() for name, file in files.items()}}
        work_files.write_json(record, found | {"splits": {n: s.model_dump() for n, s in built.splits.items()}})
    return DONE


def _is_whole(folder: UPath, record: dict[str, Any] | None) -> bool:
    """Whether an earlier run has finished all files of a partition, and they are as it left them."""
    return record is not None and all(
        (folder / name).exists() and storage.record_file(folder / name, file["rows"]).model_dump() == file
        for name, file in record["files"].items()
    )


def _number(job: pa.Table) -> int:
    return int(job["number"][0].as_py())
