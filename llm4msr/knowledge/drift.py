"""Statistics of scenarios from version to version: where they moved little, a prompt keeps those that the LLM has read.

Each scenario's prompt holds counts and shares, which one new user moves. So a version keeps the statistics of its
prompts in `scenarios.parquet`, and the next one takes them over within `extract.scenario_tolerance`. New statistics are
compared with those that the LLM has read, not with yesterday's, so that many small moves do not add up unseen.
"""

import contextlib
from collections.abc import Iterable, Iterator
from itertools import islice

import pyarrow as pa
from upath import UPath

from llm4msr import storage
from llm4msr.arrays import typed_rows
from llm4msr.errors import StorageError
from llm4msr.schema import ScenarioStatistics

FILE = "scenarios.parquet"
EARLIER_VERSIONS = 8
"""Earlier versions that are looked into, the newest first."""


def read_earlier(folder: UPath, versions: Iterable[str]) -> Iterator[pa.Table]:
    """The statistics that the version in `folder` has, where it is made again, and those of `versions` beside it.

    Damaged ones are left out: the scenarios are asked about again.
    """
    if (folder / FILE).exists():
        with contextlib.suppress(StorageError):
            yield storage.read_table(folder / FILE)
    for name in versions:
        with contextlib.suppress(StorageError):
            output = storage.open_output(folder.parent / name)
            if output and FILE in output.manifest.files:
                yield output.table(FILE)


def keep_steady(new: pa.Table, versions: Iterable[pa.Table], tolerance: float) -> tuple[pa.Table, int]:
    """A table of `schema.SCENARIOS` for the prompts, and in how many rows it has statistics of an earlier version.

    Args:
        new: the statistics of the data.
        versions: those of earlier versions, the newest first.
        tolerance: of a count relative to the old one, of a share absolute; 0 always takes the new ones.
    """
    if not tolerance:
        return new, 0
    before: dict[str, list[ScenarioStatistics]] = {}
    for table in islice(versions, EARLIER_VERSIONS):
        for row in typed_rows(table, ScenarioStatistics):
            before.setdefault(row["scenario_id"], []).append(row)
    rows: list[ScenarioStatistics] = []
    kept = 0
    for row in typed_rows(new, ScenarioStatistics):
        near = next((old for old in before.get(row["scenario_id"], []) if are_alike(old, row, tolerance)), row)
        renumbered: ScenarioStatistics = {**near, "scenario": row["scenario"]}
        kept += renumbered != row
        rows.append(renumbered)
    return pa.Table.from_pylist(rows, new.schema), kept


def are_alike(old: ScenarioStatistics, new: ScenarioStatistics, tolerance: float) -> bool:
    """Whether counts and shares are within the tolerance, and half of the named titles and categories the same."""
    room = tolerance + 1e-9
    counts, new_counts = ((row["interactions"], row["users"], row["items"]) for row in (old, new))
    shared, new_shared = (
        {other["scenario_id"]: other["fraction"] for other in row["shared_users"]} for row in (old, new)
    )
    return (
        all(abs(after - before) <= room * max(before, 1) for before, after in zip(counts, new_counts, strict=True))
        and abs(new["positive_rate"] - old["positive_rate"]) <= room
        and all(abs(new_shared.get(other, 0.0) - shared.get(other, 0.0)) <= room for other in shared | new_shared)
        and _half_alike(old["categories"], new["categories"])
        and _half_alike(old["titles"], new["titles"])
    )


def _half_alike(old: list[str], new: list[str]) -> bool:
    return 2 * len(set(old) & set(new)) >= max(len(set(old)), len(set(new)))
