"""How well each user's rows are ordered, for the metrics that are means over users.

Shape suffixes: B rows, T blocks of rows of one user with one score, U users (or other groups of rows).
"""

from typing import NamedTuple

import numpy as np

from llm4msr.arrays import AnyFloats, Bools, Floats, Ints

TOP = 10
"""Rows of a user that are looked at from the top, by NDCG and recall."""


class UserMetrics(NamedTuple):
    """Of each group of rows that has both classes, with one of which every order is as good."""

    group_U: Ints
    rows_U: Ints
    auc_U: Floats
    """Of a positive and a negative, how often the positive scores higher; ties count half."""
    ndcg_U: Floats
    """Sum of 1 / log2(1 + place) over the positives in the first `TOP` places, divided by the greatest such sum
    (Järvelin and Kekäläinen, TOIS 2002)."""
    recall_U: Floats
    """Share of the positives that are in the first `TOP` places."""


def user_metrics(group_B: Ints, positive_B: Bools, score_B: AnyFloats) -> UserMetrics:
    """Metrics of each group; the group numbers are 0 or more, the scores finite.

    Rows of one score share their places: NDCG and recall are means over all orders of them (McSherry and Najork,
    ECIR 2008, "Computing information retrieval performance measures efficiently in the presence of tied scores").
    """
    order_B = np.argsort(score_B)
    small_B = group_B.astype(np.min_scalar_type(group_B.max(initial=0)))  # a stable sort of 16 bits compares none
    order_B = order_B[np.argsort(small_B[order_B], kind="stable")]
    group_B, positive_B, score_B = group_B[order_B], positive_B[order_B], score_B[order_B]
    new_group_B = np.ones(len(group_B), bool)
    new_group_B[1:] = group_B[1:] != group_B[:-1]
    new_block_B = new_group_B.copy()
    new_block_B[1:] |= score_B[1:] != score_B[:-1]
    starts_U, starts_T = np.flatnonzero(new_group_B), np.flatnonzero(new_block_B)
    if not len(starts_T):
        none = np.empty(0)
        return UserMetrics(np.empty(0, np.int64), np.empty(0, np.int64), none, none, none)
    user_T = np.cumsum(new_group_B)[starts_T] - 1
    size_T = np.diff(starts_T, append=len(group_B))
    liked_T = np.add.reduceat(positive_B.astype(np.int64), starts_T)
    rows_U, users = np.diff(starts_U, append=len(group_B)), len(starts_U)
    liked_U = np.bincount(user_T, liked_T, users)
    below_T = starts_T - starts_U[user_T]  # rows of the user that score lower
    lower_T = below_T - (np.cumsum(liked_T) - liked_T) + (np.cumsum(liked_U) - liked_U)[user_T]
    wins_U = np.bincount(user_T, liked_T * (lower_T + (size_T - liked_T) / 2), users)  # `lower_T`: negatives of them
    before_T = rows_U[user_T] - below_T - size_T  # rows of the user that score higher
    share_T = liked_T / size_T
    gain_U = np.bincount(user_T, share_T * _between(_DISCOUNTS, before_T, size_T), users)
    hits_U = np.bincount(user_T, share_T * _between(_PLACES, before_T, size_T), users)
    both_U = (liked_U > 0) & (liked_U < rows_U)
    liked_U, rows_U = liked_U[both_U], rows_U[both_U]
    greatest_U = _DISCOUNTS[np.minimum(liked_U, TOP).astype(np.int64)]
    return UserMetrics(
        group_B[starts_U[both_U]],
        rows_U,
        wins_U[both_U] / (liked_U * (rows_U - liked_U)),
        gain_U[both_U] / greatest_U,
        hits_U[both_U] / liked_U,
    )


_DISCOUNTS: Floats = np.cumsum(np.r_[0.0, 1 / np.log2(np.arange(2, TOP + 2))])
"""Sum of the discounts of the first 0, 1, ... places."""
_PLACES: Floats = np.arange(TOP + 1, dtype=np.float64)


def _between(sums: Floats, before_T: Ints, size_T: Ints) -> Floats:
    """What the places of each block add to such a sum."""
    return np.asarray(sums[np.minimum(before_T + size_T, TOP)] - sums[np.minimum(before_T, TOP)])
