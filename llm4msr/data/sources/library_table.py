"""A table that a library reads in this process, and that Ray Data has a reader for."""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from llm4msr.data.reading.columns import Rows, require_column
from llm4msr.data.reading.named_columns import Convert
from llm4msr.data.reading.raw_data import RawTable
from llm4msr.data.reading.raw_tables import ReaderTable
from llm4msr.errors import DataError

if TYPE_CHECKING:
    import ray.data


@dataclass(frozen=True)
class LibraryTable:
    """A `NamedTable` whose rows have no order of their own."""

    where: str
    header: list[str]
    rows: int
    batches: Callable[[list[str]], Iterator[pa.Table]]
    """Bounded tables of these columns, read in this process."""
    dataset: Callable[[list[str]], "ray.data.Dataset"]
    """The same rows as Ray reads them."""
    in_order = False

    def first(self, names: Sequence[str]) -> Rows:
        """The rows that come first, which may be others each time.

        Raises:
            DataError: there are none, or a column is missing.
        """
        for name in names:
            require_column(name, self.header, self.where)
        for table in self.batches(_distinct(names)):
            if len(table):
                return Rows(table, self.where, before=None)
        raise DataError(f"{self.where}: no rows")

    def read(self, names: Sequence[str], convert: Convert, layout: pa.Schema) -> RawTable:
        """All rows in the layout."""
        read, dataset = (functools.partial(way, _distinct(names)) for way in (self.batches, self.dataset))
        return ReaderTable(layout, self.rows, read, dataset, functools.partial(_convert, self.where, convert))


def _distinct(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _convert(where: str, convert: Convert, table: pa.Table) -> pa.Table:
    return convert(Rows(table, where, before=None), None)
