"""Rows that failed, counted by kind: a few scenarios that all fail are a small part of all rows, and too many."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from upath import UPath

from llm4msr import storage
from llm4msr.config import Config
from llm4msr.errors import TooManyFailedError
from llm4msr.knowledge.engines import Task
from llm4msr.knowledge.index import NOTHING_LIKED
from llm4msr.knowledge.shards import SHARD_FOLDERS, Counts
from llm4msr.knowledge.work import Work
from llm4msr.storage import StageOutput
from llm4msr.text import shorten


def refuse_failures(config: Config, folder: UPath, done: Mapping[Task, Mapping[str, Counts]], work: Work) -> None:
    """Compare each kind's failures with what is allowed of that kind, in both passes.

    Raises:
        TooManyFailedError: there are more in a kind; the message names each such kind and its first failure.
    """
    allowed, problems = config.extract.max_failed_fraction, []
    for task, shards in done.items():
        for kind in sorted({name.partition("-")[0] for name in shards}):
            of_kind = {name: counts for name, counts in shards.items() if name.startswith(f"{kind}-")}
            failed = sum(counts.failed - counts.empty for counts in of_kind.values())
            rows = work.kept.get(kind, 0) + sum(counts.rows for counts in of_kind.values())
            if failed > allowed * rows:
                first = _first_error(folder / SHARD_FOLDERS[task], of_kind)
                problems.append(f"{failed} of {rows} {kind} failed; first: {first}")
    if problems:
        raise TooManyFailedError(
            f"{folder}: {'. '.join(dict.fromkeys(problems))}. extract.max_failed_fraction allows {allowed:g} of each "
            "kind; good shards are kept: run again to retry the others"
        )


def _first_error(folder: UPath, shards: Mapping[str, Counts]) -> str:
    bad = min(name for name, counts in shards.items() if counts.failed > counts.empty)
    table = storage.read_table(folder / bad, ["raw_id", "error"]).to_pylist()
    first = next(row for row in table if row["error"] not in ("", NOTHING_LIKED))
    return f"'{shorten(first['raw_id'])}' in {bad}: {first['error']}"


def refuse_failed_rows(config: Config, output: StageOutput) -> None:
    """Compare the failures of an extraction that is finished already with what is allowed now.

    Raises:
        TooManyFailedError: more rows of a kind had failed than is allowed now.
    """
    allowed = config.extract.max_failed_fraction
    for kind, rows in output.manifest.info.get("by_kind", {}).items():
        if rows["failed"] > allowed * rows["rows"]:
            raise TooManyFailedError(
                f"{output.folder}: {rows['failed']} of {rows['rows']} {kind} had failed when this was made, which is "
                "more than extract.max_failed_fraction allows now; delete that folder to ask again"
            )


def total(sealed: Iterable[dict[str, Any]]) -> dict[str, int]:
    """Rows of one kind by how they ended, from the summaries of its index files."""
    counts = Counter({"rows": 0, "failed": 0, "empty": 0})
    for summary in sealed:
        counts.update({name: summary[name] for name in counts})
    return dict(counts)
