"""All rows of a partition in the order of time, user by user: what any row's past is read from.

Shape suffixes: R rows in the order of the source, E the same rows in the order of the table, C users in any order.
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from llm4msr import schema
from llm4msr.arrays import AnyInts, Array, Ints
from llm4msr.data.interactions import Interactions, inverse, run_starts, sort_places


class Events(NamedTuple):
    """The table `events`, and the place in it of each row."""

    table: pa.Table
    place_R: Ints


def build(rows: Interactions, split_R: AnyInts, user_R: Ints, item_R: Ints, scenario_R: Ints, active: Ints) -> Events:
    """Events of the users with a history first, in its order, then those of all others (`schema.EVENTS`).

    Args:
        rows: of the partition, also of users without training rows, who have one number together.
        split_R: the split of each.
        user_R: numbers of users in the partition; below 0 for unknown ones in all but the first partition.
        item_R: numbers of items.
        scenario_R: numbers of scenarios.
        active: numbers of the users with a history, in its order.
    """
    code_R = rows.user.number_R
    line_U = np.full(max(int(user_R.max(initial=0)), int(active.max(initial=0))) + 1, len(active))
    line_U[active] = np.arange(len(active))
    line_C = np.zeros(int(code_R.max(initial=-1)) + 1, np.int64)
    line_C[code_R] = np.where(user_R < 0, len(active), line_U[np.maximum(user_R, 0)])
    rank_C = inverse(sort_places(line_C), len(line_C))
    in_time = sort_places(rows.order_R)
    in_order = in_time[sort_places(rank_C[code_R[in_time]])]
    columns: tuple[Array, ...] = (user_R, item_R, scenario_R, rows.label_R, split_R.astype(np.int8))
    counts = count_earlier(code_R[in_order], rows.order_R[in_order])
    arrays = [pa.array(column) for column in (*(column_R[in_order] for column_R in columns), *counts)]
    return Events(pa.Table.from_arrays(arrays, schema=schema.EVENTS), inverse(in_order, len(in_order)))


def count_earlier(user_E: AnyInts, order_E: Ints) -> tuple[Ints, Ints]:
    """How many rows of the same user stand before each, and how many of these are older: int64 [E] each.

    A user's rows stand together, the oldest first.
    """
    place_E = np.arange(len(user_E))
    is_first_E = np.zeros(len(user_E), bool)
    is_first_E[run_starts(user_E)] = True
    first_E = np.maximum.accumulate(np.where(is_first_E, place_E, 0))
    is_first_E[run_starts(order_E)] = True
    moment_E = np.maximum.accumulate(np.where(is_first_E, place_E, 0))
    return place_E - first_E, moment_E - first_E
