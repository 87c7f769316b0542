"""The result file of `data_scale`: tables from what was measured, and which targets hold."""

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks._machine import describe

Record = dict[str, Any]
GIB = 1 << 30


def report(records: Sequence[Record]) -> str:
    """The result as Markdown."""
    sections = {"prepare": _prepare, "daily": _daily, "ml-100k": _movielens, "batches": _batches, "train": _train}
    parts = [
        section([record for record in records if record["stage"] == stage])
        for stage, section in sections.items()
        if any(record["stage"] == stage for record in records)
    ]
    return "\n".join(["# The data plane: rows, seconds and memory", "", *parts, _drivers(records), _how()])


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
    yield f"{_further(record, before):.1f}" if before else ""
    yield f"{record['wall_seconds']:.0f}"
    yield from (f"{record[key] / GIB:.2f}" for key in ("peak", "first_peak", "largest_other"))


def _further(record: Record, before: Record) -> float:
    """Microseconds of a row beyond those of `before`."""
    return 1e6 * (record["cpu_seconds"] - before["cpu_seconds"]) / (record["rows"] - before["rows"])


def _daily(records: Sequence[Record]) -> str:
    lines = [
        (
            f"{record['rows']:,}",
            f"{record['day']:,}",
            *(f"{seconds:.1f}" for seconds in record["cpu"]),
            *(f"{peak / GIB:.2f}" for peak in record["peaks"][:2]),
            "to the byte" if record["equal"] else "**no**",
        )
        for record in sorted(records, key=lambda r: r["rows"])
    ]
    heads = ("rows", "of the new day", "CPU s before it", "with it", "all at once", "GiB before it", "with it", "equal")
    return f"""## A new day

`prepare` of all files but the last, then with the last one, whose rows alone are shuffled; and of all files in an empty
storage, whose tables are compared with those of the second run.

{table(heads, lines)}
"""


def _movielens(records: Sequence[Record]) -> str:
    (record,) = records
    seconds = f"{record['cpu_seconds']:.2f} CPU-seconds, of which {record['again']:.2f} are work"
    return f"""MovieLens-100K, as a user runs it: {seconds}, and the rest is loading Python's modules;
{record["peak"] / GIB:.2f} GiB.
"""


def _batches(records: Sequence[Record]) -> str:
    lines = []
    for record in sorted(records, key=lambda r: (r["rows"], r["workers"])):
        read = record["read"]
        lines.append(
            (
                f"{record['rows']:,}",
                f"{record['workers']}",
                f"{record['batches']:,}",
                f"`{record['digest']}`",
                f"{max(read['bytes']) / 1e6:,.1f}",
                f"{1e6 * sum(read['cpu_seconds']) / sum(read['rows']):.2f}",
                f"{max(read['peak']) / GIB:.2f}",
            )
        )
    heads = (
        "rows",
        "workers",
        "global batches",
        "hash of all",
        "MB read by a worker",
        "CPU microseconds a row",
        "peak GiB",
    )
    return f"""## What a training worker reads

An epoch of the training rows (eight tenths), read in its order and not trained on, in global batches of 16,384. The
hash is of the numbers of every row of every global batch, in the order of the batches; of a single worker the bytes and
the peak of its resident memory, torch included.

{table(heads, lines)}
"""


def _train(records: Sequence[Record]) -> str:
    lines, records = [], [record for record in records if "workers" in record]
    for record in sorted(records, key=lambda r: (r["rows"], r["workers"])):
        (one,) = [r for r in records if r["rows"] == record["rows"] and r["workers"] == 1]
        lines.append(
            (
                f"{record['rows']:,}",
                f"{record['workers']}",
                f"{record['rows_per_cpu_second']:,.0f}",
                f"{record['rows_per_cpu_second'] / one['rows_per_cpu_second']:.2f}",
                f"{record['rows_per_second']:,.0f}",
                f"{record['rows_per_second'] / one['rows_per_second']:.2f}",
                *(f"{record[key] / GIB:.2f}" for key in ("peak", "first_peak", "largest_other")),
            )
        )
    heads = ("rows", "workers", "rows per CPU-second", "to 1", "rows per second", "to 1", *MEMORY)
    return f"""## `train`

An epoch of our default model without knowledge, global batches of 16,384, one thread a worker; rows per CPU-second of a
worker's process and rows of all workers per second are of training steps alone.

{table(heads, lines)}
"""


DRIVER = ("first_peak", "largest_other", "largest_own", "peak")


def _drivers(records: Sequence[Record]) -> str:
    records = [
        r for r in records if "first_peak" in r and r.get("by", "llm4msr") == "llm4msr" and r["stage"] != "ml-100k"
    ]
    order = {stage: number for number, stage in enumerate(dict.fromkeys(r["stage"] for r in records))}
    lines = [
        (
            f"`{r['stage']}`"
            + "".join(f", {r[key]} {key}" for key in ("negatives", "workers", "knowledge") if r.get(key)),
            f"{r['rows']:,}",
            f"{r['cpu_seconds']:.0f}",
            *(f"{r[key] / GIB:.2f}" if key in r else "" for key in DRIVER),
        )
        for r in sorted(
            records, key=lambda r: (order[r["stage"]], r.get("negatives", 0), r.get("workers", 0), r["rows"])
        )
    ]
    heads = ("stage", "rows", "CPU s", "driver, peak GiB", "largest other", "of it no file's", "all processes")
    return f"""## The driver's memory

{table(heads, lines)}
"""


def _how() -> str:
    return f"""CPU-seconds are user and system time of all processes that a stage starts. Memory is what they hold at
one moment, what they share counted once (PSS, so Ray's object store is in it); of a single process, the highest
resident memory. *No file's* is without the pages of mapped files, such as users' vectors, which the kernel takes back
when it needs memory; earlier runs did not measure it. It is looked at five times a second. Other work shared the cores,
which makes CPU-seconds more and wall seconds many more.

`python -m benchmarks.data_scale` on {describe(("ray", "torch", "numpy", "pyarrow", "polars", "duckdb"))}.
"""


def table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Markdown, numbers to the right."""
    rows = [heads, ["---", *["---:"] * (len(heads) - 1)], *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
