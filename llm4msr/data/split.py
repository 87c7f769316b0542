"""Which rows train, which validate, which test, and which of the training rows may reach a prompt.

Shape suffixes: R rows, N drawn negatives, K rows of one draw.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

from llm4msr.arrays import AnyFloats, Bools, Ints
from llm4msr.config import SplitConfig
from llm4msr.errors import DataError

TRAIN, VALID, TEST = 0, 1, 2
SPLITS = {"train": TRAIN, "valid": VALID, "test": TEST}


def assign(rows: pd.DataFrame, config: SplitConfig, seed: int) -> Ints:
    """The split [R] (0 train, 1 valid, 2 test) of each row of `rows` (columns `user_id`, `order`).

    `time` by `global`: rows of one time stay together. `time` by `user`: a user's last rows. Either way no
    training row of a user is later than one of their validation or test rows.

    Raises:
        DataError: a split would be empty.
    """
    if config.kind == "random":
        split_R = _by_rank(np.random.default_rng(seed).permutation(len(rows)), np.full(len(rows), len(rows)), config)
    elif config.kind == "time" and config.by == "global":
        split_R = _by_time(rows["order"].to_numpy(), config)
    else:
        rank_R, count_R = _rank_in_user(rows)
        is_last_out = config.kind == "leave_last_out"
        split_R = _last_out(rank_R, count_R) if is_last_out else _by_rank(rank_R, count_R, config)
    for name, code in SPLITS.items():
        if not (split_R == code).any():
            raise DataError(f"split '{config.kind}': no {name} rows in {len(rows)} rows; {_remedy(rows, config)}")
    return split_R


def _remedy(rows: pd.DataFrame, config: SplitConfig) -> str:
    times = rows["order"].nunique()
    if config.kind == "time" and config.by == "global" and times < min(len(rows), 100):
        return f"they have {times} different times, and rows of one time stay together: set split.by = 'user'"
    return "give more data or another split"


def history_rows(rows: pd.DataFrame, split_R: Ints, config: SplitConfig) -> Bools:
    """Which rows [R] may reach a prompt: the earliest `history_share` of the training rows."""
    train_R = split_R == TRAIN
    if config.history_share == 1:
        return train_R
    history_R = np.zeros(len(rows), dtype=bool)
    if config.kind == "leave_last_out" or config.by == "user":
        rank, count = _rank_in_user(rows[train_R])
        history_R[train_R] = rank < _ceil(count * config.history_share)
    else:
        order_R = rows["order"].to_numpy()
        history_R = train_R & (order_R <= np.quantile(order_R[train_R], config.history_share, method="lower"))
    return history_R


class Negatives(NamedTuple):
    """Rows that were drawn, with label 0, and the split of each."""

    rows: pd.DataFrame
    split_N: Ints


def draw_negatives(rows: pd.DataFrame, split_R: Ints, per_positive: int, seed: int) -> Negatives:
    """`per_positive` items of the same scenario for each row, none that the user took up to that split.

    Items are drawn uniformly from the training rows. A draw that is refused ten times in a row is left out.
    """
    rng = np.random.default_rng(seed)
    user_R, item_R = pd.factorize(rows["user_id"])[0], pd.factorize(rows["item_id"])[0]
    first_row_of_item = np.unique(item_R, return_index=True)[1]
    interactions = _Interactions(user_R, item_R, split_R, len(first_row_of_item))
    drawn_rows, drawn_items = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for _, scenario_rows in rows.groupby("scenario_id", sort=True).indices.items() if per_positive else ():
        pool = np.unique(item_R[scenario_rows[split_R[scenario_rows] == TRAIN]])
        if len(pool):
            row_K = np.repeat(scenario_rows, per_positive)
            drawn_rows.append(row_K)
            drawn_items.append(_draw(row_K, pool, interactions, rng))
    row_N, item_N = np.concatenate(drawn_rows), np.concatenate(drawn_items)
    row_N, item_N = row_N[item_N >= 0], item_N[item_N >= 0]
    raw_items = rows["item_id"].to_numpy()[first_row_of_item]
    return Negatives(rows.iloc[row_N].assign(item_id=raw_items[item_N], label=np.float32(0)), split_R[row_N])


class _Interactions(NamedTuple):
    """User, item and split of each row; items are numbers below `items`."""

    user_R: Ints
    item_R: Ints
    split_R: Ints
    items: int


def _draw(row_K: Ints, pool: Ints, known: _Interactions, rng: np.random.Generator) -> Ints:
    """An item [K] of the pool for each of these rows; -1 where the user had taken all of ten draws by then."""
    taken = {
        code: np.unique((known.user_R * known.items + known.item_R)[known.split_R <= code]) for code in SPLITS.values()
    }
    item_K = pool[rng.integers(len(pool), size=len(row_K))]
    pending = np.arange(len(item_K))
    for attempt in range(11):
        keys = known.user_R[row_K[pending]] * known.items + item_K[pending]
        is_taken = np.zeros(len(pending), dtype=bool)
        for code, taken_keys in taken.items():
            in_split = known.split_R[row_K[pending]] == code
            is_taken[in_split] = np.isin(keys[in_split], taken_keys)
        pending = pending[is_taken]
        item_K[pending] = pool[rng.integers(len(pool), size=len(pending))] if attempt < 10 else -1
    return item_K


def _by_rank(rank_R: Ints, count_R: Ints, config: SplitConfig) -> Ints:
    split_R = np.full(len(rank_R), TEST)
    split_R[rank_R < _ceil(count_R * (1 - config.test))] = VALID
    split_R[rank_R < _ceil(count_R * (1 - config.valid - config.test))] = TRAIN
    return split_R


def _by_time(order_R: Ints, config: SplitConfig) -> Ints:
    in_time = np.sort(order_R)
    first_valid = in_time[min(int(_ceil(len(order_R) * (1 - config.valid - config.test))), len(order_R) - 1)]
    first_test = in_time[min(int(_ceil(len(order_R) * (1 - config.test))), len(order_R) - 1)]
    return np.where(order_R < first_valid, TRAIN, np.where(order_R < first_test, VALID, TEST))


def _last_out(rank_R: Ints, count_R: Ints) -> Ints:
    from_end_R = count_R - rank_R
    split_R = np.where(from_end_R == 1, TEST, np.where(from_end_R == 2, VALID, TRAIN))
    return np.where(count_R < 3, TRAIN, split_R)


def _rank_in_user(rows: pd.DataFrame) -> tuple[Ints, Ints]:
    """Each row's place in its user's time line (ties in file order), and that line's length: [R] each."""
    in_order = rows["order"].reset_index(drop=True).sort_values(kind="stable").index
    user = rows["user_id"].reset_index(drop=True)
    rank = user.loc[in_order].groupby(user.loc[in_order]).cumcount().sort_index().to_numpy()
    return rank.astype(np.int64), user.groupby(user).transform("size").to_numpy().astype(np.int64)


def _ceil(numbers: AnyFloats | float) -> AnyFloats:
    return np.ceil(np.round(numbers, 6))
