"""The result file of `train_scaling`: tables from what was measured, and which targets hold."""

from collections.abc import Sequence
from statistics import mean, median, stdev
from typing import Any

from benchmarks._machine import describe

WORKERS = (1, 2, 4)
NO_DROPOUT, SPARSE = " without dropout", "1 with sparse gradients"
BATCHES = (4096, 16384)
NEAR, EFFICIENT = 0.002, 0.85
"""Targets: of the AUC's distance to one worker's, and of a worker's rows per CPU-second at four against at one."""


def report(results: dict[str, Any]) -> str:
    """The result as Markdown."""
    sections = {"auc": _auc, "steps": _steps}
    return "\n".join(
        [
            "# Training on several workers",
            "",
            *(section(results[part]) for part, section in sections.items() if part in results),
            f"Command: `python -m benchmarks.train_scaling`. {describe(('torch', 'numpy', 'pyarrow', 'ray'))}, one "
            "thread a worker.",
            "",
        ]
    )


def _auc(results: dict[str, Any]) -> str:
    parts = [f"`train.patience = {patience}`:\n\n{_aucs(kinds)}\n" for patience, kinds in results.items()]
    return f"""## The same model

MovieLens-100K as in `configs/ml-100k.toml`, without knowledge, at most 20 epochs, Ray Train. Without dropout a seed's
models differ by the order in which floats are added. With dropout each worker draws its own, so they differ as models
of two seeds do; the mean of the differences has its standard error. With patience 2, the config's, there is more chance
in it: seed 3 has a plateau in epochs 5 to 8 (without dropout, validation AUC goes from 0.78430 to 0.78423 with one
worker, from 0.78429 to 0.78431 with two), which ends some runs there and lets others go on to their best in epoch 13.

{chr(10).join(parts)}"""


def _aucs(results: dict[str, Any]) -> str:
    lines = []
    for kind, aucs in results.items():
        base = results["1" + NO_DROPOUT * kind.endswith(NO_DROPOUT)]
        gaps = [auc - base[seed] for seed, auc in aucs.items()]
        error = stdev(gaps) / len(gaps) ** 0.5
        gap = "" if aucs is base else f"{mean(gaps):+.4f} ± {error:.4f}"
        held = "" if aucs is base else "yes" if abs(mean(gaps)) <= NEAR else "**no**"
        lines.append((kind, f"{mean(aucs.values()):.4f}", gap, held, " ".join(f"{auc:.4f}" for auc in aucs.values())))
    head = ("workers", "mean test AUC", "less one worker's", f"within {NEAR}", "seed by seed")
    return _table(head, lines)


def _steps(results: dict[str, Any]) -> str:
    lines = []
    for batch, kinds in results.items():
        rates = {kind: median(values) for kind, values in kinds.items()}
        for kind, rate in rates.items():
            shares = [f"{rate / rates[base]:.2f}" for base in ("1", "1 beside")]
            held = ("yes" if rate >= EFFICIENT * rates["1"] else "**no**") if kind == "4" else ""
            name = "1, the same work beside it" if kind == "1 beside" else kind
            lines.append((f"{int(batch):,}", name, f"{rate / 1000:.1f}k", *shares, held))
    head = ("global batch", "workers", "rows per CPU-second", "to 1", "to 1 with company", f"{EFFICIENT} of 1")
    rounds = len(next(iter(next(iter(results.values())).values())))
    return f"""## What a worker's rows cost

Ray Train, our default model without knowledge (MMoE), generated rows with 6,000 users and 4,000 items; training steps
alone, without start, validation and checkpoints. CPU-seconds of all workers' processes together, so a number is what
one worker gets done in a CPU-second. Cores that share caches and clock slow each other down, whoever uses them: one
worker was measured alone and beside a process that trains the same. Medians; rounds: {rounds}.

{_table(head, lines)}

Where it goes with a million users' embeddings ([data-scale](data-scale.md)), global batches of 16,384 and four workers,
looked at once, in CPU milliseconds of a worker's step: 49, where a quarter of one worker's 129 would be 32. Forward and
backward take 31 instead of 25, since the calls of small layers cost the same for fewer rows; to bring rows that others
own up to date 7 instead of 3; to add up gradients, which one worker does not have to, 6. Of these 13, gloo's threads,
which copy through TCP, take 6. The optimizer takes a quarter, as it should.
"""


def _table(head: tuple[str, ...], lines: Sequence[tuple[str, ...]]) -> str:
    rows = [head, tuple("---" if i == 0 else "---:" for i in range(len(head))), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
