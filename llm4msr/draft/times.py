"""Which column of the interactions says what came first, and whether it is a time or a position within the user."""

import re

import numpy as np
import pyarrow.compute as pc

from llm4msr.arrays import AnyInts, Floats
from llm4msr.data.reading.columns import Rows
from llm4msr.data.reading.order import Order
from llm4msr.draft import names
from llm4msr.draft.columns import ColumnSample, named
from llm4msr.draft.guess import Guess, Note
from llm4msr.draft.samples import Sample
from llm4msr.errors import DataError
from llm4msr.text import quote

_POSITION = names.ORDER[names.ORDER.index("seqpos") :]
_DATE = re.compile(r"\d{1,4}([./-])\d{1,2}\1\d{2,4}\b")
"""How a date begins that is not written as ISO 8601."""
_UNITS = {"seconds": 1e10, "milliseconds": 1e13, "microseconds": 1e16, "nanoseconds": 1e19}
"""Time stamps of today are below these."""


def find_order(sample: Sample, columns: list[ColumnSample], user: str) -> tuple[Guess | Note, bool]:
    """The column, and whether it is a position within each user."""
    for column in named(columns, names.ORDER):
        if _is_order(sample, column.name):
            is_position = _restarts(sample, column.name, user)
            if is_position:
                return Guess("order", column.name, "begins anew for each user, so it is a position within them"), True
            if names.plain(column.name) not in _POSITION:
                return Guess("order", column.name, f"a usual name for time; {_span(column)}"), False
        elif column.kind == "text" and column.filled:
            return _unreadable(column), False
    times = [column for column in columns if column.kind == "time" or (column.kind == "whole" and column.is_epoch)]
    for column in sorted(times, key=lambda column: -column.distinct):
        if _is_order(sample, column.name):
            return Guess("order", column.name, f"it holds times; {_span(column)}", is_sure=False), False
    for column in columns:
        if column.kind == "text" and column.values and all(map(_DATE.match, column.values)):
            return _unreadable(column), False
    return Note("order is left out: no column holds times, so the order of rows in the files says nothing"), False


def _unreadable(column: ColumnSample) -> Guess:
    why = f"it says when, but values such as {quote(column.values[0])} are no numbers and no ISO 8601: see above"
    return Guess("order", column.name, why, is_sure=False)


def read_order(rows: Rows, name: str) -> None:
    """Read the column as the source does.

    Raises:
        DataError: it holds neither numbers nor times, or a cell is missing.
    """
    Order.decide(rows, name).encode(rows, name)


def _is_order(sample: Sample, name: str) -> bool:
    try:
        read_order(Rows(sample.rows.table.select([name]).drop_null(), sample.rows.file), name)
    except DataError:
        return False
    return True


def _span(column: ColumnSample) -> str:
    if column.is_epoch:
        return f"{next(name for name, most in _UNITS.items() if column.high < most)} since 1970"
    return f"such as {quote(column.values[0])}" if column.values else "it is empty"


def _restarts(sample: Sample, name: str, user: str) -> bool:
    """Whether it counts from 0 or 1 for (almost) each user anew, without large gaps; see `data.report_counts`."""
    column = sample.columns[name]
    if not column.is_number or column.is_epoch or not -1 < column.low < 2:
        return False
    rows = sample.rows.table.select([name, user]).drop_null()
    order_R: Floats = Rows(rows, sample.rows.file).numbers(name).to_numpy()
    user_R: AnyInts = pc.index_in(rows[user], value_set=pc.unique(rows[user])).to_numpy()
    count_U = np.bincount(user_R)
    start_U, end_U = np.full(len(count_U), np.inf), np.full(len(count_U), -np.inf)
    np.minimum.at(start_U, user_R, order_R)
    np.maximum.at(end_U, user_R, order_R)
    several_U = count_U > 1
    dense_U = several_U & (start_U >= 0) & (start_U <= 1) & (end_U - start_U < 2 * count_U)
    return bool(several_U.sum() >= 3 and dense_U.sum() >= 0.8 * several_U.sum())
