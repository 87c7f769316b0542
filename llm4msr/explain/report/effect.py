"""The results: this model on the test rows beside a plain one, item popularity and a constant.

Of what knowledge brings nothing is said unless the plain model, the same backbone with the same seeds, is trained.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from llm4msr.arrays import Bools, Floats
from llm4msr.explain.ablation import Levels
from llm4msr.explain.opened_run import Opened, Seed
from llm4msr.explain.report.bootstrap import Draws, Interval, chosen
from llm4msr.explain.report.layers import levels_of
from llm4msr.text import count_of, percent, shorten, signed
from llm4msr.training import metrics, popularity
from llm4msr.training.loop import predict
from llm4msr.training.metrics import Predictions
from llm4msr.training.popularity import Popularity
from llm4msr.training.results import PLAIN, UNKNOWN, results, shown

NEW = 5
"""A user with fewer training rows is new."""


@dataclass(frozen=True)
class Row:
    """AUC of some test rows; None where they have one class only, or there is no plain model."""

    kind: str
    scenario: int | None
    """Its number, where these are the rows of one."""
    name: str
    rows: int
    popularity: float | None
    plain: Interval | None
    own: Interval | None
    gain: Interval | None


@dataclass(frozen=True)
class EffectSection:
    """What the page shows."""

    headline: str
    detail: str
    """For which rows the difference is clear, and what to mind."""
    results: dict[str, Any]
    """As `results.results` gives them: of the baselines, the plain model if there is one, and this model, the last."""
    rows: list[Row]
    seeds: list[int]
    tested: int
    """Test rows that the intervals are of."""

    @property
    def plain(self) -> bool:
        """Whether a plain model of every seed is trained."""
        return PLAIN in self.results["runs"]

    @property
    def own(self) -> str:
        """The variant of this model."""
        return list(self.results["runs"])[-1]

    def table(self) -> pd.DataFrame:
        """A row per group of test rows."""
        columns: dict[str, list[object]] = {
            "kind": [row.kind for row in self.rows],
            "scenario": [row.scenario for row in self.rows],
            "rows_of": [row.name for row in self.rows],
            "rows": [row.rows for row in self.rows],
            "auc_popularity": [row.popularity for row in self.rows],
        }
        for name, attribute in (("plain", "plain"), ("own", "own"), ("difference", "gain")):
            cells = [getattr(row, attribute) or Interval(np.nan, np.nan, np.nan) for row in self.rows]
            columns[f"auc_{name}"] = [cell.value for cell in cells]
            columns |= {f"auc_{name}_low": [c.low for c in cells], f"auc_{name}_high": [c.high for c in cells]}
        return pd.DataFrame(columns).astype({"scenario": "Int64"})


class Scored(NamedTuple):
    """Logits [B] of all test rows: of each seed's model with each level in and out, and of its plain model."""

    levels: list[Levels]
    plain: list[Floats]
    """Empty unless the plain model of every seed is trained."""


def score(run: Opened, done: Callable[[str], None]) -> Scored:
    """Score the test rows; `done` is told of each seed."""
    levels, plain = [], []
    for seed in run.seeds:
        first, batch_size = seed is run.seeds[0], seed.own.config.train.batch_size
        net, data = (run.net, run.data) if first else seed.own.load()
        levels.append(levels_of(net, data, batch_size))
        if seed.plain is not None:
            bare, rows = seed.plain.load()
            plain.append(predict(bare, rows, rows.rows("test"), batch_size).logit.astype(np.float64))
        done(f"scored seed {seed.own.config.seed}")
    return Scored(levels, plain if len(plain) == len(levels) else [])


def effect_section(run: Opened, scored: Scored) -> EffectSection:
    """What the logits say."""
    found = _results(run, scored)
    chosen_B = chosen(run.test["user"].to_numpy())
    test = run.test[chosen_B]
    own_SB = np.stack([one.both[chosen_B] for one in scored.levels])
    plain_SB = np.stack([logit[chosen_B] for logit in scored.plain]) if scored.plain else None
    popular = Popularity.read(run.prepared, len(run.scenario_names))
    popular_B = popular.scores(test["scenario"].to_numpy(), test["item"].to_numpy())
    draws, label_B = Draws(test["user"].to_numpy(), len(scored.levels)), test["label"].to_numpy() > 0.5
    rows = []
    for kind, number, name, here_B in row_groups(run, test):
        beside = metrics.auc(label_B[here_B], popular_B[here_B])
        compared = draws.compare(label_B, plain_SB, own_SB, here_B)
        rows.append(Row(kind, number, name, int(here_B.sum()), beside, *compared))
    seeds = [seed.own.config.seed for seed in run.seeds]
    return EffectSection(_headline(run.seeds, found, rows[0]), _detail(rows), found, rows, seeds, len(test))


def _results(run: Opened, scored: Scored) -> dict[str, Any]:
    """Means over the seeds on all test rows, as `evaluate` has them."""
    names = run.data.scenario_names
    user_B, scenario_B, label_B = (run.test[name].to_numpy() for name in ("user", "scenario", "label"))

    def reports(logits: list[Floats]) -> list[dict[str, Any]]:
        seeds = [seed.own.config.seed for seed in run.seeds]
        made = [metrics.report(Predictions(user_B, scenario_B, label_B, logit_B), names) for logit_B in logits]
        return [{"seed": seed, **one} for seed, one in zip(seeds, made, strict=True)]

    runs = {PLAIN: reports(scored.plain)} if scored.plain else {}
    runs[run.config.model.variant] = reports([one.both for one in scored.levels])
    beside = popularity.reports(run.prepared, "test", names)
    read = int(run.users["known"].to_numpy()[user_B].sum()), len(run.test)
    return results(runs, {name: [one] for name, one in beside.items()}, read)


def row_groups(run: Opened, test: pd.DataFrame) -> list[tuple[str, int | None, str, Bools]]:
    """Kind, scenario number, name and rows of each group: all, each scenario, each activity, each spread."""
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


def _headline(seeds: Sequence[Seed], found: dict[str, Any], overall: Row) -> str:
    """The numbers of both models, or what is to be trained before anything can be said."""
    own = list(found["runs"])[-1]
    missing = [str(seed.own.config.seed) for seed in seeds if seed.plain is None]
    if missing:
        return (
            "Nothing can be said here of what knowledge brings: the plain model (none), with the same backbone and "
            f"seed, is not trained for seed {', '.join(missing)}. Train it: llm4msr train CONFIG --set "
            f"model.knowledge=none --set model.control=none --set seed={missing[0]}; then llm4msr explain CONFIG again."
        )
    mine, plain, gain = found["summary"][own]["overall"], found["summary"][PLAIN]["overall"], found["against_none"][own]
    told = "; ".join(
        f"{label} {shown(mine[metric])} ({own}) and {shown(plain[metric])} (plain), difference "
        f"{shown(gain[metric], sign=True)}"
        for metric, label in (("auc", "Test AUC"), ("gauc", "GAUC"))
    )
    read = count_of(found["test_rows_of_users_with_knowledge"], found["test_rows"])
    over = f"± is the standard deviation over {len(seeds)} seeds."
    if len(seeds) == 1:
        over = "One seed was trained, and another may move the difference as far: one below 0.005 says little."
    return f"{told}. Test rows of users with knowledge: {read}. {over}{_interval(overall.gain)}"


def _interval(gain: Interval | None) -> str:
    if gain is None:
        return ""
    told = f" 95% interval of the difference in AUC: {signed(gain.low)} to {signed(gain.high)}"
    return f"{told}." if gain.clear else f"{told}, which holds zero: this test cannot tell it from noise."


def _detail(rows: list[Row]) -> str:
    """For which groups of rows the two models differ."""
    looked = [(row, row.gain) for row in rows[1:] if row.gain is not None]
    if not looked:
        return ""
    clear = [(abs(gain.value), row.name) for row, gain in looked if gain.clear]
    told = f"Of {len(looked)} groups of rows, {len(clear) or 'none'} differ{'s' * (len(clear) < 2)} clearly"
    if clear:
        told += f"{', most of all' if len(clear) > 1 else ':'} “{shorten(max(clear)[1])}”"
        told += "; by chance alone about one in twenty would"
    return f"{told}."
