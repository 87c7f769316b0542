"""Rows of all partitions, looked up by numbers that count over all of them."""

import functools
from collections.abc import Callable

import numpy as np

from llm4msr.arrays import Array, Ints

KEPT = 64
"""Partitions that stay open: as many as training reads side by side."""


class PartitionedRows:
    """An array of rows in partitions, each opened when it is first looked up; those used last stay open.

    Args:
        offset_P: rows before each partition, and last all rows: int64 [P + 1], as `partitions.offsets` gives.
        open_partition: number of a partition -> its rows [N, ...], all of one width and type, in memory or mapped.
        kept: how many partitions stay open.
    """

    def __init__(self, offset_P: Ints, open_partition: Callable[[int], Array], kept: int = KEPT):
        self.offset_P = offset_P
        self.open = functools.lru_cache(kept)(open_partition)

    def __len__(self) -> int:
        return int(self.offset_P[-1])

    def take(self, number_B: Ints) -> Array:
        """The rows [B, ...] of these numbers, int64 [B], in any order; opens only the partitions that they lie in.

        Raises:
            IndexError: a number is beyond the rows, or negative among several partitions.
        """
        if len(self.offset_P) == 2:
            return np.take(self.open(0), number_B, axis=0)
        order_B = np.argsort(number_B, kind="stable")
        sorted_B = number_B[order_B]
        bound_P = np.searchsorted(sorted_B, self.offset_P)
        if bound_P[0] > 0 or bound_P[-1] < len(sorted_B):
            raise IndexError(f"rows {sorted_B[0]} to {sorted_B[-1]} asked of {len(self)}")
        filled = np.flatnonzero(np.diff(bound_P)).tolist()
        first = self.open(filled[0] if filled else 0)
        rows = np.empty((len(number_B), *first.shape[1:]), first.dtype)
        for partition in filled:
            here = slice(bound_P[partition], bound_P[partition + 1])
            rows[order_B[here]] = self.open(partition)[sorted_B[here] - self.offset_P[partition]]
        return rows
