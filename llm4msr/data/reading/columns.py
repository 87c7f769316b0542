"""Rows as they stand in a file, and the checks that turn a column of them into ids, texts, numbers and an order.

The types that a column may have are decided here: text, whole and other numbers, booleans, dates and time stamps, all
of these also as a dictionary, and lists of them as many-valued features. Anything else is refused by its name.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn, TypeVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as types
from upath import UPath

from llm4msr.arrays import Column, Ints
from llm4msr.errors import DataError
from llm4msr.text import MAX_ID, MAX_TEXT, shorten

_NUMBER = r"^\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*$"
_ZONE = r"[T ]\d\d.*(Z|[-+]\d\d(:?\d\d)?)$"
_DECIMAL = pa.decimal128(38, 18)
"""Numbers of a text below 1e20 keep 18 digits behind the point; others are as exact as float64."""
_EXACT = {16: 1 << 11, 32: 1 << 24, 64: 1 << 53}
"""Whole numbers below it are exact in a floating-point column of so many bits."""
_EMPTY = pa.scalar("")

_T = TypeVar("_T")


@dataclass(frozen=True)
class Rows:
    """Some rows of a file. Every method raises a DataError that names the file, the column and the row."""

    table: pa.Table
    file: UPath | str
    before: int = 0
    """Rows of the file that stand before these."""
    owner: Ints | None = None
    """The row, counted from 0, that each of these is a value of; none where each is a row itself."""

    def ids(self, name: str) -> Column:
        """Text exactly as given, none of it empty; whole numbers become their decimal text, whatever holds them."""
        column = self._to_text(self._plain(name), name, is_id=True)
        empty = pc.equal(column.fill_null(_EMPTY), _EMPTY)
        self._refuse_where(empty, column, name, "an id cannot be empty")
        return self._within(MAX_ID, column, name, "an id")

    def texts(self, name: str, limit: int = MAX_TEXT) -> Column:
        """Text; what is missing is empty."""
        column = self._to_text(self._plain(name), name).fill_null(_EMPTY)
        return self._within(limit, column, name, "a cell of this column")

    def features(self, name: str) -> Column:
        """Text, or lists of text where the column holds lists; what is missing is empty."""
        require_column(name, self.table.column_names, self.file)
        column = self.table[name]
        if not _is_list(column.type):
            return self.texts(name)
        lengths = pc.list_value_length(column).fill_null(0).to_numpy()
        values = pa.table([pc.list_flatten(column)], [name])
        texts = Rows(values, self.file, self.before, np.repeat(np.arange(len(lengths)), lengths)).texts(name)
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
        whole = texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts
        return pa.ListArray.from_arrays(offsets, whole)

    def numbers(self, name: str) -> Column:
        """Finite numbers as float64."""
        column = self._to_numbers(self._plain(name), name, "expected a number")
        return column.cast(pa.float64(), safe=False)

    def labels(self, name: str) -> Column:
        """Numbers between 0 and 1 as float32; `true` and `false` in any case are 1 and 0."""
        column = self._plain(name)
        if types.is_string(column.type):
            word = pc.utf8_lower(pc.utf8_trim_whitespace(column))
            is_true, is_false = (pc.equal(word, pa.scalar(text)) for text in ("true", "false"))
            column = pc.if_else(is_true, "1", pc.if_else(is_false, "0", column))
        rule = "expected a number, true or false"
        column = self._to_numbers(column, name, rule).cast(pa.float64(), safe=False)
        bad = pc.or_(pc.less(column, pa.scalar(0)), pc.greater(column, pa.scalar(1)))
        self._refuse_where(bad, column, name, "a label lies between 0 and 1; make a rating binary first")
        return column.cast(pa.float32())

    def whole_numbers(self, name: str) -> Column:
        """Whole numbers as int64."""
        column = self._to_numbers(self._plain(name), name, "expected a number")
        return self._attempt(column, name, lambda part: part.cast(pa.int64()), "expected a whole number")

    def order(self, name: str) -> Column:
        """int64 that grows as the column does, and is equal where it is: numbers, dates, time stamps, ISO 8601 text.

        Whole numbers stay themselves, a time is counted in its column's unit (of a text, microseconds, or nanoseconds
        where it has them), and other numbers become their rank.
        """
        column = self._plain(name)
        if types.is_string(column.type):
            column = self._to_times_or_numbers(column, name)
        if types.is_temporal(column.type):
            self._refuse_where(pc.is_null(column), column, name, "expected a time")
            return (column.cast(pa.int32()) if types.is_date32(column.type) else column).cast(pa.int64())
        column = self._to_numbers(column, name, "expected a number")
        try:
            return column.cast(pa.int64())
        except pa.ArrowInvalid:
            return pc.rank(column, tiebreaker="dense").cast(pa.int64())

    def _plain(self, name: str) -> Column:
        """The column's values in one type of each kind: no dictionary, one type of text, no narrow decimals."""
        require_column(name, self.table.column_names, self.file)
        column: Column = self.table[name]
        if types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if types.is_large_string(column.type) or types.is_string_view(column.type):
            column = self._attempt(column, name, lambda part: part.cast(pa.string()), "expected shorter text")
        if not _is_plain(column.type):
            raise DataError(
                f"{self.file}: column '{name}' holds {column.type}; expected text, numbers, booleans, dates or time "
                "stamps; write it as one of these"
            )
        if types.is_string(column.type):
            self._attempt(column, name, lambda part: part.validate(full=True), "expected text in UTF-8")
        if types.is_decimal32(column.type) or types.is_decimal64(column.type):
            return column.cast(pa.decimal128(38, column.type.scale))
        return column.cast(pa.float32()) if types.is_float16(column.type) else column

    def _to_text(self, column: Column, name: str, is_id: bool = False) -> Column:
        """Whole numbers as their decimal text, also where a column of floats or decimals holds nothing else."""
        if types.is_floating(column.type):
            column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
            if is_id:
                inexact = pc.greater_equal(pc.abs(column), pa.scalar(float(_EXACT[column.type.bit_width])))
                rule = f"too large to be exact as {column.type}; write ids as whole numbers or text"
                self._refuse_where(inexact.fill_null(False), column, name, rule)
        if types.is_floating(column.type) or types.is_decimal(column.type):
            kind = pa.int64() if types.is_floating(column.type) else pa.decimal256(76, 0)
            if is_id:
                rule = "an id is text or a whole number"
                column = self._attempt(column, name, lambda part: part.cast(kind), rule)
            else:
                column = _cast_if_exact(column, kind)
        return self._attempt(column, name, lambda part: part.cast(pa.string()), f"{column.type} that no text can show")

    def _to_numbers(self, column: Column, name: str, rule: str) -> Column:
        """Numbers of any type, none missing and all finite."""
        if types.is_string(column.type):
            bad = pc.or_kleene(pc.is_null(column), pc.invert(pc.match_substring_regex(column, _NUMBER)))
            self._refuse_where(bad, column, name, rule)
            cells, text = column, pc.utf8_trim_whitespace(column)
            column = text.cast(pa.float64())
            if len(text) and pc.max(pc.abs(column)).as_py() < 1e20:  # beyond, Arrow's decimals overflow in silence
                exact = _cast_if_exact(text, _DECIMAL)
                column = column if exact is text else exact
        elif types.is_temporal(column.type):
            raise DataError(f"{self.file}: column '{name}' holds {column.type}; expected numbers")
        else:
            cells = column
            column = column.cast(pa.int8()) if types.is_boolean(column.type) else column
            column = column.cast(pa.float64()) if types.is_null(column.type) else column
        bad = pc.is_null(column)
        if types.is_floating(column.type):
            bad = pc.or_kleene(bad, pc.invert(pc.is_finite(column)))
        self._refuse_where(bad, cells, name, rule)
        return column

    def _to_times_or_numbers(self, column: Column, name: str) -> Column:
        """Numbers, if at least half of the texts are; else time stamps."""
        rule = "expected a number or a time such as 2026-05-31T12:00:00Z"
        if 2 * len(column.filter(pc.match_substring_regex(column, _NUMBER))) >= len(column):
            return self._to_numbers(column, name, rule)
        text = pc.utf8_trim_whitespace(column)
        text = pc.replace_substring_regex(text, r" ?UTC$", "Z")
        text = pc.replace_substring_regex(text, r"(\d) ([-+]\d\d(:?\d\d)?)$", r"\1\2")
        self._refuse_where(pc.is_null(text), column, name, rule)
        zoned = pc.match_substring_regex(text, _ZONE)
        first = zoned[0]
        mixed = f"the first row has {'a' if first.as_py() else 'no'} time zone; write all times with one or all without"
        self._refuse_where(pc.xor(zoned, first), column, name, mixed)
        in_us, in_ns = (pa.timestamp(unit, "UTC" if first.as_py() else None) for unit in ("us", "ns"))
        times = _cast_if_exact(text, in_us)
        return self._attempt(text, name, lambda part: part.cast(in_ns), rule) if times is text else times

    def _within(self, limit: int, column: Column, name: str, what: str) -> Column:
        lengths = pc.utf8_length(cast("pa.StringArray", column))  # Arrow's stubs want one of two forms
        too_long = pc.greater(lengths, pa.scalar(limit))
        self._refuse_where(too_long, column, name, f"{what} has at most {limit} characters")
        return column

    def _attempt(self, column: Column, name: str, convert: Callable[[Column], _T], rule: str) -> _T:
        """What `convert` makes of the column; where it fails, the first row at which it does is named."""
        try:
            return convert(column)
        except pa.ArrowInvalid:
            first, end = 0, len(column)
            while end - first > 1:
                middle = (first + end) // 2
                try:
                    convert(column.slice(first, middle - first))
                    first = middle
                except pa.ArrowInvalid:
                    end = middle
            self._refuse(first, column, name, rule)

    def _refuse_where(self, bad: Column, cells: Column, name: str, rule: str) -> None:
        if pc.any(bad).as_py():
            self._refuse(pc.index(bad, True).as_py(), cells, name, rule)

    def _refuse(self, place: int, cells: Column, name: str, rule: str) -> NoReturn:
        row = self.before + 1 + (place if self.owner is None else int(self.owner[place]))
        raise DataError(f"{self.file}: column '{name}': {_show(cells[place])} in row {row}; {rule}")


def _show(cell: "pa.Scalar[pa.DataType]") -> str:
    try:
        return shorten(repr(cell.as_py()))
    except (ValueError, OverflowError):  # text that is no UTF-8, a time or a zone that Python does not know
        return shorten(repr(cell.cast(pa.binary() if types.is_string(cell.type) else pa.int64()).as_py()))


def _cast_if_exact(column: Column, kind: pa.DataType) -> Column:
    try:
        return column.cast(kind)
    except pa.ArrowInvalid:
        return column


def _is_list(kind: pa.DataType) -> bool:
    tests = (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view, types.is_large_list_view)
    return any(test(kind) for test in tests)


def _is_plain(kind: pa.DataType) -> bool:
    tests = (types.is_string, types.is_boolean, types.is_integer, types.is_floating, types.is_decimal)
    return any(test(kind) for test in (*tests, types.is_date, types.is_timestamp, types.is_null))


def split_texts(texts: Column, separator: str) -> Column:
    """Each text as a list of the texts between separators; null stays null."""
    return pc.split_pattern(cast("pa.StringArray", texts), separator)  # Arrow's stubs want one of two forms


def join_texts(texts: "Sequence[Column | str]", separator: str = "") -> Column:
    """The texts of each row, joined; null where one of them is."""
    arguments = [*texts, pa.scalar(separator)]
    return pc.call_function("binary_join_element_wise", arguments)


def require_column(name: str, header: list[str], file: UPath | str) -> None:
    """Raise a DataError if a column is not there, or more than once."""
    if name not in header:
        columns = shorten(", ".join(header), 2000)
        raise DataError(f"{file}: column '{name}' is missing; it has {columns}")
    if header.count(name) > 1:
        raise DataError(f"{file}: column '{name}' stands twice in the header")
