"""How sure an AUC and a difference of two AUCs are: a bootstrap over users, and over seeds where there are several.

Rows of one user are not independent, so users are drawn, not rows (the cluster bootstrap: Field and Welsh 2007).

Shape suffixes: B test rows, N users, R draws, S seeds.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from llm4msr.arrays import AnyFloats, Bools, Floats, Ints, Singles

DRAWS = 300
MAX_ROWS = 200_000
"""Test rows of a seed that are used at most, those of users drawn at random."""


class Interval(NamedTuple):
    """A number and its 95% interval."""

    value: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether zero lies outside."""
        return self.low > 0 or self.high < 0


class Drawn(NamedTuple):
    """A number, and what it is in each draw: float64 [R]."""

    value: float
    draws_R: Floats

    def minus(self, other: "Drawn") -> "Drawn":
        """The difference, draw by draw."""
        return Drawn(self.value - other.value, self.draws_R - other.draws_R)

    def around(self, value: float) -> "Drawn":
        """The same spread around another number: that of all rows, where these are some of them."""
        return Drawn(value, self.draws_R + (value - self.value))

    @property
    def interval(self) -> Interval:
        """Between the 2.5% and the 97.5% quantile of the draws."""
        low, high = np.nanpercentile(self.draws_R, [2.5, 97.5])
        return Interval(self.value, float(low), float(high))


class Draws:
    """Bootstrap draws of users and of seeds, the same for all models and groups of rows.

    Args:
        owner_SB: the users of each seed's test rows, by a number that is the same in all seeds.
        draws: how many.
    """

    def __init__(self, owner_SB: Sequence[Ints], draws: int = DRAWS):
        self.owner_SB, seeds = owner_SB, len(owner_SB)
        users = 1 + max(int(owner_B.max(initial=0)) for owner_B in owner_SB)
        rng = np.random.default_rng(0)
        self.times_RN = rng.multinomial(users, np.full(users, 1 / users), draws).astype(np.float32)
        self.seeds_RS = rng.multinomial(seeds, np.full(seeds, 1 / seeds), draws).astype(np.float64)

    def auc(self, label_SB: Sequence[Bools], score_SB: Sequence[AnyFloats], mask_SB: Sequence[Bools]) -> Drawn | None:
        """AUC of the rows of the mask, the mean over the seeds in which they have both classes; None if none has."""
        values, drawn, used = [], [], []
        for seed, (label_B, mask_B) in enumerate(zip(label_SB, mask_SB, strict=True)):
            label_M, score_M = label_B[mask_B], score_SB[seed][mask_B]
            if not label_M.any() or label_M.all() or not np.isfinite(score_M).all():
                continue
            owner_M = self.owner_SB[seed][mask_B]
            once_1N = np.ones((1, self.times_RN.shape[1]), np.float32)
            values.append(float(weighted_auc(label_M, score_M, owner_M, once_1N)[0]))
            drawn.append(weighted_auc(label_M, score_M, owner_M, self.times_RN))
            used.append(seed)
        if not used:
            return None
        times_RS = self.seeds_RS[:, used]
        with np.errstate(invalid="ignore", divide="ignore"):  # a draw without any of these seeds says nothing
            return Drawn(float(np.mean(values)), (np.stack(drawn, axis=1) * times_RS).sum(1) / times_RS.sum(1))


def weighted_auc(label_B: Bools, score_B: AnyFloats, owner_B: Ints, times_RN: Singles) -> Floats:
    """[R]: AUC when each user's rows count as often as the draw says; ties count half, NaN with one class only."""
    order_B = np.argsort(score_B, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(score_B[order_B]) > 0])
    label_B, owner_B = label_B[order_B], owner_B[order_B]
    auc_R = np.empty(len(times_RN))
    for r, times_N in enumerate(times_RN):
        times_B = times_N[owner_B].astype(np.float64)
        positive = np.add.reduceat(np.where(label_B, times_B, 0.0), starts)
        negative = np.add.reduceat(np.where(label_B, 0.0, times_B), starts)
        pairs = positive.sum() * negative.sum()
        below = np.cumsum(negative) - negative / 2
        auc_R[r] = (positive * below).sum() / pairs if pairs else np.nan
    return auc_R


def sample_users(owner_SB: Sequence[Ints]) -> list[Bools]:
    """Masks [B] of each seed's rows: all, or those of users drawn at random until one seed has about `MAX_ROWS`."""
    if max(len(owner_B) for owner_B in owner_SB) <= MAX_ROWS:
        return [np.ones(len(owner_B), bool) for owner_B in owner_SB]
    users = 1 + max(int(owner_B.max(initial=0)) for owner_B in owner_SB)
    count_N = np.max([np.bincount(owner_B, minlength=users) for owner_B in owner_SB], axis=0)
    order_N = np.random.default_rng(0).permutation(users)
    kept_N = np.zeros(users, bool)
    kept_N[order_N[: np.searchsorted(np.cumsum(count_N[order_N]), MAX_ROWS) + 1]] = True
    return [np.asarray(kept_N[owner_B], bool) for owner_B in owner_SB]
