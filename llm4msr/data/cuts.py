"""Where rows are cut: exact ranks over all partitions, of which each is only asked for small tables of its values.

A value of rank k, counted from 0, is found in two rounds. First each partition gives some of its values by rank, which
say between which two values the sought one lies; then each counts its own values between them.

Shape suffixes: N values of a partition, M of them that are told.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel

from llm4msr.arrays import Ints
from llm4msr.data.interactions import distinct, is_sorted

POINTS = 1024
"""Values that a partition tells in the first round, at most."""


class Cuts(BaseModel):
    """Each is a key of rows, as `split.cut_keys` gives it; None where nothing is cut."""

    kept: int | None = None
    """`order` of the earliest rows that are used, and `kept_row`, the first of these that is: None means all."""
    kept_row: int | None = None
    valid: int | None = None
    """The first that validates."""
    test: int | None = None
    history: int | None = None
    """`order` of the latest rows that may reach a prompt."""


class Points(NamedTuple):
    """Some values of a partition, ascending, and their ranks [M]; the first and the last value are among them."""

    total: int
    value_M: Ints
    rank_M: Ints


class Within(NamedTuple):
    """The values of a partition above `low` and up to `high`: how many are not above `low`, and the others counted."""

    below: int
    value_M: Ints
    count_M: Ints


class Cut(NamedTuple):
    """The value of a rank, how many values are smaller, and how many equal it."""

    value: int
    rank: int
    below: int
    equal: int


Rank = Callable[[int], int]
"""From the number of all values to the rank that is sought."""
Bracket = tuple[int | None, int]


def find(
    ranks: Sequence[Rank],
    tell_points: Callable[[], Iterable[Points]],
    tell_within: Callable[[list[Bracket]], Iterable[list[Within]]],
) -> list[Cut]:
    """The value of each rank; the functions give what each partition tells in the two rounds."""
    first = [*tell_points()]
    wanted = [rank(sum(partition.total for partition in first)) for rank in ranks]
    second = [*tell_within([bracket(first, rank) for rank in wanted])]
    return [pick([partition[place] for partition in second], rank) for place, rank in enumerate(wanted)]


def points(key_N: Ints) -> Points:
    """What a partition tells in the first round."""
    if not len(key_N):
        return Points(0, key_N[:0], key_N[:0])
    sorted_N = key_N if is_sorted(key_N) else np.sort(key_N)
    rank_M = distinct(np.linspace(0, len(key_N) - 1, POINTS).astype(np.int64))
    return Points(len(key_N), sorted_N[rank_M], rank_M)


def within(key_N: Ints, low: int | None, high: int) -> Within:
    """What a partition tells in the second round; without `low`, all values up to `high` are counted."""
    is_above = np.ones(len(key_N), bool) if low is None else key_N > low
    value_M, count_M = np.unique(key_N[is_above & (key_N <= high)], return_counts=True)
    return Within(len(key_N) - int(np.count_nonzero(is_above)), value_M, count_M)


def bracket(told: Sequence[Points], rank: int) -> Bracket:
    """Two values: that of the rank is above the first (None: there is none) and not above the second."""
    value_N = np.concatenate([part.value_M for part in told])
    in_order = np.argsort(value_N)
    value_N = value_N[in_order]
    # how many values are surely not above each of these, and how many more may be: those up to a partition's next one
    least_N = np.cumsum(np.concatenate([np.diff(part.rank_M, prepend=-1) for part in told])[in_order])
    more_N = np.cumsum(np.concatenate([np.diff(part.rank_M, append=part.total) for part in told])[in_order])
    reaches = np.searchsorted(value_N, value_N[np.searchsorted(more_N, rank, "right")])
    return (int(value_N[reaches - 1]) if reaches else None), int(value_N[np.searchsorted(least_N, rank, "right")])


def pick(told: Iterable[Within], rank: int) -> Cut:
    """The value of the rank, from what all partitions told in the second round."""
    parts = [*told]
    value_N = np.concatenate([part.value_M for part in parts])
    order = np.argsort(value_N, kind="stable")
    values, start = np.unique(value_N[order], return_index=True)
    counts = np.add.reduceat(np.concatenate([part.count_M for part in parts])[order], start)
    upto = sum(part.below for part in parts) + np.cumsum(counts)
    place = int(np.searchsorted(upto, rank, "right"))
    return Cut(int(values[place]), rank, int(upto[place] - counts[place]), int(counts[place]))
