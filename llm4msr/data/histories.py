"""The titles that each user liked in each scenario, for the prompts, and the rows behind them.

Shape suffixes: H rows that may reach a prompt, N of them in another order.
"""

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from llm4msr import schema
from llm4msr.arrays import Array, Column, Ints, Singles, in_one_piece
from llm4msr.data.events import count_earlier
from llm4msr.data.interactions import inverse, sort_places

MAX_TITLES = 50
"""Latest liked titles kept for each user and scenario."""


class Past(NamedTuple):
    """The rows of a partition that may reach a prompt, in the order of the source, with the numbers of the tables."""

    user_H: Ints
    item_H: Ints
    scenario_H: Ints
    label_H: Singles
    order_H: Ints

    def take(self, places_N: Ints) -> "Past":
        """Some rows, or all in another order."""
        return Past._make(column_H[places_N] for column_H in self)


class Histories(NamedTuple):
    """The tables `histories` and `seen`, and the place in `seen` of each row given [H]."""

    table: pa.Table
    seen: pa.Table
    place_H: Ints


def build(past: Past, user_ids: Column, titles: Column, scenario_ids: list[str]) -> Histories:
    """Histories of the most active users first (`schema.HISTORIES`), and the rows in this order (`schema.SEEN`).

    `user_ids`, `titles` of items and `scenario_ids` are by number.
    """
    count_U = np.bincount(past.user_H, minlength=len(user_ids))
    active = sort_places(-count_U)[: np.count_nonzero(count_U)]
    line_U = inverse(active, len(user_ids))
    in_time = sort_places(past.order_H)
    in_order = in_time[sort_places(line_U[past.user_H[in_time]])]
    rows = past.take(in_order)
    columns = {
        "user": pa.array(active),
        "user_id": in_one_piece(user_ids).take(active),
        "interactions": pa.array(count_U[active]),
        "history": shelves(rows, line_U[rows.user_H], len(active), titles, scenario_ids),
    }
    seen: dict[str, Array] = {
        "user": rows.user_H,
        "item": rows.item_H,
        "label": rows.label_H,
        "before": count_earlier(rows.user_H, rows.order_H)[1],
    }
    seen |= {"scenario": rows.scenario_H, "order": rows.order_H}
    table = pa.Table.from_pydict(columns, schema.HISTORIES)
    return Histories(table, pa.Table.from_pydict(seen, schema.SEEN), inverse(in_order, len(in_order)))


def shelves(rows: Past, line_N: Ints, lines: int, titles: Column, scenario_ids: list[str]) -> "pa.ListArray[Any]":
    """The column `history`: of each line its scenarios, and of these the titles that were liked last."""
    liked = np.flatnonzero((rows.label_H > 0.5) & (rows.item_H > 0))
    key = line_N[liked] * len(scenario_ids) + rows.scenario_H[liked]
    order = sort_places(key)
    liked, key = liked[order], key[order]
    start = np.flatnonzero(np.diff(key, prepend=-1))
    size, shelf = np.diff(start, append=len(key)), key[start]
    is_kept = np.repeat(start + size, size) - np.arange(len(key)) <= MAX_TITLES
    shown = in_one_piece(titles).take(rows.item_H[liked[is_kept]])
    shelves = pa.StructArray.from_arrays(
        [
            pa.array(scenario_ids, pa.string()).take(shelf % len(scenario_ids)),
            _lists(shown, np.minimum(size, MAX_TITLES)),
        ],
        ["scenario_id", "titles"],
    )
    return _lists(shelves, np.bincount(shelf // len(scenario_ids), minlength=lines))


def _lists(values: "pa.Array[Any]", lengths: Ints) -> "pa.ListArray[Any]":
    return pa.ListArray.from_arrays(pa.array(np.r_[0, np.cumsum(lengths)], pa.int32()), values)
