"""Which reviews stay: the latest of each user and item, and the k-core.

Users and items are numbers here, one for each row: int32 [R]; a mask of rows is bool [R].
"""

import numpy as np

from llm4msr.arrays import Bools, Ints, Ints32


def latest(user: Ints32, item: Ints32, order: Ints) -> Bools:
    """The one row of each (user, item) with the greatest order; of equal ones the last.

    Holds 32 bytes a row besides what it is given.
    """
    pair = user.astype(np.int64) * (int(item.max(initial=0)) + 1) + item
    by_pair = np.lexsort((order, pair))
    pair = pair[by_pair]
    is_latest = np.zeros(len(pair), bool)
    is_latest[by_pair[np.append(pair[1:] != pair[:-1], True)]] = True
    return is_latest


def k_core(user: Ints32, item: Ints32, kept: Bools, k: int) -> Bools:
    """The rows of `kept` that stay if users and items with fewer than `k` rows go, again and again.

    Holds a count for each user and item and 12 bytes a row besides what it is given.
    """
    while k:
        weak = np.zeros(len(kept), bool)
        for side in (user, item):
            weak |= (np.bincount(side[kept], minlength=int(side.max()) + 1) < k)[side]
        weak &= kept
        if not weak.any():
            break
        kept = kept & ~weak
    return kept
