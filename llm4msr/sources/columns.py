"""Rows of text as they stand in a file, and the checks that turn a column of them into ids, texts and numbers."""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
from upath import UPath

from llm4msr.errors import DataError

_NUMBER = r"^\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*$"


@dataclass(frozen=True)
class Rows:
    """Some rows of a file. Every method raises a DataError that names the file, the column and the row."""

    table: pa.Table
    file: UPath
    before: int = 0
    """Rows of the file that stand before these."""

    def column(self, name: str) -> pa.ChunkedArray:
        """The column as it is; it stands there once and is no list."""
        refuse_missing(name, self.table.column_names, self.file)
        column = self.table[name]
        if pa.types.is_nested(column.type):
            raise DataError(f"{self.file}: column '{name}' holds {column.type}; expected text or numbers")
        return column

    def ids(self, name: str) -> pa.ChunkedArray:
        """Text, none of it empty."""
        column = self.column(name).cast(pa.string())
        empty = pc.or_kleene(pc.is_null(column), pc.equal(pc.fill_null(column, ""), ""))
        self._refuse_where(empty, column, name, "an id cannot be empty")
        return column

    def texts(self, name: str) -> pa.ChunkedArray:
        """Text; what is missing is empty."""
        return pc.fill_null(self.column(name).cast(pa.string()), "")

    def numbers(self, name: str) -> pa.ChunkedArray:
        """Finite numbers as float64; a time becomes its microseconds."""
        column = self.column(name)
        if pa.types.is_temporal(column.type):
            column = column.cast(pa.timestamp("us")).cast(pa.int64())
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            bad = pc.invert(pc.fill_null(pc.match_substring_regex(column, _NUMBER), False))
            self._refuse_where(bad, column, name, "expected a number")
            column = pc.utf8_trim_whitespace(column)
        if pa.types.is_binary(column.type):
            raise DataError(f"{self.file}: column '{name}' holds {column.type}; expected numbers")
        numbers = column.cast(pa.float64())
        bad = pc.fill_null(pc.invert(pc.is_finite(numbers)), True)
        self._refuse_where(bad, column, name, "expected a number")
        return numbers

    def labels(self, name: str) -> pa.ChunkedArray:
        """Numbers between 0 and 1 as float32."""
        labels = self.numbers(name)
        bad = pc.or_(pc.less(labels, 0), pc.greater(labels, 1))
        self._refuse_where(bad, labels, name, "a label lies between 0 and 1; make a rating binary first")
        return labels.cast(pa.float32())

    def _refuse_where(self, bad: pa.ChunkedArray, shown: pa.ChunkedArray, name: str, rule: str) -> None:
        if pc.any(bad).as_py():
            row = pc.index(bad, True).as_py()
            at = self.before + row + 1
            raise DataError(f"{self.file}: column '{name}': {shown[row].as_py()!r} in row {at}; {rule}")


def refuse_missing(name: str, header: list[str], file: UPath) -> None:
    """Raise a DataError if a column is not there, or more than once."""
    if name not in header:
        raise DataError(f"{file}: column '{name}' is missing; it has {', '.join(header)}")
    if header.count(name) > 1:
        raise DataError(f"{file}: column '{name}' stands twice in the header")
