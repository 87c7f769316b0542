"""From tables whose columns `source.table` names to the raw layout."""

import functools
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from llm4msr import schema
from llm4msr.arrays import Column, Hashes
from llm4msr.config import TableColumns
from llm4msr.data.reading.columns import Rows, split_texts
from llm4msr.data.reading.order import Order
from llm4msr.data.reading.raw_data import RawData, RawTable, require_unique, whole
from llm4msr.data.reading.raw_tables import HeldTable
from llm4msr.errors import ConfigError, DataError
from llm4msr.progress import say
from llm4msr.text import MAX_ID

ONLY_SCENARIO = "all"
"""The name of the scenario where a source tells none apart."""
Convert = functools.partial[pa.Table]
"""From rows, and the number of the first of them (none where they have no order), to the raw layout: what the function
needs besides these is bound to it, and tells two ways of reading apart."""


class NamedTable(Protocol):
    """A table of a source, of which any columns can be read."""

    @property
    def where(self) -> str:
        """How messages call it."""

    @property
    def in_order(self) -> bool:
        """Whether its rows have an order of their own."""

    def first(self, names: Sequence[str]) -> Rows:
        """Its first rows, at least one.

        Raises:
            DataError: it has none, or lacks a column.
            StorageError: it cannot be read.
        """

    def read(self, names: Sequence[str], convert: Convert, layout: pa.Schema) -> RawTable:
        """All rows, which `convert` brings into the layout."""


def tables_of(columns: TableColumns) -> list[str]:
    """The names of the source's tables."""
    return [columns.interactions, *(name for name in (columns.items, columns.users) if name)]


def read_named(columns: TableColumns, find_table: Callable[[str], NamedTable]) -> RawData:
    """The raw data of the tables that the config names.

    Raises:
        ConfigError: rows without an order, and `source.table.order` is not set.
        DataError: a missing column, a wrong type, an empty table, a bad item.
        StorageError: a table cannot be read.
    """
    interactions = _interactions(columns, find_table(columns.interactions))
    users: RawTable = HeldTable(schema.RAW_USERS.empty_table())
    users_file, users_key = "", columns.user_in_users or columns.user
    items = schema.RAW_ITEMS.empty_table()
    if columns.users:
        table = find_table(columns.users)
        convert = functools.partial(_convert_users, columns, users_key)
        users, users_file = _read(table, [users_key, *columns.user_features], convert), table.where
    elif columns.user_features:
        raise _no_table("users", columns.user_features)
    if columns.items:
        table = find_table(columns.items)
        texts = [name for name in (columns.title, columns.category) if name]
        key = columns.item_in_items or columns.item
        convert = functools.partial(_convert_items, columns, key)
        items = whole(_read(table, [key, *texts, *columns.item_features], convert))
        if columns.repeated_items == "first":
            items = _first_of_each(items, table.where)
        advice = "keep one row of each, or set source.table.repeated_items = 'first'"
        require_unique(items["item_id"], table.where, key, advice)
    elif columns.item_features:
        raise _no_table("items", columns.item_features)
    return RawData(interactions, users, items, not columns.label, users_file, users_key)


def _first_of_each(items: pa.Table, where: str) -> pa.Table:
    """Without the rows whose id stands in an earlier one, which are told."""
    rows = items.select(["item_id"]).append_column("row", pa.array(np.arange(len(items))))
    first = rows.group_by("item_id").aggregate([("row", "min")])["row_min"]
    if repeats := len(items) - len(first):
        say(f"  {where}: rows that repeat an item's id, which are not used: {repeats:,}")
    return items.take(np.sort(first.to_numpy()))


def _no_table(side: str, features: tuple[str, ...]) -> DataError:
    return DataError(f"source.table: features {', '.join(features)} need a file of {side}")


def _interactions(columns: TableColumns, table: NamedTable) -> RawTable:
    if not (columns.order or table.in_order):
        raise ConfigError(f"source.table.order: the rows of {table.where} have no order of their own; name its column")
    optional = [name for name in (columns.scenario, columns.label, columns.order) if name]
    names = [columns.user, columns.item, *optional, *columns.context]
    first = table.first(names)
    order = Order.decide(first, columns.order) if columns.order else None
    return _read(table, names, functools.partial(_convert_interactions, columns, order), first)


def _read(table: NamedTable, names: Sequence[str], convert: Convert, first: Rows | None = None) -> RawTable:
    first = first or table.first(names)
    empty = Rows(first.table.slice(0, 0), first.file)
    return table.read(names, convert, convert(empty, 0).schema)


def _convert_interactions(columns: TableColumns, order: Order | None, rows: Rows, first: int | None) -> pa.Table:
    count = len(rows.table)
    table: dict[str, Column] = {"user_id": rows.ids(columns.user), "item_id": rows.ids(columns.item)}
    only = pa.repeat(pa.scalar(ONLY_SCENARIO), count)
    table["scenario_id"] = rows.ids(columns.scenario) if columns.scenario else only
    liked = pa.array(np.ones(count, np.float32))
    table["label"] = rows.labels(columns.label, columns.liked_above) if columns.label else liked
    number = None if first is None else pa.array(np.arange(first, first + count))
    if order is not None:
        table["order"] = order.encode(rows, columns.order)
    elif number is not None:
        table["order"] = number
    contexts = {schema.CONTEXT + name: rows.texts(name, MAX_ID) for name in columns.context}
    if number is None:
        number = pa.array(hash_rows(pa.Table.from_pydict(table | contexts)).view(np.int64))
    return pa.Table.from_pydict(table | {"row": number} | contexts)


def hash_rows(table: pa.Table) -> Hashes:
    """A number for each row that its content alone decides: uint64 [R]."""
    plain: dict[str, Column] = {name: table[name] for name in table.column_names}
    for field in table.schema:
        if pa.types.is_list(field.type):
            plain[field.name] = pc.call_function("binary_join", [table[field.name], "\0"])
    hashes = pd.util.hash_pandas_object(pa.Table.from_pydict(plain).to_pandas(), index=False)
    return hashes.to_numpy().astype(np.uint64)


def _convert_users(columns: TableColumns, key: str, rows: Rows, first: int | None) -> pa.Table:
    return pa.Table.from_pydict({"user_id": rows.ids(key)} | _features(rows, columns.user_features))


def _convert_items(columns: TableColumns, key: str, rows: Rows, first: int | None) -> pa.Table:
    ids = rows.ids(key)
    table = {"item_id": ids, "title": rows.texts(columns.title) if columns.title else ids}
    table |= _features(rows, columns.item_features)
    if columns.category:
        path = rows.features(columns.category)
        is_text = pa.types.is_string(path.type)
        table["f:category"] = split_texts(path, columns.category_separator) if is_text else path
    return pa.Table.from_pydict(table)


def _features(rows: Rows, names: tuple[str, ...]) -> dict[str, Column]:
    return {schema.FEATURE + name: rows.features(name) for name in names}
