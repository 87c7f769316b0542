"""Which rows stay: the latest of each user and item, and the k-core. Ids are numbers here."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm4msr.arrays import Bools, Ints, Ints32


def codes(column: pa.ChunkedArray) -> tuple[Ints32, pa.Array]:
    """Each value's place among the distinct values, and these in the order in which they come."""
    encoded = pc.dictionary_encode(column)
    places = [chunk.indices.to_numpy() for chunk in encoded.chunks]
    return np.concatenate(places), encoded.chunk(0).dictionary


def latest(user: Ints32, item: Ints32, order: Ints) -> Bools:
    """The row of each (user, item) whose order is the greatest; of equal ones the last.

    Holds 32 bytes a row besides what it is given.
    """
    pair = user.astype(np.int64) * (int(item.max(initial=0)) + 1) + item
    by_pair = np.lexsort((order, pair))
    pair = pair[by_pair]
    found = np.zeros(len(pair), bool)
    found[by_pair[np.append(pair[1:] != pair[:-1], True)]] = True
    return found


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
