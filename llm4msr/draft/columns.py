"""What the cells of a column look like, in a sample of rows."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as types

from llm4msr.arrays import Column, Floats, strings
from llm4msr.data.reading.columns import Rows, are_numbers
from llm4msr.data.reading.order import Order
from llm4msr.draft import names
from llm4msr.errors import DataError

Kind = Literal["flag", "whole", "number", "time", "text", "list", "other"]

FEW = 200
"""Different values of a column that are kept."""
_TIMES_LOOKED_AT = 1000
_SECONDS = (9.4e8, 2.2e9)
"""The time stamps of the years 2000 to 2039, in seconds; other units are a thousand times as many, and so on."""


@dataclass(frozen=True)
class ColumnSample:
    """A column of a sample."""

    name: str
    kind: Kind
    """`flag`: 0 and 1, or true and false. `other`: no source takes it."""
    rows: int
    filled: int
    """Rows in which it has a value."""
    distinct: int
    values: tuple[str, ...]
    """Its different values where they are few, the most frequent first; else some of them."""
    low: float = 0.0
    high: float = 0.0
    """Of numbers."""
    words: float = 0.0
    """Of text: words in a cell, on average."""

    @property
    def is_unique(self) -> bool:
        """Whether every row has a value of its own."""
        return 1 < self.rows == self.distinct

    @property
    def is_number(self) -> bool:
        """Whether it holds numbers."""
        return self.kind in ("flag", "whole", "number")

    @property
    def is_epoch(self) -> bool:
        """Whether it holds time stamps as numbers: seconds since 1970, or thousandths, and so on."""
        least, most = _SECONDS
        return any(least * unit < self.low <= self.high < most * unit for unit in (1, 1e3, 1e6, 1e9))


def look_at(rows: Rows, name: str) -> ColumnSample:
    """Describe a column of the sample."""
    count = len(rows.table)
    try:
        plain = rows.plain(name)
    except DataError:
        return _of_lists(rows, name)
    held = plain.drop_null()
    counts = pc.value_counts(held)
    most = np.argsort(-counts.field("counts").to_numpy(), kind="stable")[:FEW]
    values = tuple(strings(_as_text(counts.field("values").take(most))))
    sample = ColumnSample(name, "text", count, len(held), len(counts), values)
    if types.is_temporal(plain.type):
        return replace(sample, kind="time")
    if types.is_string(plain.type) and not _are_numbers(held):
        return _of_text(sample, held, rows, name)
    return _of_numbers(sample, held)


def _of_lists(rows: Rows, name: str) -> ColumnSample:
    count = len(rows.table)
    try:
        rows.features(name)
    except DataError:
        return ColumnSample(name, "other", count, count, 0, ())
    cells = rows.table[name]
    flat = pc.list_flatten(cells)
    values = pc.unique(flat.drop_null())
    some = tuple(strings(_as_text(values[:FEW])))
    return ColumnSample(name, "list", count, count - cells.null_count, len(values), some)


def _as_text(values: Column) -> Column:
    try:
        return values.cast(pa.string())
    except pa.ArrowInvalid:  # times that no text can show
        return pa.array([""] * len(values))


def _are_numbers(texts: Column) -> bool:
    return len(texts) > 0 and bool(pc.all(are_numbers(texts)).as_py())


def _of_text(sample: ColumnSample, held: Column, rows: Rows, name: str) -> ColumnSample:
    if {value.strip().lower() for value in sample.values} in ({"true", "false"}, {"true"}, {"false"}):
        return replace(sample, kind="flag", high=1.0)
    if _are_times(held[:_TIMES_LOOKED_AT], rows, name):
        return replace(sample, kind="time")
    blanks = sum(value.strip().count(" ") for value in sample.values)
    return replace(sample, kind="text", words=1 + blanks / max(1, len(sample.values)))


def _are_times(texts: Column, rows: Rows, name: str) -> bool:
    if not len(texts):
        return False
    try:
        return Order.decide(Rows(pa.Table.from_pydict({name: texts}), rows.file), name).kind == "time"
    except DataError:
        return False


def _of_numbers(sample: ColumnSample, held: Column) -> ColumnSample:
    if not len(held):
        return sample
    plain = pc.utf8_trim_whitespace(held) if types.is_string(held.type) else held
    plain = plain.cast(pa.int8()) if types.is_boolean(plain.type) else plain
    numbers: Floats = plain.cast(pa.float64(), safe=False).to_numpy()  # ids from 2^53 on need not be exact here
    numbers = numbers[np.isfinite(numbers)]
    if not len(numbers):
        return sample
    low, high = float(numbers.min()), float(numbers.max())
    if {*np.unique(numbers).tolist()} <= {0.0, 1.0}:
        return replace(sample, kind="flag", low=low, high=high)
    is_whole = bool((numbers == np.floor(numbers)).all())
    return replace(sample, kind="whole" if is_whole else "number", low=low, high=high)


def named(columns: Iterable[ColumnSample], usual: tuple[str, ...]) -> list[ColumnSample]:
    """Those of the columns that have a usual name, the most usual first."""
    by_name = {column.name: column for column in columns}
    return [by_name[name] for name in names.choose(by_name, usual)]
