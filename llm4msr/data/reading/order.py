"""What comes first: numbers, dates, time stamps or ISO 8601 text, each as an int64 that grows as it does.

The rows of all files of a source are compared with one another, so all become numbers in one way. The first rows decide
on it, and later rows that do not fit are refused.
"""

from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as types

from llm4msr.arrays import Column, Ints
from llm4msr.data.reading.columns import Rows, are_numbers, cast_if_exact
from llm4msr.errors import DataError

Kind = Literal["time", "whole", "unsigned", "billionths", "float"]

_ZONE = r"[T ]\d\d.*(Z|[-+]\d\d(:?\d\d)?)$"
_NUMBER, _TIME = "expected a number", "expected a time"
_EITHER = "expected a number or a time such as 2026-05-31T12:00:00Z"
_NEXT: dict[Kind, str] = {
    "whole": "expected a whole number, as in the first rows; write all alike, such as in milliseconds",
    "unsigned": "expected a whole number from 0 to 2^64 - 1, as in the first rows; write all alike",
    "billionths": "expected a number with at most nine digits behind the point, as in the first rows; write all alike",
    "float": _NUMBER,
}
"""What is said of a row that does not fit the first ones."""
_BILLIONTHS = pa.decimal256(38, 9)
_BILLION = pa.scalar(Decimal(10**9), pa.decimal256(10, 0))


@dataclass(frozen=True)
class Order:
    """How the values of an order column become int64.

    Times are counted in their column's unit; those of a text in microseconds, or in nanoseconds if the first rows have
    them. Whole numbers stay themselves; if the first rows have some from 2^63 on, that is taken from all. Other numbers
    become the bits of a float64, turned so that they sort as it does; but if it would make equal what differs in the
    first rows, they are counted in billionths.
    """

    kind: Kind
    time: pa.DataType | None = None

    @classmethod
    def decide(cls, first: Rows, name: str) -> "Order":
        """As the first rows ask for.

        Raises:
            DataError: they hold neither numbers nor times; file, column and row are named.
        """
        column = first.plain(name)
        if types.is_temporal(column.type):
            return cls("time", column.type)
        is_text = types.is_string(column.type)
        if is_text and 2 * (pc.sum(are_numbers(column)).as_py() or 0) < len(column):
            return cls("time", _parse_times(first, column, name).type)
        return cls(_kind_of(first.to_numbers(column, name, _EITHER if is_text else _NUMBER)))

    def encode(self, rows: Rows, name: str) -> Column:
        """The column as int64.

        Raises:
            DataError: a cell is missing or does not fit the first rows; file, column and row are named.
        """
        column = rows.plain(name)
        if self.time is not None:
            return self._encode_times(rows, column, name, self.time)
        rule = _NEXT[self.kind]
        numbers = rows.to_numbers(column, name, rule)
        if self.kind == "float":
            text = types.is_string(column.type)  # not by way of decimals, whose conversion is not the nearest float
            return _sortable_bits(pc.utf8_trim_whitespace(column) if text else numbers)
        try:
            return _to_int64(self.kind, numbers)
        except pa.ArrowInvalid:
            kind = self.kind
            return rows.attempt(column, name, lambda part: _to_int64(kind, rows.to_numbers(part, name, rule)), rule)

    def _encode_times(self, rows: Rows, column: Column, name: str, time: pa.DataType) -> Column:
        rows.refuse_where(pc.is_null(column), column, name, _TIME)
        if types.is_string(column.type) and types.is_timestamp(time):
            column = _parse_times(rows, column, name, time)
        both_stamps = types.is_timestamp(column.type) and types.is_timestamp(time)
        if column.type != time and not (both_stamps and _has_zone(column.type) == _has_zone(time)):
            _refuse_type(rows, column, name, time)
        stamps = rows.attempt(column, name, lambda part: part.cast(time), f"expected {time}, as in the first rows")
        return (stamps.cast(pa.int32()) if types.is_date32(time) else stamps).cast(pa.int64())


def _refuse_type(rows: Rows, column: Column, name: str, time: pa.DataType) -> NoReturn:
    raise DataError(
        f"{rows.file}: column '{name}' holds {column.type}, and in the first file {time}; write all files alike"
    )


def _kind_of(numbers: Column) -> Kind:
    kinds: tuple[Kind, ...] = ("whole",)
    if types.is_decimal(numbers.type):
        as_floats = pc.count_distinct(numbers.cast(pa.float64())).as_py()
        kinds += ("unsigned",) if as_floats == pc.count_distinct(numbers).as_py() else ("unsigned", "billionths")
    elif types.is_unsigned_integer(numbers.type):
        kinds += ("unsigned",)
    for kind in kinds:
        try:
            _to_int64(kind, numbers)
        except pa.ArrowInvalid:
            continue
        return kind
    return "float"


def _to_int64(kind: Kind, numbers: Column) -> Column:
    """The numbers in one of the ways that keep each exact.

    Raises:
        pa.ArrowInvalid: one does not fit.
    """
    if kind == "whole":
        return numbers.cast(pa.int64())
    if kind == "unsigned":
        if types.is_decimal(numbers.type):  # Arrow cannot rescale those just below 2^64
            numbers = pc.replace_substring_regex(numbers.cast(pa.string()), r"E.*|\.0+$", "")
        bits: Ints = numbers.cast(pa.uint64()).to_numpy().view(np.int64)
        return pa.array(bits ^ np.int64(-(1 << 63)))
    if types.is_floating(numbers.type):
        raise pa.ArrowInvalid("a float64 is not exact in billionths")
    return pc.multiply(numbers.cast(_BILLIONTHS), _BILLION).cast(pa.int64())


def _sortable_bits(numbers: Column) -> Column:
    """The bits of float64; of negative numbers, whose greater bits mean less, all but the sign are turned over."""
    floats = numbers.cast(pa.float64(), safe=False).to_numpy() + 0.0  # -0.0 is 0.0
    bits: Ints = floats.view(np.int64)
    return pa.array(np.where(bits < 0, bits ^ np.int64((1 << 63) - 1), bits))


def _has_zone(time: pa.DataType) -> bool:
    return getattr(time, "tz", None) is not None


def _parse_times(rows: Rows, column: Column, name: str, time: pa.DataType | None = None) -> Column:
    """ISO 8601 as time stamps of this type, or of one that fits all of these rows."""
    text = pc.utf8_trim_whitespace(column)
    text = pc.replace_substring_regex(text, r" ?UTC$", "Z")
    text = pc.replace_substring_regex(text, r"(\d) ([-+]\d\d(:?\d\d)?)$", r"\1\2")
    rows.refuse_where(pc.is_null(text), column, name, _EITHER)
    zoned = pc.match_substring_regex(text, _ZONE)
    with_zone = pa.scalar(bool(zoned[0].as_py()) if time is None else _has_zone(time))
    has = f"has {'a' if with_zone.as_py() else 'no'} time zone"
    mixed = f"the first row {has}; write all times with one or all without"
    rows.refuse_where(pc.xor(zoned, with_zone), column, name, mixed)
    zone = "UTC" if with_zone.as_py() else None
    times = cast_if_exact(text, pa.timestamp("us", zone)) if time is None else text
    stamps = time or pa.timestamp("ns", zone)
    return rows.attempt(text, name, lambda part: part.cast(stamps), _EITHER) if times is text else times
