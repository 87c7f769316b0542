"""How sure an AUC and a difference of two AUCs are: a bootstrap over users, and over seeds where there are several.

Rows of one user are not independent, so users are drawn, not rows (the cluster bootstrap: Field and Welsh 2007).

Shape suffixes: B test rows, N users, R draws, S seeds.
"""

from typing import NamedTuple

import numpy as np

from llm4msr.arrays import AnyFloats, Bools, Floats, Ints, Singles

DRAWS = 300
MAX_ROWS = 200_000
"""Test rows that are used at most, those of users drawn at random."""


class Interval(NamedTuple):
    """A number and its 95% interval."""

    value: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether zero lies outside."""
        return self.low > 0 or self.high < 0


class Comparison(NamedTuple):
    """AUC of the plain model and of this one, and the difference; None where undefined, or without a plain model."""

    plain: Interval | None
    model: Interval | None
    gain: Interval | None


class Draws:
    """Bootstrap draws of the users [B] of these rows and of the seeds, the same for all groups of rows."""

    def __init__(self, user_B: Ints, seeds: int, draws: int = DRAWS):
        users, self.owner_B = np.unique(user_B, return_inverse=True)
        rng = np.random.default_rng(0)
        self.times_RN = rng.multinomial(len(users), np.full(len(users), 1 / len(users)), draws).astype(np.float32)
        self.seeds_RS = rng.multinomial(seeds, np.full(seeds, 1 / seeds), draws) / seeds

    def compare(self, label_B: Bools, plain_SB: Floats | None, model_SB: Floats, mask_B: Bools) -> Comparison:
        """AUCs of the rows of the mask, each the mean over seeds with its interval."""
        label = label_B[mask_B]
        if not label.any() or label.all():
            return Comparison(None, None, None)
        times_RB = self.times_RN[:, self.owner_B[mask_B]]
        model = self._auc(label, model_SB[:, mask_B], times_RB)
        if plain_SB is None:
            return Comparison(None, _interval(*model), None)
        plain = self._auc(label, plain_SB[:, mask_B], times_RB)
        return Comparison(_interval(*plain), _interval(*model), _interval(model[0] - plain[0], model[1] - plain[1]))

    def _auc(self, label_B: Bools, logit_SB: Floats, times_RB: Singles) -> tuple[float, Floats]:
        """The mean over seeds, and the same of each draw [R]."""
        once = np.ones((1, len(label_B)))
        mean = np.mean([weighted_auc(label_B, logit_B, once) for logit_B in logit_SB])
        drawn = np.stack([weighted_auc(label_B, logit_B, times_RB) for logit_B in logit_SB], axis=1)
        return float(mean), np.asarray((drawn * self.seeds_RS).sum(1))


def weighted_auc(label_B: Bools, logit_B: Floats, weight_RB: AnyFloats) -> Floats:
    """[R]: AUC of the rows when each counts as often as the draw says; ties count half, NaN with one class only."""
    order = np.argsort(logit_B, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(logit_B[order]) > 0])
    auc_R = np.empty(len(weight_RB))
    for r, weight_B in enumerate(weight_RB):
        sorted_B = weight_B[order].astype(np.float64)
        positive = np.add.reduceat(np.where(label_B[order], sorted_B, 0.0), starts)
        negative = np.add.reduceat(np.where(label_B[order], 0.0, sorted_B), starts)
        pairs = positive.sum() * negative.sum()
        below = np.cumsum(negative) - negative / 2
        auc_R[r] = (positive * below).sum() / pairs if pairs else np.nan
    return auc_R


def _interval(value: float, draws_R: Floats) -> Interval:
    low, high = np.nanpercentile(draws_R, [2.5, 97.5])
    return Interval(value, float(low), float(high))


def sample_users(user_B: Ints) -> Bools:
    """Mask [B]: all rows, or those of users drawn at random until there are about `MAX_ROWS`."""
    if len(user_B) <= MAX_ROWS:
        return np.ones(len(user_B), bool)
    users, owner_B, count = np.unique(user_B, return_inverse=True, return_counts=True)
    order = np.random.default_rng(0).permutation(len(users))
    kept = np.zeros(len(users), bool)
    kept[order[: np.searchsorted(np.cumsum(count[order]), MAX_ROWS) + 1]] = True
    return np.asarray(kept[owner_B], bool)
