"""The raw data that every kind of source gives: interactions, users and items."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from llm4msr import schema
from llm4msr.arrays import Column, strings
from llm4msr.errors import DataError

if TYPE_CHECKING:
    import ray.data


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


def whole(raw: RawTable) -> pa.Table:
    """All rows in one table of this process."""
    return pa.concat_tables([raw.layout.empty_table(), *raw.tables()])


@dataclass(frozen=True)
class RawData:
    """What a source gives, all ids as text. Names that it chose have a prefix, so that they never clash with ours."""

    interactions: RawTable
    users: RawTable
    """An id may stand twice, which `read_users` refuses, or whoever else brings equal ids together."""
    items: pa.Table
    implicit: bool
    """Whether only positives are known, so that negatives must be drawn."""
    users_file: str = "the source's users"
    """How messages call the users' table; `users_key` is its column of ids."""
    users_key: str = "user_id"

    def read_users(self) -> pa.Table:
        """All users in one table of this process.

        Raises:
            DataError: an id stands twice.
        """
        users = whole(self.users)
        require_unique(users["user_id"], self.users_file, self.users_key)
        return users

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


def require_unique(column: Column, where: str, name: str, advice: str = "keep one row of each") -> None:
    """Raise a DataError that names the first value that stands twice, and its row, and counts the other such rows."""
    counts = pc.value_counts(column)
    if len(counts) == len(column):
        return
    repeated = set(strings(counts.field("values").filter(counts.field("counts").to_numpy() > 1)))
    seen = set()
    for row, value in enumerate(strings(column), start=1):
        if value in seen:
            others = len(column) - len(counts) - 1
            more = f", and {others:,} more rows repeat an id" if others else ""
            raise DataError(
                f"{where}: column '{name}': '{value}' stands again in row {row}{more}; ids must be unique: {advice}"
            )
        if value in repeated:
            seen.add(value)
