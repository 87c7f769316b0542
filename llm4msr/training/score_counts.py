"""How many positives and negatives have each score: what AUC and calibration need, in a size that does not grow.

Counts of some rows and counts of others add up to the counts of both. They are exact up to `MAX_COUNTS` different
scores. Beyond that the lowest bits of the scores are dropped until there are no more than that: the result is then the
same in whatever order counts were added, and the AUC is known to within a bound.

Shape suffixes: K pairs of scenario and score, B rows.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from llm4msr.arrays import AnyFloats, Bools, Floats, Hashes, Ints

MAX_COUNTS = 1 << 20
"""Pairs of scenario and score that a sum keeps apart."""
BINS = 15
"""Of the calibration error, as in Guo et al."""
_SIGN = np.uint64(1 << 63)


class ScoreCounts(NamedTuple):
    """Sorted by scenario, then by score; each pair comes once."""

    scenario_K: Ints
    key_K: Hashes
    """The scores as whole numbers of the same order, without their lowest bits."""
    positives_K: Ints
    negatives_K: Ints
    shift: int = 0
    """How many bits the keys lack."""

    @classmethod
    def of(cls, scenario_B: Ints, positive_B: Bools, score_B: AnyFloats) -> "ScoreCounts":
        """Counts of these rows, exact; the scores are finite."""
        liked_B = positive_B.astype(np.int64)
        return _collect([cls(scenario_B, _to_keys(score_B), liked_B, 1 - liked_B)], 0)

    @classmethod
    def add(cls, parts: Iterable["ScoreCounts"]) -> "ScoreCounts":
        """The counts of all parts, with at most `MAX_COUNTS` pairs."""
        parts = list(parts)
        total = _collect(parts, max(part.shift for part in parts))
        bits, whole = 0, 64 - total.shift
        while len(total.key_K) > MAX_COUNTS and bits < whole:  # the least number of bits that makes them few enough
            middle = (bits + whole) // 2
            bits, whole = (bits, middle) if total._pairs_without(middle) <= MAX_COUNTS else (middle + 1, whole)
        return _collect([total], total.shift + bits) if bits else total

    def of_scenario(self, scenario: int) -> "ScoreCounts":
        """The counts of one scenario."""
        first, end = np.searchsorted(self.scenario_K, [scenario, scenario + 1])
        here = slice(first, end)
        return ScoreCounts(
            self.scenario_K[here], self.key_K[here], self.positives_K[here], self.negatives_K[here], self.shift
        )

    def of_all(self) -> "ScoreCounts":
        """The counts of all scenarios together."""
        return _collect([self._replace(scenario_K=np.zeros_like(self.scenario_K))], self.shift)

    def scores(self) -> Floats:
        """The score of each pair, [K]; where keys lack bits, one in the middle of those that it may be."""
        return _to_scores(self.key_K, self.shift)

    def along(self, slope_S: AnyFloats, bias_S: AnyFloats) -> "ScoreCounts":
        """The counts if each score became its scenario's slope times it, plus the bias; slopes are above zero."""
        score_K = self.scores() * slope_S[self.scenario_K] + bias_S[self.scenario_K]
        return _collect([self._replace(key_K=_to_keys(score_K), shift=0)], 0)

    def auc(self) -> tuple[float, float] | None:
        """Of the counts of one scenario or of all: the probability that a positive scores above a negative.

        Ties count half (Mann and Whitney 1947). The second number is by how much the first can be wrong, 0 where the
        counts are exact. None with one class only.
        """
        positives_K, negatives_K = self.positives_K.astype(np.float64), self.negatives_K.astype(np.float64)
        pairs = positives_K.sum() * negatives_K.sum()
        if not pairs:
            return None
        wins = (positives_K * (np.cumsum(negatives_K) - negatives_K / 2)).sum()
        bound = (positives_K * negatives_K).sum() / 2 / pairs if self.shift else 0.0
        return float(wins / pairs), float(bound)

    def calibration_error(self) -> float | None:
        """How far rates of positives are from the predicted ones, on average; scores are logits.

        The expected calibration error of Guo et al. (ICML 2017, https://arxiv.org/abs/1706.04599), but in bins of
        equally many rows: with bins of equal width nearly all rows of a low rate would lie in the first. Rows of one
        score stay together, in the bin of the middle one. None without rows.
        """
        rows_K = self.positives_K + self.negatives_K
        total = rows_K.sum()
        if not total:
            return None
        bin_K = (BINS * (np.cumsum(rows_K) - rows_K / 2) / total).astype(np.int64)
        likely_K = 1 / (1 + np.exp(-self.scores().clip(-500, 500)))
        return float(np.abs(np.bincount(bin_K, self.positives_K - rows_K * likely_K)).sum() / total)

    def _pairs_without(self, bits: int) -> int:
        """How many pairs are left if the keys lose so many more bits."""
        key_K = _drop(self.key_K, bits)
        return int(np.count_nonzero((np.diff(key_K) != 0) | (np.diff(self.scenario_K) != 0))) + 1


def _collect(parts: list[ScoreCounts], shift: int) -> ScoreCounts:
    """All counts, in order, those of one pair added up."""
    key_N = np.concatenate([_drop(part.key_K, shift - part.shift) for part in parts])
    scenario_N = np.concatenate([part.scenario_K for part in parts])
    liked_N2 = np.concatenate([np.column_stack([part.positives_K, part.negatives_K]) for part in parts])
    order_N = np.argsort(key_N)
    small_N = scenario_N.astype(np.min_scalar_type(scenario_N.max(initial=0)))  # a stable sort of 16 bits compares none
    order_N = order_N[np.argsort(small_N[order_N], kind="stable")]
    key_N, scenario_N = key_N[order_N], scenario_N[order_N]
    first_N = np.ones(len(key_N), bool)
    first_N[1:] = (key_N[1:] != key_N[:-1]) | (scenario_N[1:] != scenario_N[:-1])
    starts_K = np.flatnonzero(first_N)
    counts_K2 = np.add.reduceat(liked_N2[order_N], starts_K) if len(starts_K) else liked_N2
    return ScoreCounts(scenario_N[starts_K], key_N[starts_K], counts_K2[:, 0], counts_K2[:, 1], shift)


def _to_keys(score_B: AnyFloats) -> Hashes:
    """The bits of float64 numbers, changed so that they are in the numbers' order."""
    bits_B = (np.asarray(score_B, np.float64) + 0.0).view(np.uint64)  # which makes one of the two zeros
    return np.where(bits_B & _SIGN, ~bits_B, bits_B | _SIGN)


def _to_scores(key_K: Hashes, shift: int) -> Floats:
    """The scores of keys; of one that lacks bits a score in its middle."""
    whole_K = (key_K << np.uint64(shift)) | np.uint64((1 << shift) >> 1) if shift < 64 else np.full_like(key_K, _SIGN)
    return np.where(whole_K & _SIGN, whole_K ^ _SIGN, ~whole_K).view(np.float64)


def _drop(key_K: Hashes, bits: int) -> Hashes:
    return key_K >> np.uint64(bits) if bits < 64 else np.zeros_like(key_K)
