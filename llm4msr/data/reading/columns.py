"""Rows as they stand in a file, and the checks that turn a column of them into ids, texts, features and numbers.

The types that a column may have are decided here: text, whole and other numbers, booleans, dates and time stamps, all
of these also as a dictionary, and lists of them as many-valued features. Anything else is refused by its name. A cell
becomes the same value whatever stands in the other rows, since a file is read in pieces.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn, TypeVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as types
from upath import UPath

from llm4msr.arrays import Column, Ints, in_one_piece
from llm4msr.errors import DataError
from llm4msr.text import MAX_ID, MAX_TEXT, shorten

_NUMBER = r"^\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*$"
_DECIMAL = pa.decimal128(38, 18)
"""Numbers of a text below 1e20 keep 18 digits behind the point; others are as exact as float64."""
_EXACT = {16: 1 << 11, 32: 1 << 24, 64: 1 << 53}
"""Whole numbers below it are exact in a floating-point column of so many bits."""
_SAFE = pa.scalar(2.0**62)
_EMPTY = pa.scalar("")

_T = TypeVar("_T")


@dataclass(frozen=True)
class Rows:
    """Some rows of a file. Every method raises a DataError that names the file, the column and the row."""

    table: pa.Table
    file: UPath | str
    before: int | None = 0
    """Rows of the file that stand before these; none where rows have no numbers."""
    owner: Ints | None = None
    """The row, counted from 0, that each of these is a value of; none where each is a row itself."""

    def ids(self, name: str) -> Column:
        """Text exactly as given, none of it empty; whole numbers become their decimal text, whatever holds them."""
        column = self._to_text(self.plain(name), name, is_id=True)
        empty = pc.equal(column.fill_null(_EMPTY), _EMPTY)
        self.refuse_where(empty, column, name, "an id cannot be empty")
        return self._within(MAX_ID, column, name, "an id")

    def texts(self, name: str, limit: int = MAX_TEXT) -> Column:
        """Text; what is missing is empty."""
        column = self._to_text(self.plain(name), name).fill_null(_EMPTY)
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
        return pa.ListArray.from_arrays(offsets, in_one_piece(texts))

    def numbers(self, name: str) -> Column:
        """Finite numbers as float64."""
        column = self.to_numbers(self.plain(name), name, "expected a number")
        return column.cast(pa.float64(), safe=False)

    def labels(self, name: str, liked_above: float | Literal[""] = "") -> Column:
        """Numbers between 0 and 1 as float32; `true` and `false` in any case are 1 and 0.

        With `liked_above`, any numbers: 1 above it, else 0.
        """
        if liked_above != "":
            return pc.greater(self.numbers(name), pa.scalar(liked_above)).cast(pa.float32())
        column = self.plain(name)
        if types.is_string(column.type):
            word = pc.utf8_lower(pc.utf8_trim_whitespace(column))
            is_true, is_false = (pc.equal(word, pa.scalar(text)) for text in ("true", "false"))
            column = pc.if_else(is_true, "1", pc.if_else(is_false, "0", column))
        rule = "expected a number, true or false"
        column = self.to_numbers(column, name, rule).cast(pa.float64(), safe=False)
        bad = pc.or_(pc.less(column, pa.scalar(0)), pc.greater(column, pa.scalar(1)))
        rule = "a label lies between 0 and 1 (source.table.liked_above makes likes of other numbers)"
        self.refuse_where(bad, column, name, rule)
        return column.cast(pa.float32())

    def whole_numbers(self, name: str) -> Column:
        """Whole numbers as int64."""
        column = self.to_numbers(self.plain(name), name, "expected a number")
        return self.attempt(column, name, lambda part: part.cast(pa.int64()), "expected a whole number")

    def plain(self, name: str) -> Column:
        """The column's values in one type of each kind: no dictionary, one type of text, no narrow decimals."""
        require_column(name, self.table.column_names, self.file)
        column: Column = self.table[name]
        if types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if types.is_large_string(column.type) or types.is_string_view(column.type):
            column = self.attempt(column, name, lambda part: part.cast(pa.string()), "expected shorter text")
        if not _is_plain(column.type):
            raise DataError(
                f"{self.file}: column '{name}' holds {column.type}; expected text, numbers, booleans, dates or time "
                "stamps; write it as one of these"
            )
        if types.is_string(column.type):
            self.attempt(column, name, lambda part: part.validate(full=True), "expected text in UTF-8")
        if types.is_decimal32(column.type) or types.is_decimal64(column.type):
            return column.cast(pa.decimal128(38, column.type.scale))
        return column.cast(pa.float32()) if types.is_float16(column.type) else column

    def _to_text(self, column: Column, name: str, is_id: bool = False) -> Column:
        """The text of each value; whole numbers in floats and decimals as their decimal text."""
        if types.is_floating(column.type):
            column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
            if is_id:
                inexact = pc.greater_equal(pc.abs(column), pa.scalar(float(_EXACT[column.type.bit_width])))
                rule = f"too large to be exact as {column.type}; write ids as whole numbers or text"
                self.refuse_where(inexact.fill_null(False), column, name, rule)
        if types.is_floating(column.type) or types.is_decimal(column.type):
            kind = pa.int64() if types.is_floating(column.type) else pa.decimal256(76, 0)
            if not is_id:
                is_whole = pc.equal(column, pc.trunc(column))
                if types.is_floating(column.type):
                    is_whole = pc.and_(is_whole, pc.less(pc.abs(column), _SAFE))
                whole = pc.if_else(is_whole, column, pa.scalar(None, column.type)).cast(kind)
                return pc.coalesce(whole.cast(pa.string()), column.cast(pa.string()))
            column = self.attempt(column, name, lambda part: part.cast(kind), "an id is text or a whole number")
        return self.attempt(column, name, lambda part: part.cast(pa.string()), f"{column.type} that no text can show")

    def to_numbers(self, column: Column, name: str, rule: str) -> Column:
        """Numbers of any type, none missing and all finite."""
        if types.is_string(column.type):
            bad = pc.or_kleene(pc.is_null(column), pc.invert(are_numbers(column)))
            self.refuse_where(bad, column, name, rule)
            cells, text = column, pc.utf8_trim_whitespace(column)
            column = text.cast(pa.float64())
            if (pc.max(pc.abs(column)).as_py() or 0) < 1e20:  # beyond, Arrow's decimals overflow in silence
                exact = cast_if_exact(text, _DECIMAL)
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
        self.refuse_where(bad, cells, name, rule)
        return column

    def _within(self, limit: int, column: Column, name: str, what: str) -> Column:
        lengths = pc.utf8_length(cast("pa.StringArray", column))  # Arrow's stubs want one of two forms
        too_long = pc.greater(lengths, pa.scalar(limit))
        self.refuse_where(too_long, column, name, f"{what} has at most {limit} characters")
        return column

    def attempt(self, column: Column, name: str, convert: Callable[[Column], _T], rule: str) -> _T:
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

    def refuse_where(self, bad: Column, cells: Column, name: str, rule: str) -> None:
        """Raise a DataError for the first row that is bad, if there is one; it shows the cell and says the rule."""
        if pc.any(bad).as_py():
            self._refuse(pc.index(bad, True).as_py(), cells, name, rule)

    def _refuse(self, place: int, cells: Column, name: str, rule: str) -> NoReturn:
        where = "one of the rows"
        if self.before is not None:
            where = f"row {self.before + 1 + (place if self.owner is None else int(self.owner[place]))}"
        raise DataError(f"{self.file}: column '{name}': {_show(cells[place])} in {where}; {rule}")


def _show(cell: "pa.Scalar[pa.DataType]") -> str:
    try:
        return shorten(repr(cell.as_py()))
    except (ValueError, OverflowError):  # text that is no UTF-8, a time or a zone that Python does not know
        return shorten(repr(cell.cast(pa.binary() if types.is_string(cell.type) else pa.int64()).as_py()))


def are_numbers(texts: Column) -> Column:
    """Which of the texts are decimal numbers; null where there is no text."""
    return pc.match_substring_regex(texts, _NUMBER)


def cast_if_exact(column: Column, kind: pa.DataType) -> Column:
    """The column in this type, or as it is where the type holds not all of it."""
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
