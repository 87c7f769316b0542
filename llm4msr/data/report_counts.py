"""What the data report counts in the rows of a partition, and how the counts of partitions add up.

Shape suffix: R rows, U users.
"""

import numpy as np
import pyarrow.compute as pc
from pydantic import BaseModel

from llm4msr.arrays import Column, Ints, strings
from llm4msr.data.interactions import Ids, Interactions, distinct
from llm4msr.data.report import Split, Sums
from llm4msr.data.split import SPLITS, SplitRows

FEW_VALUES = 10_000
"""Different values of `order` that a partition names; of more it gives only the number."""
FEW_IDS = 1_000
"""Ids without a description that a partition names where there are several partitions."""


class MissingIds(Sums):
    """Ids of the interactions that the file of users (or items) does not describe."""

    ids: int
    in_file: int
    missing: int
    rows: int
    """Rows of the missing ids."""
    examples: list[tuple[int, str]]
    """Missing ids, each with its first row."""


class RowCounts(BaseModel):
    """The counts of a partition, or of several."""

    rows: int
    left_out: int
    """Rows that are not used."""
    users: int
    users_with_one_row: int
    repeats: int
    first_order: int
    several: int
    """Users with several rows, those that are left out included; for how many of them `order` counts anew, if
    it begins with 0, and if with 1."""
    anew: tuple[int, int]
    orders: int
    """Distinct values of `order`, at least; `order_values` are these where there are few."""
    order_values: list[int] | None
    splits: dict[str, int]
    missing_users: MissingIds | None

    def __add__(self, other: "RowCounts") -> "RowCounts":
        plain = ("rows", "left_out", "users", "users_with_one_row", "repeats", "several")
        values = None
        if self.order_values is not None and other.order_values is not None:
            values = sorted({*self.order_values, *other.order_values})
            values = values if len(values) <= FEW_VALUES else None
        users = self.missing_users
        if users is not None and other.missing_users is not None:
            users = users + other.missing_users
        return RowCounts(
            **{name: getattr(self, name) + getattr(other, name) for name in plain},
            first_order=min(self.first_order, other.first_order),
            anew=(self.anew[0] + other.anew[0], self.anew[1] + other.anew[1]),
            orders=max(self.orders, other.orders, len(values or ())),
            order_values=values,
            splits={name: count + other.splits[name] for name, count in self.splits.items()},
            missing_users=users,
        )

    @property
    def order_restarts(self) -> bool:
        """Whether `order` counts from 0 or 1 for (almost) each user anew, as a position does and time does not."""
        if self.first_order not in (0, 1) or self.several < 3:
            return False
        return self.anew[self.first_order] >= 0.8 * self.several


def count_rows(
    every: Interactions, split: SplitRows, described: "Column | None", few_ids: int | None = None
) -> RowCounts:
    """The counts of a partition: `every` row of its users, and those that are used.

    `described` are the ids of the partition that a file of users describes; None where there is no such file. At most
    `few_ids` missing ones are named.
    """
    rows, count_U = split.rows, split.rows.user.count_rows()
    values = distinct(rows.order_R)
    several, anew = _count_restarts(every)
    first_U = _first_rows(rows.user, rows.row_R)
    return RowCounts(
        rows=len(rows),
        left_out=len(every) - len(rows),
        users=len(count_U),
        users_with_one_row=int((count_U == 1).sum()),
        repeats=count_repeats(rows.user, rows.item, rows.scenario),
        first_order=int(every.order_R.min(initial=np.iinfo(np.int64).max)),
        several=several,
        anew=anew,
        orders=len(values),
        order_values=values.tolist() if len(values) <= FEW_VALUES else None,
        splits={name: split.count(name) for name in SPLITS},
        missing_users=None
        if described is None
        else find_missing(rows.user.distinct, count_U, first_U, described, few_ids),
    )


def _first_rows(ids: Ids, row_R: Ints) -> Ints:
    first = np.zeros(len(ids.distinct), np.int64)
    first[ids.number_R[::-1]] = row_R[::-1]
    return first


def _count_restarts(rows: Interactions) -> tuple[int, tuple[int, int]]:
    """Users with several rows, and for how many of them `order` counts anew from 0, and from 1."""
    user_R, order_R, count_U = rows.user.number_R, rows.order_R, rows.user.count_rows()
    several_U = count_U > 1
    if order_R.min(initial=9) > 1 + 1 or not several_U.any():
        return int(several_U.sum()), (0, 0)
    start_U, end_U = np.full(len(count_U), np.iinfo(np.int64).max), np.full(len(count_U), np.iinfo(np.int64).min)
    np.minimum.at(start_U, user_R, order_R)
    np.maximum.at(end_U, user_R, order_R)
    is_dense_U = several_U & (end_U - start_U < 2 * count_U)
    return int(several_U.sum()), (int((is_dense_U & (start_U <= 1)).sum()), int((is_dense_U & (start_U <= 2)).sum()))


def find_missing(ids: Column, count_U: Ints, first_U: Ints, described: Column, few: int | None = None) -> MissingIds:
    """Which ids are not described.

    Args:
        ids: distinct ids of the interactions.
        count_U: the rows of each.
        first_U: the first row of each.
        described: the ids in the file.
        few: how many missing ids are named at most.
    """
    is_missing_U = pc.invert(pc.is_in(ids, value_set=described)).to_numpy(zero_copy_only=False)
    places = np.flatnonzero(is_missing_U)
    named = places[np.argsort(first_U[places], kind="stable")][:few]
    texts = strings(ids.take(named))
    return MissingIds(
        ids=len(ids),
        in_file=len(described),
        missing=len(places),
        rows=int(count_U[places].sum()),
        examples=[*zip(first_U[named].tolist(), texts, strict=True)],
    )


def count_repeats(*sides: Ids) -> int:
    """Rows that have the ids of an earlier row on all sides."""
    same_R = np.zeros(len(sides[0].number_R), np.int64)
    for number_R, _ in sides:
        size = int(number_R.max(initial=0)) + 1
        if (int(same_R.max(initial=0)) + 1) * size >= 1 << 63:
            same_R = np.unique(same_R, return_inverse=True)[1]
        same_R = same_R * size + number_R
    return len(same_R) - len(distinct(same_R))


def count_split(split: SplitRows, name: str, drawn: int) -> Split:
    """What the report says of one split of a partition, in which so many negatives were drawn."""
    in_split_R = split.split_R == SPLITS[name]
    rows_U, past_U = split.rows.user.count_rows(in_split_R), split.rows.user.count_rows(split.history_R)
    has_past_U = past_U > 0
    return Split(
        rows=int(in_split_R.sum()) + drawn,
        drawn=drawn,
        positives=int((split.rows.label_R[in_split_R] > 0.5).sum()),
        users=int((rows_U > 0).sum()),
        users_with_past=int((has_past_U & (rows_U > 0)).sum()),
        rows_with_past=int(rows_U[has_past_U].sum()),
    )
