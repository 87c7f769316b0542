"""The result file of `train_throughput`: tables from what was measured, and which targets hold."""

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import numpy as np

from benchmarks._machine import describe

BATCH = 4096
EPOCHS, RATES, SEEDS = 2, (1e-3, 3e-3, 1e-2), (1, 2, 3)
"""Of the comparison at equal AUC."""
KNOWLEDGE_WIDTH = 576
ONEDNN = "float32, oneDNN's bfloat16 option"
FORMATS = ("float32", ONEDNN, "bfloat16")

Target = tuple[str, str, bool]


def report(results: dict[str, Any], command: str) -> str:
    """The result as Markdown."""
    sections: dict[str, Callable[[Any], tuple[str, list[Target]]]] = {
        "auc": _auc,
        "peer": _peer,
        "precision": _precision,
        "seeds": _seeds,
        "knowledge": _knowledge,
        "workers": _workers,
        "memory": _memory,
    }
    texts = [section(results[part]) for part, section in sections.items() if part in results]
    lines = [
        "# Training speed",
        "",
        _table(
            ["target", "measured", "held"],
            [(what, value, "yes" if held else "**no**") for _, targets in texts for what, value, held in targets],
        ),
        "",
        *(text for text, _ in texts),
        f"Command: `{command}`. {describe(('torch', 'numpy', 'pandas', 'pyarrow', 'ray'))} "
        "that other work shared while this was measured, so only numbers of one table may be compared. One thread "
        "everywhere. What is compared took turns; with more than one round, numbers are medians over rounds.",
        "",
    ]
    return "\n".join(lines)


def _auc(results: dict[str, Any]) -> tuple[str, list[Target]]:
    lines, targets = [], []
    for model, sides in results.items():
        for name, side in sides.items():
            means = [f"{np.mean(side[p]):.4f} ± {np.std(side[p], ddof=1):.4f}" for p in ("valid", "test")]
            lines.append((model, name, f"{side['rate']:g}", *means))
        ours, peer = (np.array(sides[name]["test"]) for name in ("ours", "peer"))
        noise = 2 * float(np.sqrt((ours.var(ddof=1) + peer.var(ddof=1)) / len(ours)))
        gap = float(ours.mean() - peer.mean())
        targets.append((f"{model}: test AUC not below the peer's", f"{gap:+.4f} (noise {noise:.4f})", gap > -noise))
    text = f"""## Equal AUC

MovieLens-1M by age, random 8:1:1, the same prepared rows for both, {EPOCHS} epochs, batch {BATCH}, the peer's sizes
(embeddings of 16; STAR 128, 64, 32 and 32 in the auxiliary network; MMoE three experts of 16, towers of 8; no dropout).
The learning rate of each side is the one of {", ".join(f"{rate:g}" for rate in RATES)} that is best on validation rows;
mean and deviation over {len(SEEDS)} seeds. Ours reads all genres of a film, the peer the first, as in its script.

{_table(["model", "code", "learning rate", "validation AUC", "test AUC"], lines)}
"""
    return text, targets


def _peer(results: dict[str, Any]) -> tuple[str, list[Target]]:
    lines, targets = [], []
    for label, at in results.items():
        bare = [sum(pair) / 2 for pair in zip(at["bare"][::2], at["bare"][1::2], strict=True)]
        ceiling = _ratio(at["ours"], bare)
        lines.append((label, "ours, the real path", _thousands(median(at["ours"])), ""))
        lines.append((label, "bare loop", _thousands(median(bare)), f"{ceiling:.2f}"))
        for pandas, rates in at["peers"].items():
            for workers, rate in rates.items():
                text = f"the peer, {pandas}, {workers} loader workers"
                lines.append((label, text, _thousands(median(rate)), f"{_ratio(at['ours'], rate):.1f}"))
            wanted = 30 if int(pandas.split()[1].split(".")[0]) > 1 else 10 if label.startswith("star") else 15
            least = min(_ratio(at["ours"], rate) for rate in rates.values())
            targets.append((f"{label}: {wanted} times the peer with {pandas}", f"{least:.2f}", least >= wanted))
        targets.append((f"{label}: 0.85 of the bare loop", f"{ceiling:.2f}", ceiling >= 0.85))
    text = f"""## Rows per CPU-second

Ours is `train(config)` with one worker, on Ray: Parquet in, and the validation rows with their metrics, the
checkpoint and the report of each epoch are paid by the training rows. The bare loop is the same net, loss and
optimizer over batches that were made before. Of the peer only its `train_one_epoch` is counted, loader included.
Rounds: {min(len(at["ours"]) for at in results.values())}.

{_table(["model", "what", "rows per CPU-second", "ours is .. times"], lines)}
"""
    return text, targets


def _precision(results: dict[str, Any]) -> tuple[str, list[Target]]:
    lines = []
    for backbone, forms in results.items():
        times = [f"{median(forms[form]):.1f}" for form in FORMATS]
        gains = [f"{_ratio(forms['float32'], forms[form]):.2f}" for form in FORMATS[1:]]
        lines.append((backbone, *times, *gains))
    text = f"""## Number formats

CPU milliseconds of a step of the loop at our default sizes without knowledge (rows looked up, ids hidden, forward,
backward, optimizer), batch {BATCH}, after warming up. `bfloat16` is `train.precision = "bfloat16"`. The last two
columns say how many times faster than float32 each is.

{_table(["backbone", *FORMATS, "the option", "bfloat16"], lines)}
"""
    return text, []


def _seeds(results: dict[str, Any]) -> tuple[str, list[Target]]:
    lines, targets = [], []
    for model, forms in results.items():
        for form, at in forms.items():
            means = [f"{np.mean(at[p]):.4f} ± {np.std(at[p], ddof=1):.4f}" for p in ("valid", "test")]
            lines.append((model, form, *means))
        exact, short = (np.array(forms[form]["test"]) for form in ("float32", "bfloat16"))
        noise = 2 * float(np.sqrt((exact.var(ddof=1) + short.var(ddof=1)) / len(exact)))
        gap = float(short.mean() - exact.mean())
        targets.append(
            (f"{model}: test AUC in bfloat16 as in float32", f"{gap:+.4f} (noise {noise:.4f})", gap > -noise)
        )
    text = f"""## AUC in float32 and in bfloat16

Our default sizes without knowledge, {EPOCHS} epochs, the same rows, {len(exact)} seeds of the training each.

{_table(["model", "products", "validation AUC", "test AUC"], lines)}
"""
    return text, targets


def _knowledge(results: dict[str, Any]) -> tuple[str, list[Target]]:
    lines, targets = [], []
    for backbone, uses in results.items():
        for use, spent in uses.items():
            ratio = _ratio(spent, uses["none"])
            lines.append((backbone, use, f"{median(spent):.1f}", f"{ratio:.2f}"))
            if use == "both":
                default = " (the default)" if backbone == "mmoe" else ""
                targets.append((f"{backbone}{default}: `both` costs at most 1.5 steps", f"{ratio:.2f}", ratio <= 1.5))
    text = f"""## Knowledge on and off

A step of the loop at our default sizes (rows looked up, ids hidden, forward, backward, optimizer), MovieLens-1M by age,
batch {BATCH}, with vectors of width {KNOWLEDGE_WIDTH} for every user.

{_table(["backbone", "knowledge", "CPU ms a step", "to none"], lines)}
"""
    return text, targets


def _workers(results: dict[str, Any]) -> tuple[str, list[Target]]:
    lines, targets = [], []
    for name, rates in results.items():
        worth = 2 * _ratio(rates["2"], rates["1"])
        lines += [(name, count, _thousands(median(values))) for count, values in rates.items()]
        targets.append((f"{name}: 2 workers are worth 1.7", f"{worth:.2f}", worth >= 1.7))
    text = f"""## Workers

Ray Train, one thread each, our default sizes without knowledge, one global batch of {BATCH}. The cores were short, so
what counts is how much CPU the rows cost: two workers are worth twice the ratio of these numbers.
Rounds: {min(len(rates["2"]) for rates in results.values())}.

{_table(["backbone", "workers", "rows per CPU-second of all workers"], lines)}
"""
    return text, targets


def _memory(results: list[dict[str, Any]]) -> tuple[str, list[Target]]:
    lines = [(f"{at['rows']:,}", f"{at['valid']:,}", at["before"], at["after"]) for at in results]
    million, most = results[1]["after"], results[2]["after"]
    flat = ("resident memory flat from 1e6 to 1e7 rows", f"{million} to {most} MiB", most <= 1.1 * million)
    text = f"""## Memory

Peak resident MiB of a process that trains one epoch on generated rows, after a first step and after the epoch. Training
rows are read a window at a time; scores of the validation rows are kept for the AUC, so memory grows with those.

{_table(["training rows", "validation rows", "first step", "epoch"], lines)}
"""
    return text, [flat]


def _table(head: list[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _ratio(ones: Sequence[float], others: Sequence[float]) -> float:
    """Median over rounds."""
    return median(one / other for one, other in zip(ones, others, strict=True))


def _thousands(rate: float) -> str:
    return f"{rate / 1000:.1f}k"
