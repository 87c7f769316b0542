"""The results: this model on the test rows beside a plain one, item popularity and a constant.

Nothing is said of what knowledge brings unless the plain model, the same backbone with the same seeds, is trained.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from llm4msr.arrays import Bools, Floats
from llm4msr.explain.ablation import Levels
from llm4msr.explain.finished_run import FinishedRun, ModelPair
from llm4msr.explain.report.bootstrap import Draws, Interval, sample_users
from llm4msr.explain.report.layers import score_test_levels
from llm4msr.explain.report.tables import Table
from llm4msr.text import count_of, percent, shorten, signed
from llm4msr.training import metrics, popularity
from llm4msr.training.metrics import Metric, Predictions
from llm4msr.training.popularity import Popularity
from llm4msr.training.results import PLAIN, UNKNOWN, Results, SeedReport, compare, format_spread
from llm4msr.training.scoring import predict

NEW = 5
"""A user with fewer training rows is new."""


@dataclass(frozen=True)
class GroupAuc:
    """AUC of a group of test rows; None where they have one class only, or there is no plain model."""

    kind: str
    scenario: int | None
    """Its number if these are the rows of one scenario."""
    name: str
    rows: int
    popularity: float | None
    plain: Interval | None
    model: Interval | None
    gain: Interval | None


@dataclass(frozen=True)
class EffectSection:
    """What the page shows."""

    headline: str
    detail: str
    """In which groups of rows the difference is clear."""
    results: Results
    """As `training.results` gives them, this model last."""
    rows: list[GroupAuc]
    seeds: list[int]
    tested: int
    """Number of test rows behind the intervals."""

    @property
    def has_plain(self) -> bool:
        """Whether a plain model of every seed is trained."""
        return PLAIN in self.results["runs"]

    @property
    def variant(self) -> str:
        """The variant of this model."""
        return list(self.results["runs"])[-1]

    def tables(self) -> dict[str, Table]:
        """One row per group of test rows."""
        columns: dict[str, list[object]] = {
            "kind": [row.kind for row in self.rows],
            "scenario": [row.scenario for row in self.rows],
            "rows_of": [row.name for row in self.rows],
            "rows": [row.rows for row in self.rows],
            "auc_popularity": [row.popularity for row in self.rows],
        }
        for name, attribute in (("plain", "plain"), ("own", "model"), ("difference", "gain")):
            cells = [getattr(row, attribute) or Interval(np.nan, np.nan, np.nan) for row in self.rows]
            columns[f"auc_{name}"] = [cell.value for cell in cells]
            columns |= {f"auc_{name}_low": [c.low for c in cells], f"auc_{name}_high": [c.high for c in cells]}
        description = "AUC of this model, of the plain one where it is trained, and of item popularity, with intervals"
        return {"effect.csv": Table(description, pd.DataFrame(columns).astype({"scenario": "Int64"}))}


class Logits(NamedTuple):
    """Logits, float64 [B], of all test rows, a place per seed."""

    levels: list[Levels]
    """Of this model, with each level in and out."""
    plain: list[Floats]
    """Empty unless the plain model of every seed is trained."""


def score_test_rows(run: FinishedRun, report_progress: Callable[[str], None]) -> Logits:
    """Score the run's test rows with the models of all seeds."""
    levels, plain = [], []
    for pair in run.pairs:
        config = pair.model.config
        net, data = (run.net, run.data) if pair is run.pairs[0] else pair.model.load()
        levels.append(score_test_levels(net, data, config.train.batch_size, run.partitions))
        if pair.plain is not None:
            plain_net, data = pair.plain.load()
            rows, size = data.rows("test"), config.train.batch_size
            parts = [predict(plain_net, data, rows, size, partition).logit for partition in run.partitions]
            plain.append(np.concatenate(parts).astype(np.float64))
        report_progress(f"scored seed {config.seed}")
    return Logits(levels, plain if len(plain) == len(levels) else [])


def effect_section(run: FinishedRun, logits: Logits) -> EffectSection:
    """The table of models, and the AUC of each group of test rows."""
    results = _results(run, logits)
    sample_B = sample_users(run.test["user"].to_numpy())
    test = run.test[sample_B]
    model_SB = np.stack([levels.both[sample_B] for levels in logits.levels])
    plain_SB = np.stack([logit_B[sample_B] for logit_B in logits.plain]) if logits.plain else None
    popular = Popularity.read(run.prepared, len(run.scenario_names))
    popular_B = popular.scores(test["scenario"].to_numpy(), test["item"].to_numpy())
    draws, label_B = Draws(test["user"].to_numpy(), len(logits.levels)), test["label"].to_numpy() > 0.5
    rows = []
    for kind, number, name, mask_B in row_groups(run, test):
        popularity_auc = metrics.auc(label_B[mask_B], popular_B[mask_B])
        comparison = draws.compare(label_B, plain_SB, model_SB, mask_B)
        rows.append(GroupAuc(kind, number, name, int(mask_B.sum()), popularity_auc, *comparison))
    seeds = [pair.model.config.seed for pair in run.pairs]
    return EffectSection(_headline(run.pairs, results, rows[0].gain), _detail(rows), results, rows, seeds, len(test))


def _results(run: FinishedRun, logits: Logits) -> Results:
    """Means over the seeds on the run's test rows, as `evaluate` computes them of all."""
    names = run.data.scenario_names
    user_B, scenario_B, label_B = (run.test[name].to_numpy() for name in ("user", "scenario", "label"))

    def reports(logits_SB: list[Floats]) -> list[SeedReport]:
        return [
            {
                "seed": pair.model.config.seed,
                **metrics.report(Predictions(user_B, scenario_B, label_B, logit_B), names),
            }
            for pair, logit_B in zip(run.pairs, logits_SB, strict=True)
        ]

    runs = {PLAIN: reports(logits.plain)} if logits.plain else {}
    runs[run.config.model.variant] = reports([levels.both for levels in logits.levels])
    baselines = popularity.reports(run.prepared, "test", names, run.partitions)
    read = int(run.users["known"].to_numpy()[user_B].sum()), len(run.test)
    return compare(runs, {name: [report] for name, report in baselines.items()}, read)


def row_groups(run: FinishedRun, test: pd.DataFrame) -> list[tuple[str, int | None, str, Bools]]:
    """Kind, scenario number, name and mask [B] of each group: all rows, each scenario, each activity, each spread."""
    rows_B = run.users["rows"].to_numpy()[test["user"]]
    outside_B = run.users["outside"].to_numpy()[test["user"]]
    scenario_B = test["scenario"].to_numpy()
    groups: list[tuple[str, int | None, str, Bools]] = [("overall", None, "all test rows", np.ones(len(test), bool))]
    names = {number: run.scenario_names[number] if number else UNKNOWN for number in np.unique(scenario_B).tolist()}
    groups += [("scenario", number, name, scenario_B == number) for number, name in names.items()]
    seen = run.users["rows"][run.users["rows"] >= NEW]
    middle = int(seen.median()) if len(seen) else NEW
    groups += [
        ("activity", None, f"new (under {NEW} training rows)", rows_B < NEW),
        ("activity", None, f"light ({NEW} to {middle})", (rows_B >= NEW) & (rows_B <= middle)),
        ("activity", None, f"heavy (over {middle})", rows_B > max(middle, NEW - 1)),
    ]
    spread = run.users["outside"][run.users["outside"] > 0]
    half = float(spread.median()) if len(spread) else 0.0
    met_B = rows_B > 0
    groups += [
        ("overlap", None, "one scenario only", met_B & (outside_B == 0)),
        ("overlap", None, f"up to {percent(half)} of rows elsewhere", (outside_B > 0) & (outside_B <= half)),
        ("overlap", None, f"over {percent(half)} elsewhere", outside_B > half),
    ]
    return groups


def _headline(pairs: Sequence[ModelPair], results: Results, gain: Interval | None) -> str:
    """The numbers of both models, or what to train before anything can be said."""
    variant = list(results["runs"])[-1]
    missing = [str(pair.model.config.seed) for pair in pairs if pair.plain is None]
    if missing:
        return (
            "Nothing can be said here of what knowledge brings: the plain model (none), with the same backbone and "
            f"seed, is not trained for seed {', '.join(missing)}. Train it: llm4msr train CONFIG --set "
            f"model.knowledge=none --set model.control=none --set seed={missing[0]}; then llm4msr explain CONFIG again."
        )
    model, plain = (results["summary"][name]["overall"] for name in (variant, PLAIN))
    difference = results["against_none"][variant]
    labels: tuple[tuple[Metric, str], ...] = (("auc", "Test AUC"), ("gauc", "GAUC"))
    numbers = "; ".join(
        f"{label} {format_spread(model[metric])} ({variant}) and {format_spread(plain[metric])} (plain), difference "
        f"{format_spread(difference[metric], sign=True)}"
        for metric, label in labels
    )
    read = count_of(results["test_rows_of_users_with_knowledge"], results["test_rows"])
    note = f"± is the standard deviation over {len(pairs)} seeds."
    if len(pairs) == 1:
        note = "One seed was trained, and another may move the difference as far: one below 0.005 says little."
    return f"{numbers}. Test rows of users with knowledge: {read}. {note}{_interval(gain)}"


def _interval(gain: Interval | None) -> str:
    if gain is None:
        return ""
    text = f" 95% interval of the difference in AUC: {signed(gain.low)} to {signed(gain.high)}"
    return f"{text}." if gain.clear else f"{text}, which holds zero: this test cannot tell it from noise."


def _detail(rows: list[GroupAuc]) -> str:
    """In how many groups of rows the two models clearly differ, and in which most."""
    gains = [(row.gain, row.name) for row in rows[1:] if row.gain is not None]
    if not gains:
        return ""
    clear = [(abs(gain.value), name) for gain, name in gains if gain.clear]
    text = f"Of {len(gains)} groups of rows, {len(clear) or 'none'} differ{'s' * (len(clear) < 2)} clearly"
    if clear:
        text += f"{', most of all' if len(clear) > 1 else ':'} “{shorten(max(clear)[1])}”"
        text += "; by chance alone about one in twenty would"
    return f"{text}."
