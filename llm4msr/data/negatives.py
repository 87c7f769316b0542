"""Items that a user had not taken, drawn as rows with label 0.

Shape suffixes: R rows, S scenarios, I items of all pools, N drawn rows, T rows that are taken.
"""

from typing import NamedTuple

import numpy as np

from llm4msr.arrays import AnyInts, Bools, Ints

TRIES = 11


class Pools(NamedTuple):
    """The items of each scenario's training rows, one scenario after the other, and how often each is drawn."""

    start_S: Ints
    """Where each scenario's items begin; one more than there are scenarios."""
    item_I: Ints
    upto_I: Ints
    """Sum of the weights of all items up to this one."""

    @classmethod
    def of(cls, scenario_I: Ints, item_I: Ints, weight_I: Ints, scenarios: int) -> "Pools":
        """The pools of items in any order."""
        order = np.lexsort((item_I, scenario_I))
        start_S = np.searchsorted(scenario_I[order], np.arange(scenarios + 1))
        return cls(start_S, item_I[order], np.cumsum(weight_I[order]))

    def draw(self, scenario_N: Ints, rng: np.random.Generator) -> Ints:
        """An item of each row's scenario [N]; each scenario needs one."""
        before_S = np.r_[0, self.upto_I][self.start_S]
        low_N, high_N = before_S[scenario_N], before_S[scenario_N + 1]
        drawn_N = low_N + (rng.random(len(scenario_N)) * (high_N - low_N)).astype(np.int64)
        return self.item_I[np.searchsorted(self.upto_I, np.minimum(drawn_N, high_N - 1), "right")]


class Drawn(NamedTuple):
    """The row that each negative was drawn for, and its item."""

    row_N: Ints
    item_N: Ints


def draw(
    user_R: AnyInts, item_R: Ints, scenario_R: Ints, split_R: AnyInts, pools: Pools, each: int, seed: list[int]
) -> Drawn:
    """`each` items of the same scenario for each row, none that the user took up to that split.

    A draw that is refused ten times in a row is left out, and so are rows of scenarios without training rows. Number 0,
    which many items share, is never refused.

    Args:
        user_R: numbers from 0.
        item_R: numbers of items, 0 for unknown ones.
        scenario_R: numbers of scenarios.
        split_R: 0 train, 1 valid, 2 test.
        pools: where items are drawn from.
        each: draws for each row.
        seed: of the random numbers.
    """
    rng = np.random.default_rng(seed)
    size_S = np.diff(pools.start_S)
    row_N = np.repeat(np.flatnonzero(size_S[scenario_R] > 0), each)
    item_N = np.zeros(len(row_N), np.int64)
    taken = _Taken.of(user_R, item_R, split_R)
    pending = np.arange(len(row_N))
    for _ in range(TRIES):
        row = row_N[pending]
        item_N[pending] = pools.draw(scenario_R[row], rng)
        pending = pending[taken.holds(user_R[row], item_N[pending], split_R[row])]
    is_good = np.ones(len(row_N), bool)
    is_good[pending] = False
    return Drawn(row_N[is_good], item_N[is_good])


class _Taken(NamedTuple):
    """Pairs of a user and an item as ascending keys, and the first split that has the pair."""

    items: int
    key_T: Ints
    split_T: Ints

    @classmethod
    def of(cls, user_R: AnyInts, item_R: Ints, split_R: AnyInts) -> "_Taken":
        items = int(item_R.max(initial=0)) + 1
        key_R = (user_R.astype(np.int64) * items + item_R) * 4 + split_R
        key_R.sort()
        pair_R = key_R // 4
        first = np.flatnonzero(np.diff(pair_R, prepend=-1))
        return cls(items, pair_R[first], key_R[first] % 4)

    def holds(self, user_N: AnyInts, item_N: Ints, split_N: AnyInts) -> Bools:
        """Whether the user has taken the item up to this split."""
        key_N = user_N.astype(np.int64) * self.items + item_N
        place_N = np.minimum(np.searchsorted(self.key_T, key_N), len(self.key_T) - 1)
        is_one_N = (item_N > 0) & (item_N < self.items)
        return (self.key_T[place_N] == key_N) & (self.split_T[place_N] <= split_N) & is_one_N
