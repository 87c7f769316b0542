"""The raw data that every kind of source gives, and the checks that all of them share."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from upath import UPath

from llm4msr import schema, storage
from llm4msr.arrays import Column, strings
from llm4msr.errors import DataError, StorageError
from llm4msr.storage.s3 import FAULTS

if TYPE_CHECKING:
    import ray.data

UNNUMBERED = schema.RAW_INTERACTIONS.remove(schema.RAW_INTERACTIONS.get_field_index("row"))
"""Interactions before `number_rows`."""
SLICE_ROWS = 1 << 16
"""Rows of a table that a source gives at once, at most."""


class RawTable(Protocol):
    """Rows of a source, read in bounded tables: in this process, or by Ray's tasks. Both ways give the same rows."""

    @property
    def layout(self) -> pa.Schema:
        """Names and types of the columns."""

    @property
    def rows(self) -> int:
        """How many there are; an estimate where only the whole files would tell."""

    def tables(self) -> Iterator[pa.Table]:
        """The rows in the source's order, checked as they are read.

        Raises:
            DataError: a column, a cell or a file is wrong; the message names it.
            StorageError: a file cannot be read.
        """

    def dataset(self) -> "ray.data.Dataset":
        """The same rows as a Ray dataset, which raises the same errors; Ray must be connected."""


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
        """The rows as they are put into Ray's object store, which spills them to disk when it is full."""
        import ray

        return ray.data.from_arrow(list(self.tables()) or [self.layout.empty_table()])

    def _slice(self, start: int, rows: int) -> pa.Table:
        table = self.table.slice(start, rows)
        return number_rows(table, start) if self.numbered else table


def number_rows(table: pa.Table, first: int) -> pa.Table:
    """Interactions with their numbers in a column `row`."""
    place = schema.RAW_INTERACTIONS.get_field_index("row")
    return table.add_column(place, "row", pa.array(np.arange(first, first + len(table))))


def whole(raw: RawTable) -> pa.Table:
    """All rows in one table of this process."""
    return pa.concat_tables([raw.layout.empty_table(), *raw.tables()])


@dataclass(frozen=True)
class RawData:
    """What a source gives, all ids as text. Names that it chose have a prefix, so that they never clash with ours."""

    interactions: RawTable
    users: RawTable
    items: pa.Table
    implicit: bool
    """Whether only positives are known, so that negatives must be drawn."""

    @property
    def context(self) -> tuple[str, ...]:
        """Names of the context fields; the column of `device` is `c:device`."""
        return _names(self.interactions.layout, schema.CONTEXT)

    @property
    def user_features(self) -> tuple[str, ...]:
        """Names of the users' features; the column of `country` is `f:country`."""
        return _names(self.users.layout, schema.FEATURE)

    @property
    def item_features(self) -> tuple[str, ...]:
        """The same of the items."""
        return _names(self.items.schema, schema.FEATURE)


def _names(layout: pa.Schema, prefix: str) -> tuple[str, ...]:
    return tuple(name.removeprefix(prefix) for name in layout.names if name.startswith(prefix))


def check(interactions: pa.Table, users: pa.Table, items: pa.Table, implicit: bool, where: str) -> RawData:
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


def require_unique(column: Column, where: str, name: str) -> None:
    """Raise a DataError that names the first value that stands twice, and its row."""
    counts = pc.value_counts(column)
    if len(counts) == len(column):
        return
    repeated = set(strings(counts.field("values").filter(counts.field("counts").to_numpy() > 1)))
    seen = set()
    for row, value in enumerate(strings(column), start=1):
        if value in seen:
            raise DataError(f"{where}: column '{name}': '{value}' stands again in row {row}; ids must be unique")
        if value in repeated:
            seen.add(value)


def file_fingerprint(file: UPath) -> str:
    """Hash of a file's name and content; an object store's ETag and size stand for the content where there is one.

    Raises:
        StorageError: it cannot be found or read.
    """
    try:
        info = file.fs.info(file.path)
    except FAULTS as error:
        raise StorageError(f"{file}: cannot be read ({type(error).__name__}); check source.path and access") from None
    tag = info.get("ETag") or info.get("etag")
    return storage.digest(file.name, f"{tag} {info.get('size')}" if tag else storage.digest_file(file))
