"""The effect: test AUC with and without knowledge, for whom it rises, and what each level does.

Intervals are 95% ranges of a bootstrap that draws users again, since rows of one user are not independent, and, where
there are several, seeds.

Shape suffixes: B test rows, N users, R draws, S seeds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from llm4msr.batches import to_batch
from llm4msr.fit import Data, predict
from llm4msr.ranker import RankerNet
from llm4msr.report.ablation import Levels, by_level
from llm4msr.report.opened import Opened, Seed
from llm4msr.text import shortened, signed

DRAWS = 300
MAX_ROWS = 200_000
"""Test rows of so many are looked at, of users drawn at random."""
NEW = 5
"""A user with fewer training rows is new."""

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


class Interval(NamedTuple):
    """A number and the range that holds it with 95%."""

    value: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether zero lies outside."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Row:
    """AUC of some test rows without and with knowledge; None where they have one class only."""

    kind: str
    name: str
    rows: int
    without: Interval | None
    with_: Interval | None
    gain: Interval | None


@dataclass(frozen=True)
class Part:
    """What the levels do to the logits of a scenario's test rows: mean absolute parts."""

    name: str
    user: float
    own: float
    """Of the user level: what is the users' own."""
    scenario: float


@dataclass(frozen=True)
class EffectSection:
    """What the page shows."""

    headline: str
    detail: str
    """For which rows the difference is clear, and what to mind."""
    rows: list[Row]
    parts: list[Part]
    ablated: list[tuple[str, float | None]]
    """AUC of the same net with levels left out, the mean over the seeds."""
    seeds: list[int]
    plain: bool
    """Whether `without` is a plain backbone trained beside the model; else the model with its levels left out."""
    tested: int
    """Test rows that were looked at."""

    def table(self) -> pd.DataFrame:
        """A row per group of test rows."""
        columns: dict[str, list[object]] = {
            "kind": [r.kind for r in self.rows],
            "rows_of": [r.name for r in self.rows],
            "rows": [r.rows for r in self.rows],
        }
        for name, attribute in (("without", "without"), ("with", "with_"), ("difference", "gain")):
            cells = [getattr(row, attribute) or Interval(np.nan, np.nan, np.nan) for row in self.rows]
            columns[f"auc_{name}"] = [cell.value for cell in cells]
            columns |= {f"auc_{name}_low": [c.low for c in cells], f"auc_{name}_high": [c.high for c in cells]}
        return pd.DataFrame(columns)


class Scored(NamedTuple):
    """Test rows of one seed: logits with each level in and out, and those of the plain backbone."""

    levels: Levels
    plain: Floats | None


def effect_section(run: Opened, done: Callable[[str], None]) -> tuple[EffectSection, Levels]:
    """The section, and the first seed's logits of all test rows; `done` is told of each seed."""
    scored = []
    for seed in run.seeds:
        scored.append(_score(run, seed))
        done(f"scored seed {seed.own.config.seed}")
    plain = all(one.plain is not None for one in scored)
    chosen_B = _chosen(run.test["user"].to_numpy())
    test = run.test[chosen_B]
    with_SB = np.stack([one.levels.both[chosen_B] for one in scored])
    without = [one.plain if plain and one.plain is not None else one.levels.none for one in scored]
    without_SB = np.stack([logits[chosen_B] for logits in without])
    draws = Draws(test["user"].to_numpy(), len(scored))
    label_B = test["label"].to_numpy() > 0.5
    rows = []
    for kind, name, here_B in row_groups(run, test):
        intervals = draws.compare(label_B, without_SB, with_SB, here_B)
        rows.append(Row(kind, name, int(here_B.sum()), *intervals))
    section = EffectSection(
        headline=_headline(rows[0].gain, plain),
        detail=_detail(rows, len(scored), plain),
        rows=rows,
        parts=_parts(run, scored[0].levels),
        ablated=_ablated(run, scored),
        seeds=[seed.own.config.seed for seed in run.seeds],
        plain=plain,
        tested=len(test),
    )
    return section, scored[0].levels


def row_groups(run: Opened, test: pd.DataFrame) -> list[tuple[str, str, Bools]]:
    """Kind, name and rows of each group: all, each scenario, each activity, each spread over scenarios."""
    rows_B = run.users["rows"].to_numpy()[test["user"]]
    outside_B = run.users["outside"].to_numpy()[test["user"]]
    scenario_B = test["scenario"].to_numpy()
    groups: list[tuple[str, str, Bools]] = [("overall", "all test rows", np.ones(len(test), bool))]
    groups += [("scenario", n, scenario_B == i) for i, n in enumerate(run.scenario_names) if (scenario_B == i).any()]
    seen = run.users["rows"][run.users["rows"] >= NEW]
    middle = int(seen.median()) if len(seen) else NEW
    groups += [
        ("activity", f"new (under {NEW} training rows)", rows_B < NEW),
        ("activity", f"light ({NEW} to {middle})", (rows_B >= NEW) & (rows_B <= middle)),
        ("activity", f"heavy (over {middle})", rows_B > max(middle, NEW - 1)),
    ]
    spread = run.users["outside"][run.users["outside"] > 0]
    half = float(spread.median()) if len(spread) else 0.0
    met_B = rows_B > 0
    groups += [
        ("overlap", "one scenario only", met_B & (outside_B == 0)),
        ("overlap", f"up to {half:.0%} of rows elsewhere", (outside_B > 0) & (outside_B <= half)),
        ("overlap", f"over {half:.0%} elsewhere", outside_B > half),
    ]
    return groups


class Draws:
    """Bootstrap draws of the users of these rows and of the seeds, the same for all groups of rows."""

    def __init__(self, user_B: npt.NDArray[np.int64], seeds: int, draws: int = DRAWS):
        users, self.owner_B = np.unique(user_B, return_inverse=True)
        rng = np.random.default_rng(0)
        self.times_RN = rng.multinomial(len(users), np.full(len(users), 1 / len(users)), draws).astype(np.float32)
        self.seeds_RS = rng.multinomial(seeds, np.full(seeds, 1 / seeds), draws) / seeds

    def compare(
        self, label_B: Bools, without_SB: Floats, with_SB: Floats, here_B: Bools
    ) -> tuple[Interval | None, Interval | None, Interval | None]:
        """AUC without, AUC with, and the difference, each the mean over seeds with its interval."""
        label = label_B[here_B]
        if not label.any() or label.all():
            return None, None, None
        times_RB = self.times_RN[:, self.owner_B[here_B]]
        seen, drawn = [], []
        for logit_SB in (without_SB, with_SB):
            aucs = [weighted_auc(label, logit[here_B], times_RB) for logit in logit_SB]
            seen.append(np.mean([weighted_auc(label, logit[here_B], np.ones((1, len(label)))) for logit in logit_SB]))
            drawn.append((np.stack(aucs, axis=1) * self.seeds_RS).sum(1))
        ranges = [*zip(seen, drawn, strict=True), (seen[1] - seen[0], drawn[1] - drawn[0])]
        without, with_, gain = (Interval(float(v), *_percentiles(d)) for v, d in ranges)
        return without, with_, gain


def weighted_auc(label_B: Bools, logit_B: Floats, weight_RB: npt.NDArray[np.floating]) -> Floats:
    """[R]: AUC, ties counting half, of rows that count as often as each draw says; NaN with one class only."""
    order = np.argsort(logit_B, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(logit_B[order]) > 0])
    found = np.empty(len(weight_RB))
    for r, weight_B in enumerate(weight_RB):
        sorted_B = weight_B[order].astype(np.float64)
        positive = np.add.reduceat(np.where(label_B[order], sorted_B, 0.0), starts)
        negative = np.add.reduceat(np.where(label_B[order], 0.0, sorted_B), starts)
        pairs = positive.sum() * negative.sum()
        below = np.cumsum(negative) - negative / 2
        found[r] = (positive * below).sum() / pairs if pairs else np.nan
    return found


def _percentiles(draws_R: Floats) -> tuple[float, float]:
    low, high = np.nanpercentile(draws_R, [2.5, 97.5])
    return float(low), float(high)


def _chosen(user_B: npt.NDArray[np.int64]) -> Bools:
    """All rows, or those of users drawn at random until there are about `MAX_ROWS`."""
    if len(user_B) <= MAX_ROWS:
        return np.ones(len(user_B), bool)
    users, owner_B, count = np.unique(user_B, return_inverse=True, return_counts=True)
    order = np.random.default_rng(0).permutation(len(users))
    kept = np.zeros(len(users), bool)
    kept[order[: np.searchsorted(np.cumsum(count[order]), MAX_ROWS) + 1]] = True
    return np.asarray(kept[owner_B], bool)


def _score(run: Opened, seed: Seed) -> Scored:
    first = seed is run.seeds[0]
    net, data = (run.net, run.data) if first else seed.own.load(run.prepared, run.extracted)
    levels = levels_of(net, data, seed.own.config.train.batch_size)
    if seed.plain is None:
        return Scored(levels, None)
    plain, plain_data = seed.plain.load(run.prepared, None)
    logit = predict(plain, plain_data, plain_data.rows("test"), seed.own.config.train.batch_size).logit
    return Scored(levels, logit.astype(np.float64))


def levels_of(net: RankerNet, data: Data, batch_size: int) -> Levels:
    """Logits of all test rows with each level in and out."""
    parts = []
    for rows, _ in data.rows("test").batches(batch_size, None):
        parts.append(by_level(net, to_batch(rows, data.tables, data.knowledge if net.uses_users else None)))
    return Levels.merged(parts)


def _parts(run: Opened, levels: Levels) -> list[Part]:
    scenario_B = run.test["scenario"].to_numpy()
    parts_B = [np.abs(part) for part in (levels.user_part, levels.own_part, levels.scenario_part)]
    groups = [("all test rows", np.ones(len(scenario_B), bool))]
    groups += [(n, scenario_B == i) for i, n in enumerate(run.scenario_names) if (scenario_B == i).any()]
    return [Part(name, *(float(part[here].mean()) for part in parts_B)) for name, here in groups]


def _ablated(run: Opened, scored: list[Scored]) -> list[tuple[str, float | None]]:
    label_B = run.test["label"].to_numpy() > 0.5
    one = np.ones((1, len(label_B)))

    def mean_auc(logits: list[Floats]) -> float | None:
        value = float(np.mean([weighted_auc(label_B, logit, one)[0] for logit in logits]))
        return value if np.isfinite(value) else None

    wanted = [("this model", "both")]
    if run.net.user_level_is_added:
        wanted += [("every user as one without knowledge", "default_both")]
    if run.net.uses_users and run.net.has_scenario_level:
        wanted += [("without its scenario level", "user"), ("without its user level", "scenario")]
    wanted += [
        (
            "without both levels" if run.net.has_scenario_level and run.net.uses_users else "without its level",
            "none",
        )
    ]
    rows = [(name, mean_auc([getattr(s.levels, level) for s in scored])) for name, level in wanted]
    plain = [s.plain for s in scored if s.plain is not None]
    return [*rows, ("a plain backbone, trained on its own", mean_auc(plain))] if len(plain) == len(scored) else rows


def _headline(gain: Interval | None, plain: bool) -> str:
    if gain is None:
        return "The test rows have one class only, so no AUC can be measured."
    against = "the same backbone trained without" if plain else "this model with its levels left out"
    told = "No effect of knowledge that stands out from noise"
    if gain.clear:
        told = f"Knowledge {'raises' if gain.value > 0 else 'lowers'} the test AUC"
    return f"{told}: {signed(gain.value)} against {against} (95% interval {signed(gain.low)} to {signed(gain.high)})."


def _detail(rows: list[Row], seeds: int, plain: bool) -> str:
    looked = [row for row in rows[1:] if row.gain is not None]
    clear = [row for row in looked if row.gain is not None and row.gain.clear]
    told = f"Of {len(looked)} groups of rows, {len(clear) or 'none'} differ{'s' * (len(clear) < 2)} clearly"
    if clear:
        best = max(clear, key=lambda row: abs(row.gain.value if row.gain else 0))
        told += f"{', most of all' if len(clear) > 1 else ':'} “{shortened(best.name)}”"
        told += "; by chance alone about one in twenty would"
    told += "."
    return told + " One seed was trained: another may move the difference as far." * (seeds == 1 and plain)
