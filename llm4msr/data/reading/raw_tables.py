"""The ways to a `RawTable`: a table that is there, pieces that can be read apart, and what another library reads."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm4msr import schema
from llm4msr.data.reading.raw_data import RawData
from llm4msr.errors import DataError

if TYPE_CHECKING:
    import ray.data

P = TypeVar("P")

UNNUMBERED = schema.RAW_INTERACTIONS.remove(schema.RAW_INTERACTIONS.get_field_index("row"))
"""Interactions before `number_rows`."""
SLICE_ROWS = 1 << 16
"""Rows that a source gives at once."""


@dataclass(frozen=True)
class HeldTable:
    """A table that this process holds, or maps from a file of its own."""

    table: pa.Table
    numbered: bool = False
    """Whether the rows get a column `row`, which counts them."""

    @property
    def layout(self) -> pa.Schema:
        """Names and types of the columns."""
        return self._slice(0, 0).schema

    @property
    def rows(self) -> int:
        """How many there are."""
        return self.table.num_rows

    def tables(self) -> Iterator[pa.Table]:
        """The rows in slices."""
        return (self._slice(start, SLICE_ROWS) for start in range(0, self.rows, SLICE_ROWS))

    def dataset(self) -> "ray.data.Dataset":
        """The rows by way of Ray's object store, which spills them to disk where it is full."""
        import ray

        return ray.data.from_arrow(list(self.tables()) or [self.layout.empty_table()])

    def _slice(self, start: int, rows: int) -> pa.Table:
        table = self.table.slice(start, rows)
        return number_rows(table, start) if self.numbered else table


@dataclass(frozen=True)
class PieceTable(Generic[P]):
    """Rows in pieces, each of which is read by a function that can be sent to Ray's tasks."""

    layout: pa.Schema
    rows: int
    pieces: Sequence[P]
    read: Callable[[P], Iterator[pa.Table]]
    size: int
    """In bytes, about."""

    def tables(self) -> Iterator[pa.Table]:
        """The rows of one piece after the other."""
        for piece in self.pieces:
            yield from self.read(piece)

    def dataset(self) -> "ray.data.Dataset":
        """The rows of some pieces in each task."""
        import ray

        from llm4msr.data.reading.ray_pieces import PieceDatasource

        return ray.data.read_datasource(PieceDatasource(self.pieces, self.size, self.read))


@dataclass(frozen=True)
class ReaderTable:
    """Rows that another library reads in this process, and that Ray Data has a reader for."""

    layout: pa.Schema
    rows: int
    read: Callable[[], Iterator[pa.Table]]
    read_on_ray: Callable[[], "ray.data.Dataset"]
    convert: Callable[[pa.Table], pa.Table]

    def tables(self) -> Iterator[pa.Table]:
        """The rows as the library gives them."""
        return map(self.convert, self.read())

    def dataset(self) -> "ray.data.Dataset":
        """The rows as Ray's reader gives them."""
        return self.read_on_ray().map_batches(self.convert, batch_size=None, batch_format="pyarrow")


def number_rows(table: pa.Table, first: int) -> pa.Table:
    """Interactions with a column `row` that counts them from `first` on."""
    place = schema.RAW_INTERACTIONS.get_field_index("row")
    return table.add_column(place, "row", pa.array(np.arange(first, first + len(table))))


def hold(interactions: pa.Table, users: pa.Table, items: pa.Table, implicit: bool, where: str) -> RawData:
    """The raw data of tables that this process holds, once they have the schema's columns.

    Raises:
        DataError: they have not, or there is no interaction; `where` is named.
    """
    schema.check(interactions, UNNUMBERED, where)
    if not interactions.num_rows:
        raise DataError(f"{where}: no interactions; the file is empty")
    schema.check(users, schema.RAW_USERS, where)
    schema.check(items, schema.RAW_ITEMS, where)
    return RawData(HeldTable(interactions, numbered=True), HeldTable(users), items, implicit)


def first_rows(raw: RawData, count: int) -> RawData:
    """The first interactions of a source, its users in them, and all items."""
    held: list[pa.Table] = []
    for table in raw.interactions.tables():
        held.append(table)
        if sum(map(len, held)) >= count:
            break
    interactions = pa.concat_tables(held).slice(0, count)
    ids = interactions["user_id"].unique()
    users = [table.filter(pc.is_in(table["user_id"], value_set=ids)) for table in raw.users.tables()]
    described = pa.concat_tables([raw.users.layout.empty_table(), *users])
    return replace(raw, interactions=HeldTable(interactions), users=HeldTable(described))
