"""What the runs of benchmarks.quality show: a Markdown report, a Parquet of all runs, and a picture."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy import stats

from benchmarks._machine import describe
from llm4msr.text import NONE, number
from llm4msr.training.metrics import Metrics
from llm4msr.training.popularity import BASELINES, CONSTANT, POPULARITY

CONTROLS = ("none", "feature", "shuffled", "random", "history")
PAPER = ("shared_bottom", "omoe", "mmoe", "ple", "aitm", "star")
SIGNIFICANT = 0.05
KNOWLEDGE_NOTE = (
    " `change` is the relative change of the mean AUC against the plain backbone (`none`), `p` that of a paired t-test "
    "over seeds against it; it knows the noise of training, not that of the choice of test rows. `read AUC` is over "
    "the test rows of users whom the LLM read. `feature` gives the user's code to the backbone as one more input, "
    "`shuffled` and `random` are `both` with other users' vectors and with noise; `history`, where it stands, is "
    "`both` with users pooled from random item vectors: what their histories bring without the LLM."
)


Baselines = dict[str, dict[str, Metrics]]
"""Data set -> `constant` and `popularity` -> overall metrics on the test rows, as `popularity.reports` gives them."""


def write(
    folder: Path,
    name: str,
    runs: list[dict[str, Any]],
    command: str,
    trials: int,
    about: dict[str, str],
    baselines: Baselines,
) -> None:
    """Write `name`.md, .parquet and .png to the folder, and print the Markdown; `about` says what each data set is."""
    folder.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(runs)
    table["system"] = [v.split("-")[-1] for v in table["variant"]]
    table.drop(columns="system").to_parquet(folder / f"{name}.parquet", index=False)
    text = report(name, table, command, trials, about, baselines)
    if (table["system"] != "none").any() and {*table["data"][table["system"] == "none"]} == {*table["data"]}:
        picture(folder / f"{name}.png", table)
        text = text.replace("\n\n", f"\n\n![Relative change of test AUC against the plain backbone]({name}.png)\n\n", 1)
    (folder / f"{name}.md").write_text(text)
    print(text, f"\n-> {folder / name}.md")


def report(
    name: str, table: pd.DataFrame, command: str, trials: int, about: dict[str, str], baselines: Baselines
) -> str:
    """The whole Markdown: verdicts first, then a table per data set, then how it was made."""
    parts = [f"# {name}", ""]
    for data in table["data"].unique().tolist():
        rows = table[table["data"] == data]
        parts += [f"## {data}", "", about[data], "", *_verdict(rows), *_losers(rows, baselines[data])]
        parts += [*_comparison(rows, baselines[data]), ""]
    seeds = sorted(table["seed"].unique().tolist())
    parts += [
        f"Test AUC at the best validation epoch, {_over(seeds)}; {_tuned(trials)}. `constant` is the share of "
        "positives of the scenario's training rows, `popularity` ranks by the item's positives in them."
        + (KNOWLEDGE_NOTE if (table["system"] != "none").any() else ""),
        "",
        f"Command: `{command}`. {describe()}. "
        f"CPU time of the training in this table: {table['train_cpu_seconds'].sum():.0f} s.",
        "",
    ]
    return "\n".join(parts)


def _over(seeds: list[int]) -> str:
    if len(seeds) == 1:
        return f"one seed ({seeds[0]})"
    return f"mean ± standard deviation over {len(seeds)} seeds ({', '.join(map(str, seeds))})"


def _tuned(trials: int) -> str:
    if trials < 2:
        return "every cell has the same learning rate and dropout, which were not tuned"
    return f"{trials} settings of learning rate and dropout were tried for every cell alike, judged on validation rows"


def _losers(rows: pd.DataFrame, baselines: dict[str, Metrics]) -> list[str]:
    """The cells that a baseline beats: nothing that is said of them means much."""
    means = rows.groupby(["backbone", "switch", "system"], sort=False)[["test_auc", "test_logloss"]].mean()
    auc, logloss = baselines[POPULARITY]["auc"], baselines[CONSTANT]["logloss"]
    lost = {
        f"item popularity in AUC ({number(auc)})": means["test_auc"] < (-np.inf if auc is None else auc),
        f"a constant in logloss ({number(logloss)})": means["test_logloss"] > (np.inf if logloss is None else logloss),
    }
    lines = [
        f"- **These lose to {what}**: {', '.join(' '.join(filter(None, cell)) for cell in means.index[where])}."
        for what, where in lost.items()
        if where.any()
    ]
    return [*lines, ""] if lines else []


def _comparison(rows: pd.DataFrame, baselines: dict[str, Metrics]) -> list[str]:
    """A line for each baseline and each system."""
    switches = rows["switch"].any()
    head = ["backbone", *(["switch"] if switches else []), "knowledge", "test AUC", "change", "p", "read AUC", "GAUC"]
    lines = [_line([*head, "logloss", "tuned rate, dropout"]), _line(["---"] * (len(head) + 2))]
    for name in BASELINES:
        auc, gauc, logloss = (number(baselines[name][metric]) for metric in ("auc", "gauc", "logloss"))
        lines.append(_line([NONE, *([NONE] if switches else []), name, auc, "", "", "", gauc, logloss, ""]))
    for names, cell in rows.groupby(["backbone", "switch", "system"], sort=False):
        backbone, switch, system = map(str, names)
        change, p = against(rows, cell, backbone)
        tuned = f"{cell['learning_rate'].iloc[0]:g}, {cell['dropout'].iloc[0]:g}"
        metrics = [_spread(cell.get(f"{m}")) for m in ("read_auc", "test_gauc", "test_logloss")]
        compared = [f"{100 * change:+.2f}%" if np.isfinite(change) else NONE, number(p, 3)]
        if system == "none":
            compared = ["", ""]
        labels = [backbone, *([switch] if switches else []), system]
        lines.append(_line([*labels, _spread(cell["test_auc"]), *compared, *metrics, tuned]))
    return lines


def against(rows: pd.DataFrame, cell: pd.DataFrame, backbone: str, other: str = "none") -> tuple[float, float]:
    """Relative change of the mean test AUC against another system of this backbone, and p of the paired t-test."""
    base = rows[(rows["backbone"] == backbone) & (rows["system"] == other)].set_index("seed")["test_auc"]
    base = base[~base.index.duplicated()]
    aucs = cell.set_index("seed")["test_auc"]
    pair = pd.concat([aucs, base], axis=1, join="inner").to_numpy(float)
    if not len(pair):
        return float("nan"), float("nan")
    p = float(stats.ttest_rel(pair[:, 0], pair[:, 1]).pvalue) if len(pair) > 1 else float("nan")
    return float(pair[:, 0].mean() / pair[:, 1].mean() - 1), p


def _verdict(rows: pd.DataFrame) -> list[str]:
    """Best against best, and on how many of the paper's backbones knowledge beats every control."""
    if not (rows["system"] != "none").any():
        return []
    means = rows.groupby(["backbone", "switch", "system"])["test_auc"].mean()
    is_plain = means.index.get_level_values("system") == "none"
    plain, ours = means[is_plain], means[means.index.get_level_values("system").isin(("user", "both"))]
    lines = []
    if len(plain) and len(ours):
        (plain_backbone, *_), (backbone, _, system) = (part.index.tolist()[part.argmax()] for part in (plain, ours))
        lines = [
            f"- Best plain backbone: {plain_backbone}, {plain.max():.4f}. Best with knowledge: {backbone} "
            f"with {system}, {ours.max():.4f} ({100 * (ours.max() / plain.max() - 1):+.2f}%)."
        ]
    if not len(plain):
        return ["- No plain model was trained beside these: nothing is said of what knowledge brings.", ""]
    present = [c for c in CONTROLS if (rows["system"] == c).any()]
    systems = [system for system in ("both", "user") if (rows["system"] == system).any()]
    if not systems:
        return lines
    papers = [b for b in PAPER if (rows["backbone"] == b).any()]
    counted = papers or list(rows["backbone"].unique())
    wins = {system: [b for b in counted if _beats(rows, b, system, present)] for system in systems}
    best = max(wins, key=lambda system: len(wins[system]))
    gains = [against(rows, _cell(rows, b, best), b)[0] for b in counted]
    lines.append(
        f"- `{best}` beats {', '.join(f'`{c}`' for c in present)} with p < {SIGNIFICANT} each on {len(wins[best])} of "
        f"{len(counted)} backbones{' of the paper' if papers else ''}"
        f"{': ' + ', '.join(wins[best]) if wins[best] else ''}; its mean change "
        f"against `none` is {100 * float(np.nanmean(gains)):+.2f}%."
    )
    if len(counted) > 1:
        lines.append(_over_backbones(rows, best, ["none", *(c for c in present if c != "none")], counted))
    return [*lines, ""]


def _over_backbones(rows: pd.DataFrame, system: str, others: list[str], backbones: list[str]) -> str:
    """Paired over the backbones' means: what the system adds, whatever the backbone."""
    means = rows.groupby(["system", "backbone"])["test_auc"].mean()
    differences = []
    for other in others:
        ours, theirs = (means[name].reindex(backbones).to_numpy() for name in (system, other))
        p = float(stats.ttest_rel(ours, theirs).pvalue)
        differences.append(f"`{other}` {(ours - theirs).mean():+.4f} (p = {p:.3f})")
    return f"- Paired over the means of {len(backbones)} backbones, `{system}` differs from {', '.join(differences)}."


def _beats(rows: pd.DataFrame, backbone: str, system: str, controls: Iterable[str]) -> bool:
    compared = [against(rows, _cell(rows, backbone, system), backbone, control) for control in controls]
    return all(change > 0 and p < SIGNIFICANT for change, p in compared)


def _cell(rows: pd.DataFrame, backbone: str, system: str) -> pd.DataFrame:
    selected = rows[(rows["backbone"] == backbone) & (rows["system"] == system)]
    return selected[selected["switch"] == selected["switch"].iloc[0]] if len(selected) else selected


def picture(file: Path, table: pd.DataFrame) -> None:
    """Change of the test AUC against the plain backbone with its 95% interval over seeds; a panel per data set."""
    sets = list(dict.fromkeys(table["data"]))
    figure, axes = plt.subplots(1, len(sets), figsize=(4.5 * len(sets) + 2, 5), squeeze=False)
    for axis, data in zip(axes[0], sets, strict=True):
        rows = table[table["data"] == data]
        rows = rows.assign(
            label=[" ".join(filter(None, pair)) for pair in zip(rows["backbone"], rows["switch"], strict=True)]
        )
        labels = list(dict.fromkeys(rows["label"]))
        systems = [s for s in dict.fromkeys(rows["system"]) if s != "none"]
        for at, system in enumerate(systems):
            cells = rows[rows["system"] == system].groupby("label", sort=False)
            points = [(labels.index(label), *_interval(rows, cell)) for label, cell in cells]
            y, mean, half = (np.array(column) for column in zip(*points, strict=True))
            shift = (at - (len(systems) - 1) / 2) * 0.8 / len(systems)
            axis.errorbar(100 * mean, y + shift, xerr=100 * half, fmt="o", markersize=4, capsize=2, label=system)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_yticks(range(len(labels)), labels)
        axis.invert_yaxis()
        axis.set_title(data)
        axis.set_xlabel("change of test AUC against the plain backbone, %")
    axes[0][-1].legend(loc="upper left", bbox_to_anchor=(1.02, 1.0))
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _interval(rows: pd.DataFrame, cell: pd.DataFrame) -> tuple[float, float]:
    """Mean over seeds of the relative change, and half the width of its 95% interval."""
    plain = rows[(rows["backbone"] == cell["backbone"].iloc[0]) & (rows["system"] == "none")]
    base = plain.drop_duplicates("seed").set_index("seed")["test_auc"]
    change = (cell.set_index("seed")["test_auc"] / base - 1).dropna().to_numpy()
    if len(change) < 2:
        return float(change.mean()) if len(change) else 0.0, 0.0
    return float(change.mean()), float(stats.t.ppf(0.975, len(change) - 1) * stats.sem(change))


def _spread(values: "pd.Series[float] | None") -> str:
    if values is None or values.isna().all():
        return NONE
    present = values.dropna().to_numpy(float)
    return f"{present.mean():.4f}" + (f" ± {present.std(ddof=1):.4f}" if len(present) > 1 else "")


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
