"""Users as pools of their items' vectors: the formula, for whole histories offline and for one request.

A user is two sums of whitened item vectors, of what they liked and of what they did not, each over the square root
of its count, so that a long history speaks louder than a short one but not in proportion.

Shape suffixes: N pools, D numbers of an item's vector, E events.
"""

import numpy as np

from llm4msr.arrays import Bools, Floats, Ints, Singles

PRIOR = 3.0
"""Rows that a short history is counted as having besides its own."""


def pool_sums(sum_ND: Floats, count_N: Ints | Floats) -> Singles:
    """Pools float32 [N, D] of sums of so many vectors. Sums of float16 numbers in float64 are exact, in any order."""
    return (sum_ND / np.sqrt(count_N + PRIOR)[:, None]).astype(np.float32)


def pool_events(vector_ED: Floats, liked_E: Bools, known_E: Bools) -> Singles:
    """The pool of all these events, float32 [2 D]: of the liked items, then of the others.

    Args:
        vector_ED: the items' vectors, zero where an item has none.
        liked_E: whether the user liked the item.
        known_E: whether it has a vector; else the event does not count.
    """
    groups_2E = np.array([liked_E & known_E, known_E & ~liked_E], np.float64)
    return pool_sums(groups_2E @ vector_ED, groups_2E.sum(1)).ravel()
