"""Which rows train, which validate, which test, and which of the training rows may reach a prompt."""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from llm4msr.arrays import Bools, Floats, Ints
from llm4msr.config import SplitConfig
from llm4msr.errors import DataError

TRAIN, VALID, TEST = 0, 1, 2
PARTS = {"train": TRAIN, "valid": VALID, "test": TEST}


def assign(rows: pd.DataFrame, config: SplitConfig, seed: int) -> Ints:
    """The part (0 train, 1 valid, 2 test) of each row of `rows` (columns `user_id`, `order`).

    `time` by `global`: rows of one time stay together. `time` by `user`: a user's last rows. Either way no
    training row of a user is later than one of their validation or test rows.

    Raises:
        DataError: a part would be empty.
    """
    if config.kind == "random":
        part = _by_rank(np.random.default_rng(seed).permutation(len(rows)), np.full(len(rows), len(rows)), config)
    elif config.kind == "time" and config.by == "global":
        part = _by_time(rows["order"].to_numpy(), config)
    else:
        rank, count = _rank_in_user(rows)
        part = _last_out(rank, count) if config.kind == "leave_last_out" else _by_rank(rank, count, config)
    for name, code in PARTS.items():
        if not (part == code).any():
            raise DataError(f"split '{config.kind}': no {name} rows in {len(rows)} rows; {_remedy(rows, config)}")
    return part


def _remedy(rows: pd.DataFrame, config: SplitConfig) -> str:
    times = rows["order"].nunique()
    if config.kind == "time" and config.by == "global" and times < min(len(rows), 100):
        return f"they have {times} different times, and rows of one time stay together: set split.by = 'user'"
    return "give more data or another split"


def history_rows(rows: pd.DataFrame, part: Ints, config: SplitConfig) -> Bools:
    """Which rows may reach a prompt: the earliest `history_share` of the training rows."""
    train = part == TRAIN
    if config.history_share == 1:
        return train
    chosen = np.zeros(len(rows), dtype=bool)
    if config.kind == "leave_last_out" or config.by == "user":
        rank, count = _rank_in_user(rows[train])
        chosen[train] = rank < _ceil(count * config.history_share)
    else:
        order = rows["order"].to_numpy()
        chosen = train & (order <= np.quantile(order[train], config.history_share, method="lower"))
    return chosen


class Drawn(NamedTuple):
    """Rows that were drawn, with label 0, and their parts."""

    rows: pd.DataFrame
    part: Ints


def negatives(rows: pd.DataFrame, part: Ints, per_positive: int, seed: int) -> Drawn:
    """`per_positive` items of the same scenario for each row, none that the user took up to that part.

    Items are drawn uniformly from the training rows. What is refused ten times in a row is left out.
    """
    rng = np.random.default_rng(seed)
    user, item = pd.factorize(rows["user_id"])[0], pd.factorize(rows["item_id"])[0]
    n_items = int(item.max()) + 1
    raw_item = rows["item_id"].to_numpy()[np.unique(item, return_index=True)[1]]
    drawn_rows, drawn_items = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for _, at in rows.groupby("scenario_id", sort=True).indices.items() if per_positive else ():
        pool = np.unique(item[at[part[at] == TRAIN]])
        if len(pool):
            place = np.repeat(at, per_positive)
            drawn_rows.append(place)
            drawn_items.append(pool[rng.integers(len(pool), size=len(place))])
            _redraw(drawn_items[-1], place, pool, (user, item, part, n_items), rng)
    place, chosen = np.concatenate(drawn_rows), np.concatenate(drawn_items)
    place, chosen = place[chosen >= 0], chosen[chosen >= 0]
    return Drawn(rows.iloc[place].assign(item_id=raw_item[chosen], label=np.float32(0)), part[place])


def _redraw(
    drawn: Ints, source: Ints, pool: Ints, known: tuple[Ints, Ints, Ints, int], rng: np.random.Generator
) -> None:
    """Replace in place what the user has taken by then; -1 where ten draws were not enough."""
    user, item, part, n_items = known
    taken = {code: np.unique((user * n_items + item)[part <= code]) for code in PARTS.values()}
    open_rows = np.arange(len(drawn))
    for attempt in range(11):
        keys = user[source[open_rows]] * n_items + drawn[open_rows]
        clash = np.zeros(len(open_rows), dtype=bool)
        for code, seen in taken.items():
            here = part[source[open_rows]] == code
            clash[here] = np.isin(keys[here], seen)
        open_rows = open_rows[clash]
        drawn[open_rows] = pool[rng.integers(len(pool), size=len(open_rows))] if attempt < 10 else -1


def _by_rank(rank: Ints, count: Ints, config: SplitConfig) -> Ints:
    part = np.full(len(rank), TEST)
    part[rank < _ceil(count * (1 - config.test))] = VALID
    part[rank < _ceil(count * (1 - config.valid - config.test))] = TRAIN
    return part


def _by_time(order: Floats, config: SplitConfig) -> Ints:
    in_time = np.sort(order)
    first_valid = in_time[min(int(_ceil(len(order) * (1 - config.valid - config.test))), len(order) - 1)]
    first_test = in_time[min(int(_ceil(len(order) * (1 - config.test))), len(order) - 1)]
    return np.where(order < first_valid, TRAIN, np.where(order < first_test, VALID, TEST))


def _last_out(rank: Ints, count: Ints) -> Ints:
    from_end = count - rank
    part = np.where(from_end == 1, TEST, np.where(from_end == 2, VALID, TRAIN))
    return np.where(count < 3, TRAIN, part)


def _rank_in_user(rows: pd.DataFrame) -> tuple[Ints, Ints]:
    """Each row's place in its user's time line (ties in file order), and that line's length."""
    in_order = rows["order"].reset_index(drop=True).sort_values(kind="stable").index
    user = rows["user_id"].reset_index(drop=True)
    rank = user.loc[in_order].groupby(user.loc[in_order]).cumcount().sort_index().to_numpy()
    return rank, user.groupby(user).transform("size").to_numpy()


def _ceil(numbers: Any) -> Floats:
    return np.ceil(np.round(numbers, 6))
