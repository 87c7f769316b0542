"""The titles that each user liked in each scenario, for the prompts, and the rows behind them.

Shape suffix: H rows that may reach a prompt.
"""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from llm4msr import schema
from llm4msr.arrays import Ints

MAX_TITLES = 50
"""Latest liked titles kept for each user and scenario."""


class SeenRows(NamedTuple):
    """The rows behind the histories in their order (`schema.SEEN`), and the place there of each row given."""

    table: pa.Table
    place_H: Ints


def history_table(past: pd.DataFrame, user_H: Ints, item_H: Ints, users: pa.Table, items: pa.Table) -> pa.Table:
    """Liked titles of each user in each scenario, oldest first; most active users first (`schema.HISTORIES`).

    `user_H` and `item_H` are the dense ids of the rows `past`, places in the tables `users` and `items`.
    """
    count = np.bincount(user_H, minlength=len(users))
    active = np.argsort(-count, kind="stable")[: np.count_nonzero(count)]
    line = _inverse(active, len(users))
    names = sorted(past["scenario_id"].unique())
    scenario_H = pd.Index(names).get_indexer(pd.Index(past["scenario_id"]))
    liked = np.flatnonzero(past["label"].to_numpy() > 0.5)
    order = past["order"].to_numpy()[liked]
    liked = liked[np.lexsort((order, scenario_H[liked], line[user_H[liked]]))]
    key = line[user_H[liked]] * len(names) + scenario_H[liked]
    shelf, start, size = np.unique(key, return_index=True, return_counts=True)
    kept = (np.repeat(start + size, size) - np.arange(len(key))) <= MAX_TITLES
    titles = items["title"].combine_chunks().take(item_H[liked[kept]])
    shelves = pa.StructArray.from_arrays(
        [pa.array(names, pa.string()).take(shelf % len(names)), _lists(titles, np.minimum(size, MAX_TITLES))],
        ["scenario_id", "titles"],
    )
    columns = {
        "user": pa.array(active),
        "user_id": users["user_id"].combine_chunks().take(active),
        "interactions": pa.array(count[active]),
        "history": _lists(shelves, np.bincount(shelf // len(names), minlength=len(active))),
    }
    return pa.Table.from_pydict(columns, schema.HISTORIES)


def seen_rows(
    past: pd.DataFrame, user_H: Ints, item_H: Ints, scenario_H: Ints, histories: pa.Table, users: int
) -> SeenRows:
    """The rows `past` in the order of `histories`, each user's oldest first; `users` counts the dense ids of users."""
    line = _inverse(histories["user"].to_numpy(), users)
    in_order = np.lexsort((past["order"].to_numpy(), line[user_H]))
    columns = {"user": user_H, "item": item_H, "label": past["label"].to_numpy(np.float32)}
    columns["before"] = past["order"].groupby(user_H).rank("min").to_numpy(np.int64) - 1
    columns |= {"scenario": scenario_H, "order": past["order"].to_numpy(np.int64)}
    table = pa.table({name: column[in_order] for name, column in columns.items()})
    return SeenRows(table, _inverse(in_order, len(in_order)))


def _inverse(places: Ints, size: int) -> Ints:
    inverse = np.zeros(size, np.int64)
    inverse[places] = np.arange(len(places))
    return inverse


def _lists(values: "pa.Array[Any]", lengths: Ints) -> "pa.ListArray[Any]":
    return pa.ListArray.from_arrays(pa.array(np.r_[0, np.cumsum(lengths)], pa.int32()), values)
