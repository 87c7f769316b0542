"""Data of several partitions, prepared by Ray: one shuffle, and passes over the partitions.

Nothing that grows with users or rows comes to this process. Each pass finds what an earlier run has finished, so that a
run that was killed goes on with the partitions that were being worked on.
"""

from functools import reduce
from itertools import accumulate, chain
from operator import add
from typing import Any

import numpy as np
import pyarrow as pa
from upath import UPath

from llm4msr import ray_session, storage
from llm4msr.config import Config
from llm4msr.data import (
    catalogue,
    cuts,
    here,
    partition_tasks,
    partitions,
    report_figures,
    scan,
    scenarios,
    segments,
    split,
    vocabularies,
    work_files,
)
from llm4msr.data.cuts import Bracket, Cut, Cuts, Points, Rank, Within
from llm4msr.data.here import Files
from llm4msr.data.raw_rows import RawRows
from llm4msr.data.reading.raw_data import RawData
from llm4msr.data.report import Split
from llm4msr.data.report_counts import RowCounts
from llm4msr.data.report_figures import PromptSampler
from llm4msr.progress import track

ITEM_PARTS = 16
"""Parts in which the items of all partitions are brought together, at most."""
FEW_USERS = 1_000_000
"""Described users that ids without a description are compared with, to find another spelling."""


@ray_session.unwrap_errors
def prepare(raw: RawData, config: Config, sample_prompt: PromptSampler, total: int, folder: UPath) -> Files:
    """Write all tables below `folder`, in so many partitions.

    Raises:
        DataError: the source is wrong, no id is described, or a split is empty.
    """
    ray_session.connect()
    rows = RawRows(
        segments.shuffle_rows("interactions", raw.interactions, config, total),
        segments.shuffle_rows("users", raw.users, config, total),
    )
    passes = _Passes(config, rows, total, folder)
    known = split.find_cuts(config.split, passes.ask)
    parts = min(total, ITEM_PARTS)
    passes.run("look through", partition_tasks.scan_partition, known=known, parts=parts, has_users=raw.users.rows > 0)
    scans = [work_files.read_json(work_files.place(folder, "scans", number, "json")) for number in range(total)]
    counts = reduce(add, (RowCounts.model_validate(one["counts"]) for one in scans))
    passes.run("merge items", partition_tasks.merge_items, count=parts, total=total)
    pairs = scan.add_pairs([work_files.read_pairs(work_files.place(folder, "merged", part)) for part in range(parts)])
    user_ids = _some_user_ids(raw) if raw.users.rows else pa.array([], pa.string())
    described = report_figures.describe(config, counts, user_ids, pairs, raw.items)
    split.require_rows(counts.splits, counts.orders, config.split)
    here.require_rest(pairs, config)
    least = config.split.min_value_count
    words = (
        {name: catalogue.vocabulary(_words(scans, "features", name), least) for name in raw.user_features},
        {name: catalogue.vocabulary(_words(scans, "contexts", name), least) for name in raw.context},
    )
    vocabulary = vocabularies.build(pairs, raw.items, raw.item_features, words, config)
    files = {work_files.ITEMS: storage.write_table(folder / work_files.ITEMS, vocabulary.items)}
    work_files.write_words(folder, vocabulary)
    passes.run("partitions", partition_tasks.build_partition, jobs=_jobs(scans), known=known)
    records = [work_files.read_json(work_files.place(folder, "tables", number, "json")) for number in range(total)]
    for record in records:
        files |= {name: storage.FileRecord.model_validate(file) for name, file in record["files"].items()}
    splits = {
        name: reduce(add, (Split.model_validate(record["splits"][name]) for record in records)) for name in split.SPLITS
    }
    files_of_sums = (work_files.place(folder, work_files.SUMS, number, "npz") for number in range(total))
    sums = reduce(scenarios.add_sums, map(work_files.read_sums, files_of_sums))
    statistics = here.statistics(pairs, vocabulary, sums)
    files["scenarios.parquet"] = storage.write_table(folder / "scenarios.parquet", statistics)
    histories = storage.read_table(folder / partitions.file_name("histories", 0))  # the sample is of one partition
    sample = sample_prompt({"histories": histories, "items": vocabulary.items}, vocabulary.item)
    report = report_figures.build(counts, described, splits, pairs, raw.items, vocabulary.items, sample)
    names = tuple(segments.name(segment) for segment in chain(*rows))
    return Files(files, vocabulary.fields(sum(one["trained"] for one in scans)), report, names)


def _some_user_ids(raw: RawData) -> Any:
    ids, rows = [], 0
    for table in raw.users.tables():
        ids += table["user_id"].chunks
        rows += len(table)
        if rows >= FEW_USERS:
            break
    return pa.chunked_array(ids, pa.string())


class _Passes:
    """Passes of tasks over all partitions."""

    def __init__(self, config: Config, rows: RawRows, total: int, folder: UPath):
        self.config, self.rows, self.total, self.folder = config, rows, total, folder

    def run(
        self, name: str, task: Any, count: int = 0, jobs: list[dict[str, int]] | None = None, **shared: Any
    ) -> list[dict[str, Any]]:
        """What the task returns for each job; jobs are by default the partitions' numbers."""
        jobs = jobs or [{"number": number} for number in range(count or self.total)]
        if task is not partition_tasks.merge_items:
            shared |= {"config": self.config, "raw": self.rows}
        with track(f"prepare: {name}", len(jobs)) as progress:
            results = []
            for result in ray_session.run_each(task, jobs, folder_uri=str(self.folder), **shared):
                results.append(result)
                progress.advance(1)
        return results

    def ask(self, sought: str, known: Cuts, ranks: list[Rank]) -> list[Cut]:
        """The values of some ranks over all partitions."""

        def tell_points() -> list[Points]:
            told = self.run(f"cuts ({sought})", partition_tasks.tell_points, sought=sought, known=known)
            return [Points(one["total"], _ints(one["value"]), _ints(one["rank"])) for one in told]

        def tell_within(brackets: list[Bracket]) -> list[list[Within]]:
            told = self.run(
                f"cuts ({sought}), exact", partition_tasks.tell_within, sought=sought, known=known, brackets=brackets
            )
            return [
                [
                    Within(below, _ints(value), _ints(count))
                    for below, value, count in zip(one["below"], one["value"], one["count"], strict=True)
                ]
                for one in told
            ]

        return cuts.find(ranks, tell_points, tell_within)


def _ints(values: list[int]) -> Any:
    return np.array(values, np.int64)


def _words(scans: list[dict[str, Any]], kind: str, name: str) -> list[pa.Table]:
    return [pa.table(one[kind][name], schema=catalogue.WORDS) for one in scans]


def _jobs(scans: list[dict[str, Any]]) -> list[dict[str, int]]:
    """The partitions' numbers, with the users of earlier ones."""
    users = accumulate((one["users"] for one in scans), initial=1)  # the unknown user is the first
    trained = accumulate((one["trained"] for one in scans), initial=0)
    return [
        {"number": number, "earlier_users": earlier if number else 0, "earlier_trained": earlier_trained}
        for number, earlier, earlier_trained in zip(range(len(scans)), users, trained, strict=False)
    ]
