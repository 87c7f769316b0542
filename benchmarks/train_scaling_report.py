"""The result file of `train_scaling`: tables from what was measured, and which targets hold."""

from collections.abc import Sequence
from statistics import mean, median
from typing import Any

from benchmarks._machine import described

WORKERS = (1, 2, 4)
SEEDS = (1, 2, 3)
BATCHES = (4096, 16384)
NEAR, EFFICIENT = 0.002, 0.85
"""Targets: of the AUC's distance to one worker's, and of a worker's rows per CPU-second at four against at one."""


def report(found: dict[str, Any]) -> str:
    """The result as Markdown."""
    sections = {"auc": _auc, "steps": _steps}
    return "\n".join(
        [
            "# Training on several workers",
            "",
            *(section(found[part]) for part, section in sections.items() if part in found),
            f"Command: `python -m benchmarks.train_scaling`. {described(('torch', 'numpy', 'pyarrow', 'ray'))}, one "
            "thread a worker.",
            "",
        ]
    )


def _auc(found: dict[str, Any]) -> str:
    one = {seed: found["1"][str(seed)] for seed in SEEDS}
    lines = []
    for kind, aucs in found.items():
        gaps = [aucs[str(seed)] - one[seed] for seed in SEEDS]
        held = "" if kind == "1" else "yes" if abs(mean(gaps)) <= NEAR else "**no**"
        name = "1, sparse gradients" if kind == "sparse" else kind
        each = ", ".join(f"{gap:+.4f}" for gap in gaps)
        mean_auc = mean(aucs[str(seed)] for seed in SEEDS)
        lines.append((name, f"{mean_auc:.4f}", f"{mean(gaps):+.4f}", each, held))
    head = ("workers", "test AUC", "to one worker", "seed by seed", f"within {NEAR}")
    return f"""## The same model

MovieLens-100K as in `configs/ml-100k.toml`, without knowledge, Ray Train, {len(SEEDS)} seeds. Each worker draws its own
dropout, so a seed's model is not the same to the bit; the seeds of one worker lie {_spread(one):.4f} apart (highest
less lowest).

{_table(head, lines)}
"""


def _spread(aucs: dict[int, float]) -> float:
    return max(aucs.values()) - min(aucs.values())


def _steps(found: dict[str, Any]) -> str:
    lines = []
    for batch, kinds in found.items():
        rates = {kind: median(values) for kind, values in kinds.items()}
        for kind, rate in rates.items():
            shares = [f"{rate / rates[base]:.2f}" for base in ("1", "1 beside")]
            held = ("yes" if rate >= EFFICIENT * rates["1"] else "**no**") if kind == "4" else ""
            name = "1, the same work beside it" if kind == "1 beside" else kind
            lines.append((f"{int(batch):,}", name, f"{rate / 1000:.1f}k", *shares, held))
    head = ("global batch", "workers", "rows per CPU-second", "to 1", "to 1 with company", f"{EFFICIENT} of 1")
    rounds = len(next(iter(next(iter(found.values())).values())))
    return f"""## What a worker's rows cost

Ray Train, our default model without knowledge (MMoE), generated rows with 6,000 users and 4,000 items; training steps
alone, without start, validation and checkpoints. CPU-seconds of all workers' processes together, so a number is what
one worker gets done in a CPU-second. Cores that share caches and clock slow each other down, whoever uses them: one
worker was measured alone and beside a process that trains the same. Medians; rounds: {rounds}.

{_table(head, lines)}
"""


def _table(head: tuple[str, ...], lines: Sequence[tuple[str, ...]]) -> str:
    rows = [head, tuple("---" if i == 0 else "---:" for i in range(len(head))), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
