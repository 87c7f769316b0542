"""What the runs of benchmarks.quality show: a Markdown report, a Parquet of all runs, and a picture."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks._machine import describe
from benchmarks.quality_picture import picture
from benchmarks.quality_significance import SIGNIFICANT, compare, gain, holm, paired
from llm4msr.text import NONE, number
from llm4msr.training.metrics import Metrics
from llm4msr.training.popularity import BASELINES, CONSTANT, POPULARITY

METRICS = {"test_gauc": "GAUC", "test_ndcg_at_10": "NDCG@10", "test_logloss": "logloss"}
NOTE = (
    "`none` is the plain backbone and `din` target attention over item ids, which knows no text. `user`, `scenario`, "
    "`both` and `feature` are where knowledge enters (docs/config.md: model.knowledge), `match` the candidate beside "
    "the past (docs/matching.md), `contrast` the same with another `extract.projection`, of one draw of pairs for all "
    "seeds; behind `@` stands what items' vectors are: `random` numbers, `shuffled` among the items, or counts of "
    "`words` (`words128` has as many numbers as `match@llm+words`, and begins with as many as `contrast@llm+words`). "
    "Against each control: the relative change of the "
    "mean AUC; p of a paired t-test over the backbones' means; and on how many backbones the system is above with p < "
    f"{SIGNIFICANT} in a paired t-test over seeds. All p are corrected for the number of tests in their table (Holm). "
    "A test over seeds knows the noise of training, not that of the choice of test rows."
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
    """Write `name`.md, .parquet and .svg to the folder, and print the Markdown; `about` says what each data set is."""
    folder.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(runs)
    table.to_parquet(folder / f"{name}.parquet", index=False)
    text = report(name, table, command, trials, about, baselines)
    if len({*table["data"][table["system"] == "none"]} & {*table["data"][table["system"] != "none"]}):
        picture(folder / f"{name}.svg", table)
        text = text.replace("\n\n", f"\n\n![Relative change of test AUC against the plain backbone]({name}.svg)\n\n", 1)
    (folder / f"{name}.md").write_text(text)
    print(text, f"\n-> {folder / name}.md")


def write_readings(
    folder: Path, name: str, runs: list[dict[str, Any]], command: str, about: dict[str, str], base: str = "llm"
) -> None:
    """The same for a grid that is judged by validation rows: each way to make the vectors beside the one of `base`."""
    folder.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(runs)
    table.to_parquet(folder / f"{name}.parquet", index=False)
    parts = [f"# {name}", ""]
    for data, rows in table.groupby("data", sort=False):
        lines = _readings(rows.pivot_table(index=["backbone", "seed"], columns="system", values="valid_auc"), base)
        parts += [f"## {data}", "", about[str(data)], "", *lines, ""]
    parts += [
        f"AUC of the validation rows at the best epoch, {_over(sorted({*table['seed']}))}; the test rows were not "
        "looked at. `@` names what items' vectors are (benchmarks/quality_grids.py); the change is that of the mean "
        f"against the same form `@{base}`, p of a paired t-test over seeds, corrected for the number of tests (Holm).",
        "",
        f"Command: `{command}`. {describe()}.",
        "",
    ]
    (folder / f"{name}.md").write_text("\n".join(parts))
    print("\n".join(parts), f"\n-> {folder / name}.md")


def _readings(aucs: pd.DataFrame, base: str) -> list[str]:
    """A line for each system."""
    pairs = {one: f"{one.partition('@')[0]}@{base}" for one in aucs.columns}
    pairs = {one: other for one, other in pairs.items() if one != other and other in aucs.columns and "@" in one}
    p = dict(zip(pairs, holm(np.array([paired(aucs[[one, other]]) for one, other in pairs.items()])), strict=True))
    lines = [_line(["system", "validation AUC", "change", "p"]), _line(["---"] * 4)]
    for one in aucs.columns:
        beside = [f"{100 * gain(aucs[[one, pairs[one]]]):+.2f}%", f"{p[one]:.3f}"] if one in pairs else ["", ""]
        lines.append(_line([str(one), _spread(aucs[one]), *beside]))
    return lines


def report(
    name: str, table: pd.DataFrame, command: str, trials: int, about: dict[str, str], baselines: Baselines
) -> str:
    """The whole Markdown: for each data set what beats what, and its metrics; then how it was made."""
    parts = [f"# {name}", ""]
    for data in table["data"].unique().tolist():
        rows = table[table["data"] == data]
        parts += [f"## {data}", "", about[data], "", *_losers(rows, baselines[data]), *_comparisons(rows)]
        parts += [*_metrics(rows, baselines[data]), "", *_slices(rows), ""]
    seeds = sorted(table["seed"].unique().tolist())
    parts += [
        f"Test AUC at the best validation epoch, {_over(seeds)}; {_tuned(trials)}. `constant` is the share of "
        "positives of the scenario's training rows, `popularity` ranks by the item's positives in them.",
        "",
        *([NOTE, ""] if (table["system"] != "none").any() else []),
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
    means = rows.groupby(["backbone", "system"], sort=False)[["test_auc", "test_logloss"]].mean()
    auc, logloss = baselines[POPULARITY]["auc"], baselines[CONSTANT]["logloss"]
    lost = {
        f"item popularity in AUC ({number(auc)})": means["test_auc"] < (-np.inf if auc is None else auc),
        f"a constant in logloss ({number(logloss)})": means["test_logloss"] > (np.inf if logloss is None else logloss),
    }
    lines = [
        f"- **These lose to {what}**: {', '.join(' '.join(cell) for cell in means.index[where])}."
        for what, where in lost.items()
        if where.any()
    ]
    return [*lines, ""] if lines else []


# --- what beats what ----------------------------------------------------------------------------------------------


def _comparisons(rows: pd.DataFrame) -> list[str]:
    """A line for each system, with a column for each kind of control."""
    table = compare(rows)
    if not len(table):
        plain = (rows["system"] == "none").all() or (rows["system"] == "none").any()
        return [] if plain else ["No plain model was trained beside these: nothing is said of what they bring.", ""]
    table["kind"] = [*map(_kind, table["system"], table["control"])]
    kinds = table["kind"].unique().tolist()
    lines = [_line(["against", *kinds]), _line(["---"] * (1 + len(kinds)))]
    for system, own in table.groupby("system", sort=False):
        cells = {one.kind: _compared(one, rows["seed"].nunique()) for one in own.itertuples()}
        lines.append(_line([str(system), *(cells.get(kind, "") for kind in kinds)]))
    return [*lines, ""]


def _kind(system: str, control: str) -> str:
    """What the control is, whatever the form of both."""
    form, _, vectors = control.rpartition("@")
    return form.rpartition("+")[2] if form and vectors == system.rpartition("@")[2] else vectors


def _compared(one: Any, seeds: int) -> str:
    p = f", p = {one.p:.3f}" if np.isfinite(one.p) else ""
    wins = f", {one.wins}/{one.backbones}" if seeds > 1 else ""
    return f"{100 * one.change:+.2f}%{p}{wins}"


# --- metrics ------------------------------------------------------------------------------------------------------


def _metrics(rows: pd.DataFrame, baselines: dict[str, Metrics]) -> list[str]:
    """A line for each baseline and each system: AUC on each backbone, and the means of other metrics over them."""
    backbones = rows["backbone"].unique().tolist()
    head = ["test AUC", *backbones, *METRICS.values()]
    lines = [_line(head), _line(["---"] * len(head))]
    for name in BASELINES:
        values: dict[str, Any] = {**baselines[name]}
        auc, *others = (number(values[key]) for key in ("auc", "gauc", "ndcg_at_10", "logloss"))
        lines.append(_line([name, *[auc] * len(backbones), *others]))
    for system, own in rows.groupby("system", sort=False):
        aucs = [_spread(own[own["backbone"] == backbone]["test_auc"]) for backbone in backbones]
        lines.append(_line([str(system), *aucs, *(number(_mean(own[metric])) for metric in METRICS)]))
    return lines


def _slices(rows: pd.DataFrame) -> list[str]:
    """A line for each system: the mean AUC over backbones and seeds, of each slice of the test rows."""
    auc = pd.DataFrame(rows["slice_auc"].tolist(), index=rows.index)
    lines = [_line(["AUC of", *auc.columns]), _line(["---"] * (1 + len(auc.columns)))]
    for system, own in auc.groupby(rows["system"], sort=False):
        lines.append(_line([str(system), *(number(_mean(own[name])) for name in auc.columns)]))
    return lines


def _mean(values: "pd.Series[float]") -> float | None:
    return None if values.isna().all() else float(values.astype(float).mean())


def _spread(values: "pd.Series[float]") -> str:
    present = values.dropna().to_numpy(float)
    if not len(present):
        return NONE
    return f"{present.mean():.4f}" + (f" ± {present.std(ddof=1):.4f}" if len(present) > 1 else "")


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
