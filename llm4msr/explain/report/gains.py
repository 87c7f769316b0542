"""The verdict: what this model gains over the plain one, over counts of words, over its controls and over popularity,
how surely, and where.

Nothing is claimed of knowledge unless the plain model, the same backbone with the same seeds, is trained and the
interval of the difference leaves zero out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from llm4msr.arrays import Bools
from llm4msr.explain.report.bootstrap import Drawn, Draws, Interval
from llm4msr.explain.report.rows import ScoredRows, row_groups
from llm4msr.explain.report.tables import Table
from llm4msr.text import signed
from llm4msr.training.popularity import CONSTANT, POPULARITY
from llm4msr.training.results import PLAIN, WORDS
from llm4msr.training.table import CONTROLS, LITTLE

KINDS = {
    "scenario": "By scenario",
    "user": "New and known users",
    "item": "Cold and known items",
    "met": "Users new to the scenario, and known in it",
}
"""Kind of a group of rows -> its title."""
NAMES = {
    CONSTANT: "a constant (the share of positives in training)",
    POPULARITY: "item popularity in the scenario",
    PLAIN: "the plain model",
    "din": "attention over item ids, without text (din)",
}
"""Of models and baselines."""


@dataclass(frozen=True)
class Gain:
    """AUC of this model and of another on some test rows; None where they have one class, or the other is missing."""

    kind: str
    """`all`, or a key of `KINDS`."""
    scenario: int | None
    """Its number if these are the rows of one scenario."""
    name: str
    """Of the rows; of the other model where these are all rows."""
    rows: int
    """Behind the intervals."""
    other: Interval | None
    model: Interval | None
    gain: Interval | None


@dataclass(frozen=True)
class GainSection:
    """What the page shows."""

    variant: str
    verdict: str
    caveats: list[str]
    claims: bool
    """Whether the verdict claims a difference."""
    rivals: list[Gain]
    """Over the plain model first. Numbers are of all test rows, the intervals' widths of those that were read."""
    groups: list[Gain]
    """Over the plain model, of the rows that were read alone."""
    seeds: list[int]
    tested: int
    """Test rows of a seed behind the intervals."""
    has_plain: bool

    @property
    def plain(self) -> Interval | None:
        """The gain over the plain model."""
        return _over(self.rivals, PLAIN)

    @property
    def words(self) -> Interval | None:
        """The gain over the same model with counts of words, where such a model is trained."""
        return _over(self.rivals, WORDS)

    @property
    def limits(self) -> list[str]:
        """What most limits a claim, shortly: the caveats that a terminal shows."""
        limits = []
        if self.claims and len(self.seeds) == 1:
            limits.append("One seed: the interval holds no spread of seeds.")
        ahead = self.claims and self.plain is not None and self.plain.value > 0 and self.variant != "din"
        if ahead and not any(name.endswith(CONTROLS) for name in (self.variant, *(one.name for one in self.rivals))):
            limits.append("No control was trained, so this may be capacity.")
        return limits

    @property
    def detail(self) -> str:
        """In how many groups of rows the two models clearly differ."""
        gains = [group.gain for group in self.groups if group.gain is not None]
        if not gains:
            return ""
        up, down = (sum(one.clear and sign * one.value > 0 for one in gains) for sign in (1, -1))
        return (
            f"Of {len(gains)} groups of test rows, this model is clearly ahead in {up or 'none'} and clearly behind in "
            f"{down or 'none'}; by chance alone about one in twenty would differ."
        )

    def tables(self) -> dict[str, Table]:
        """A row for each rival, and for each group of test rows."""
        rivals = _table(self.rivals).drop(columns=["kind", "scenario"])
        described = "AUC of this model and of each rival on all test rows; column rows: how many the intervals are from"
        return {
            "rivals.csv": Table(described, rivals),
            "gains.csv": Table("AUC of this model and of the plain one by group of test rows", _table(self.groups)),
        }


def gain_section(
    variant: str, seeds: Sequence[ScoredRows], names: Sequence[str], aucs: Mapping[str, float | None]
) -> GainSection:
    """Compare this model, a variant, with all others that have scored the rows.

    Args:
        variant: this model.
        seeds: the rows that were read of each seed: all test rows, or those of some users.
        names: the scenarios' ids.
        aucs: of each model and baseline on all test rows, the mean over seeds.
    """
    draws = Draws([rows.owner_B for rows in seeds])
    label_SB = [rows.label_B for rows in seeds]
    everywhere = [np.ones(len(label_B), bool) for label_B in label_SB]

    def auc(name: str, mask_SB: list[Bools]) -> Drawn | None:
        if name == POPULARITY:
            return draws.auc(label_SB, [rows.popularity_B for rows in seeds], mask_SB)
        return draws.auc(label_SB, [rows.logits[name] for rows in seeds], mask_SB)

    def of_all_rows(name: str) -> Drawn | None:
        drawn, value = auc(name, everywhere), aucs[name]
        return drawn.around(value) if drawn is not None and value is not None else drawn

    variants = list(seeds[0].logits)
    own, tested = of_all_rows(variant), max(len(label_B) for label_B in label_SB)
    others = sorted((name for name in variants if name != variant), key=lambda name: name != PLAIN)
    rivals = [_gain("all", None, name, tested, of_all_rows(name), own) for name in (*others, POPULARITY)]
    groups = []
    for kind, number, name, mask_SB in row_groups(seeds, names):
        plain = auc(PLAIN, mask_SB) if PLAIN in variants else None
        count = max(int(mask_B.sum()) for mask_B in mask_SB)
        groups.append(_gain(kind, number, name, count, plain, auc(variant, mask_SB)))
    numbers = [rows.seed for rows in seeds]
    gain, words = _over(rivals, PLAIN), _over(rivals, WORDS)
    claims = gain is not None and gain.clear
    verdict = _verdict(gain, PLAIN in variants)
    if claims and words is not None:
        verdict += f" {_verdict_on_words(words)}"
    caveats = _caveats(variant, rivals, len(numbers)) if gain is not None else []
    return GainSection(variant, verdict, caveats, claims, rivals, groups, numbers, tested, PLAIN in variants)


def label(name: str, variant: str) -> str:
    """What the page calls a model or baseline; `variant` is this model."""
    if name == variant:
        return f"this model ({name})"
    model, _, control = name.rpartition("-")
    if name.endswith(WORDS):
        return f"{model} with counts of words"
    return f"{model} with {control} vectors" if control in CONTROLS else NAMES.get(name, name)


def _over(rivals: Sequence[Gain], ending: str) -> Interval | None:
    """The gain over the model whose name ends so."""
    return next((rival.gain for rival in rivals if rival.name.endswith(ending)), None)


def _gain(kind: str, number: int | None, name: str, rows: int, other: Drawn | None, own: Drawn | None) -> Gain:
    gain = own.minus(other).interval if own and other else None
    return Gain(kind, number, name, rows, other and other.interval, own and own.interval, gain)


def _verdict(gain: Interval | None, has_plain: bool) -> str:
    if not has_plain:
        return (
            "No claim: the plain model (none), with the same backbone and seeds, is not among those compared, so "
            'nothing can be said of what knowledge brings. Add "none" to evaluate.variants, then `llm4msr run` and '
            "`llm4msr explain` again."
        )
    if gain is None:
        return "No claim: the test rows are of one class only, so they order no model before another."
    bounds = f"95% interval {signed(gain.low)} to {signed(gain.high)}"
    if not gain.clear:
        return (
            f"No claim: against the plain model this one changes test AUC by {signed(gain.value)}, and the {bounds} "
            "holds zero, so this test cannot tell the difference from noise."
        )
    if gain.value > 0:
        return f"A gain: test AUC is {signed(gain.value)} above the plain model’s ({bounds})."
    return f"A loss: test AUC is {signed(-gain.value).lstrip('+')} below the plain model’s ({bounds})."


def _verdict_on_words(gain: Interval) -> str:
    """Whether a language model brings more than words do that anyone can count."""
    over = f"{signed(gain.value)} (95% interval {signed(gain.low)} to {signed(gain.high)})"
    if gain.low > 0:
        return f"Over the same model with counts of words it is {over}: so much is the language model’s own."
    return f"No claim for the language model itself: over the same model with counts of words it is {over}."


def _caveats(variant: str, rivals: Sequence[Gain], seeds: int) -> list[str]:
    """What stands against reading a difference as one that knowledge makes."""
    caveats = []
    others = [rival for rival in rivals if rival.name != PLAIN and not rival.name.endswith(WORDS)]
    level = [rival for rival in others if rival.gain is not None and not rival.gain.low > 0]
    if level:
        listed = ", ".join(f"{label(one.name, variant)}: {signed(one.gain.value)}" for one in level if one.gain)
        caveats.append(f"It is not clearly ahead of others ({listed}).")
    if any(one.name.endswith(CONTROLS) for one in level):
        caveats.append(
            "It is not clearly ahead of a model with wrong vectors, so the difference may be capacity, not knowledge."
        )
    missing = [
        one for one in CONTROLS if not any(name.endswith(f"-{one}") for name in (variant, *(r.name for r in rivals)))
    ]
    if missing and variant != "din":
        caveats.append(
            f"Without {' and '.join(missing)} vectors beside it (evaluate.variants), a difference may be capacity and "
            "not knowledge."
        )
    if seeds == 1:
        caveats.append(
            f"One seed was trained, and another may move AUC as far: a difference below {LITTLE} says little."
        )
    return caveats


def _table(gains: Sequence[Gain]) -> pd.DataFrame:
    """A row for each, with empty cells where nothing is defined."""
    columns: dict[str, list[object]] = {
        "kind": [one.kind for one in gains],
        "scenario": [one.scenario for one in gains],
        "name": [one.name for one in gains],
        "rows": [one.rows for one in gains],
    }
    for name in ("other", "model", "gain"):
        cells = [getattr(one, name) or Interval(np.nan, np.nan, np.nan) for one in gains]
        for part in Interval._fields:
            columns[f"auc_{name}" if part == "value" else f"auc_{name}_{part}"] = [getattr(one, part) for one in cells]
    return pd.DataFrame(columns).astype({"scenario": "Int64"})
