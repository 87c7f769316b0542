"""The result file of `data_scale`: tables from what was measured, and which targets hold."""

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks._machine import describe

Record = dict[str, Any]
GIB = 1 << 30


def report(records: Sequence[Record]) -> str:
    """The result as Markdown."""
    sections = {"prepare": _prepare, "ml-100k": _movielens}
    parts = [
        section([record for record in records if record["stage"] == stage])
        for stage, section in sections.items()
        if any(record["stage"] == stage for record in records)
    ]
    return "\n".join(["# The data plane: rows, seconds and memory", "", *parts, _how()])


def _prepare(records: Sequence[Record]) -> str:
    records = sorted(records, key=lambda r: (r["negatives"], r["by"], r["rows"]))
    lines = []
    for before, record in zip([None, *records], records, strict=False):
        same = before and all(before[key] == record[key] for key in ("by", "negatives"))
        lines.append((_kind(record), *_figures(record, before if same else None)))
    heads = ("", "rows", "CPU s", "microseconds of a further row", "wall s", *MEMORY)
    return f"""## `prepare`

Rows of ten an average user, eight scenarios, 100,000 items; split by time, so that a tenth validates and a tenth tests.
With negatives all rows are positives, and so many items are drawn for each. polars and duckdb are programs of the same
tables in one thread, without checks, report, or a way to go on after an interruption. A further row is one beyond the
line above.

{table(heads, lines)}
"""


MEMORY = ("all processes, peak GiB", "the first one", "the largest of the others")


def _kind(record: Record) -> str:
    return record["by"] + (f", {record['negatives']} negatives a row" if record["negatives"] else "")


def _figures(record: Record, before: Record | None) -> Iterable[str]:
    yield f"{record['rows']:,}"
    yield f"{record['cpu_seconds']:.1f}"
    yield (
        f"{1e6 * (record['cpu_seconds'] - before['cpu_seconds']) / (record['rows'] - before['rows']):.1f}"
        if before
        else ""
    )
    yield f"{record['wall_seconds']:.0f}"
    yield from (f"{record[key] / GIB:.2f}" for key in ("peak", "first_peak", "largest_other"))


def _further(record: Record, before: Record) -> float:
    """Microseconds of a row beyond those of `before`."""
    return 1e6 * (record["cpu_seconds"] - before["cpu_seconds"]) / (record["rows"] - before["rows"])


def _movielens(records: Sequence[Record]) -> str:
    (record,) = records
    seconds = f"{record['cpu_seconds']:.2f} CPU-seconds, of which {record['again']:.2f} are work"
    return f"""MovieLens-100K, as a user runs it: {seconds}, and the rest is loading Python's modules;
{record["peak"] / GIB:.2f} GiB.
"""


def _how() -> str:
    return f"""CPU-seconds are user and system time of all processes that a stage starts. Memory is what they hold at
one moment, what they share counted once (PSS, so Ray's object store is in it); of a single process, the highest
resident memory. It is looked at five times a second.

`python -m benchmarks.data_scale` on {describe(("ray", "torch", "numpy", "pyarrow", "polars", "duckdb"))}.
"""


def table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Markdown, numbers to the right."""
    rows = [heads, ["---", *["---:"] * (len(heads) - 1)], *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
