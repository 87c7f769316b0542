"""Which rows train, which validate, which test, and which of the training rows may reach a prompt.

Shape suffix: R rows.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from llm4msr.arrays import AnyFloats, AnyInts, Bools, Ints
from llm4msr.config import SplitConfig
from llm4msr.data import cuts
from llm4msr.data.cuts import Cut, Cuts, Rank
from llm4msr.data.interactions import Interactions, inverse, sort_places
from llm4msr.errors import DataError

TRAIN, VALID, TEST = 0, 1, 2
SPLITS = {"train": TRAIN, "valid": VALID, "test": TEST}


class SplitRows(NamedTuple):
    """The rows that are used, the split of each, and whether it may reach a prompt."""

    rows: Interactions
    split_R: AnyInts
    history_R: Bools

    def count(self, name: str) -> int:
        """Rows of a split."""
        return int(np.count_nonzero(self.split_R == SPLITS[name]))


def divide(rows: Interactions, config: SplitConfig, cut: Cuts, seed: int) -> SplitRows:
    """Split the rows of a partition: all rows of its users, in the order of the source.

    `time` by `global`: rows of one time stay together. `time` by `user`: a user's last rows. Either way no
    training row of a user is later than one of their validation or test rows.
    """
    rows = choose(rows, config)
    if cut.kept is not None:
        rows = rows.take(np.flatnonzero(_is_kept(rows.order_R, rows.row_R, cut)))
    if config.implicit:
        rows = replace(rows, label_R=np.ones_like(rows.label_R))
    split_R = _assign(rows, config, cut, seed)
    return SplitRows(rows, split_R, _history_rows(rows, split_R, config, cut))


def choose(rows: Interactions, config: SplitConfig) -> Interactions:
    """The rows of a partition among which `latest` and the cuts are looked for: each user's first ones."""
    if not config.first_events:
        return rows
    rank_R, _ = _rank_in_user(rows.user.number_R, rows.order_R)
    return rows.take(np.flatnonzero(rank_R < config.first_events))


def divide_all(rows: Interactions, config: SplitConfig, seed: int) -> SplitRows:
    """Split rows that are all there are."""
    rows = choose(rows, config)

    def ask(sought: str, known: Cuts, ranks: list[Rank]) -> list[Cut]:
        key_N = cut_keys(rows.order_R, rows.row_R, sought, known, config, seed)
        return cuts.find(
            ranks, lambda: [cuts.points(key_N)], lambda told: [[cuts.within(key_N, *each) for each in told]]
        )

    return divide(rows, config, find_cuts(config, ask), seed)


def require_rows(counts: dict[str, int], times: int, config: SplitConfig) -> None:
    """Refuse an empty split; `counts` are the rows of each split, `times` the different times.

    Raises:
        DataError: a split is empty.
    """
    total = sum(counts.values())
    for name, count in counts.items():
        if not count:
            raise DataError(f"split '{config.kind}': no {name} rows in {total} rows; {_remedy(total, times, config)}")


def _remedy(rows: int, times: int, config: SplitConfig) -> str:
    if config.kind == "time" and config.by == "global" and times < min(rows, 100):
        return f"they have {times} different times, and rows of one time stay together: set split.by = 'user'"
    if config.kind == "time" and config.by == "user":
        least = int(np.ceil(1 / config.test))
        return f"of each user's rows {config.test:g} test, so users need {least}: set split.kind = 'leave_last_out'"
    return "give more data or another split"


def goes_by_user(config: SplitConfig) -> bool:
    """Whether each user's rows are cut on their own, so that no cut is needed for all."""
    return config.kind == "leave_last_out" or (config.kind == "time" and config.by == "user")


def _history_goes_by_user(config: SplitConfig) -> bool:
    return config.kind == "leave_last_out" or config.by == "user"


def _assign(rows: Interactions, config: SplitConfig, cut: Cuts, seed: int) -> AnyInts:
    if not goes_by_user(config):
        key_R = rows.order_R if config.kind == "time" else random_keys(rows.row_R, seed)
        return _by_cuts(key_R, cut)
    rank_R, count_R = _rank_in_user(rows.user.number_R, rows.order_R)
    return _last_out(rank_R, count_R) if config.kind == "leave_last_out" else _by_rank(rank_R, count_R, config)


def _by_cuts(key_R: Ints, cut: Cuts) -> AnyInts:
    assert cut.valid is not None
    assert cut.test is not None
    return (key_R >= cut.valid).astype(np.int8) + (key_R >= cut.test).astype(np.int8)


def _by_rank(rank_R: Ints, count_R: Ints, config: SplitConfig) -> AnyInts:
    split_R = np.full(len(rank_R), TEST, np.int8)
    split_R[rank_R < _ceil(count_R * (1 - config.test))] = VALID
    split_R[rank_R < _ceil(count_R * (1 - config.valid - config.test))] = TRAIN
    return split_R


def _last_out(rank_R: Ints, count_R: Ints) -> AnyInts:
    from_end_R = np.where(count_R < 3, 3, count_R - rank_R)
    return np.where(from_end_R == 1, TEST, np.where(from_end_R == 2, VALID, TRAIN)).astype(np.int8)


def _history_rows(rows: Interactions, split_R: AnyInts, config: SplitConfig, cut: Cuts) -> Bools:
    train_R = split_R == TRAIN
    if config.history_share == 1:
        return train_R
    if not _history_goes_by_user(config):
        assert cut.history is not None
        return train_R & (rows.order_R <= cut.history)
    history_R = np.zeros(len(rows), dtype=bool)
    rank, count = _rank_in_user(rows.user.number_R[train_R], rows.order_R[train_R])
    history_R[train_R] = rank < _ceil(count * config.history_share)
    return history_R


def _rank_in_user(user_R: AnyInts, order_R: Ints) -> tuple[Ints, Ints]:
    """Each row's place in its user's time line (ties as they come), and that line's length: [R] each."""
    in_time = sort_places(order_R)
    in_time = in_time[sort_places(user_R[in_time])]
    count_U = np.bincount(user_R)
    start_U = np.cumsum(count_U) - count_U
    return inverse(in_time, len(in_time)) - start_U[user_R], count_U[user_R]


def random_keys(row_R: Ints, seed: int) -> Ints:
    """A number for each row that looks random and follows from the seed and the row's own number alone."""
    bits = row_R.astype(np.uint64) + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # the finalizer of SplitMix64
        bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
    return ((bits ^ (bits >> np.uint64(31))) >> np.uint64(1)).astype(np.int64)


def _is_kept(order_R: Ints, row_R: Ints, cut: Cuts) -> Bools:
    assert cut.kept is not None
    if cut.kept_row is None:
        return order_R >= cut.kept
    return (order_R > cut.kept) | ((order_R == cut.kept) & (row_R >= cut.kept_row))


def cut_keys(order_R: Ints, row_R: Ints, sought: str, cut: Cuts, config: SplitConfig, seed: int) -> Ints:
    """The values of a partition of which some ranks are sought, given the cuts that are known: [N], in any order."""
    if sought == "kept":
        return order_R
    if sought == "kept_row":
        return row_R[order_R == cut.kept]
    if cut.kept is not None:
        kept = np.flatnonzero(_is_kept(order_R, row_R, cut))
        order_R, row_R = order_R[kept], row_R[kept]
    key_R = order_R if config.kind == "time" else random_keys(row_R, seed)
    return key_R if sought == "split" else order_R[_by_cuts(key_R, cut) == TRAIN]


Ask = Callable[[str, Cuts, list[Rank]], list[Cut]]
"""What is sought, the cuts that are known, and ranks -> the values of these ranks over all partitions."""


def find_cuts(config: SplitConfig, ask: Ask) -> Cuts:
    """The cuts of all partitions' rows."""
    found = Cuts()
    if config.latest:
        (kept,) = ask("kept", found, [lambda rows: max(rows - config.latest, 0)])
        found = Cuts(kept=kept.value)
        if kept.rank > kept.below:  # of rows of one time the last ones are used
            (first,) = ask("kept_row", found, [lambda _: kept.rank - kept.below])
            found = Cuts(kept=kept.value, kept_row=first.value)
    if not goes_by_user(config):
        shares = (1 - config.valid - config.test, 1 - config.test)
        valid, test = ask("split", found, [_rank_of(share) for share in shares])
        found = found.model_copy(update={"valid": valid.value, "test": test.value})
    if config.history_share < 1 and not _history_goes_by_user(config):
        (history,) = ask("history", found, [lambda rows: int(np.floor((rows - 1) * config.history_share))])
        found = found.model_copy(update={"history": history.value})
    return found


def _rank_of(share: float) -> Rank:
    return lambda rows: min(int(_ceil(rows * share)), rows - 1)


def _ceil(numbers: AnyFloats | float) -> AnyFloats:
    return np.ceil(np.round(numbers, 6))
