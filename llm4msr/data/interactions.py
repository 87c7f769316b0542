"""Interactions as numbers: each id is a place among the distinct ones, which come in the order of the source.

Shape suffixes: R rows, N anything.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa

from llm4msr import schema
from llm4msr.arrays import AnyInts, Bools, Column, Ints, Ints32, Singles


class Ids(NamedTuple):
    """A column of ids as numbers [R], and the ids that these stand for, in the order in which they come."""

    number_R: Ints32
    distinct: "pa.Array[Any]"

    @classmethod
    def from_column(cls, column: Column) -> "Ids":
        """Number the values of a column of text, which may be encoded as a dictionary."""
        whole = column if isinstance(column, pa.ChunkedArray) else pa.chunked_array([column])
        # a column that was plain gets one dictionary for all chunks, which it would take long to compare with itself
        encoded = whole.unify_dictionaries() if pa.types.is_dictionary(whole.type) else whole.dictionary_encode()
        chunks = cast("list[pa.DictionaryArray[Any, Any]]", encoded.chunks)
        if not chunks:
            return cls(np.zeros(0, np.int32), pa.array([], encoded.type.value_type))
        numbers = np.concatenate([chunk.indices.to_numpy() for chunk in chunks])
        return cls(numbers.astype(np.int32, copy=False), chunks[-1].dictionary)

    def take(self, places_N: Ints) -> "Ids":
        """Those of some rows, or of all in another order."""
        number_N = self.number_R[places_N]
        first = np.full(len(self.distinct), len(number_N))
        first[number_N[::-1]] = np.arange(len(number_N))[::-1]  # of equal places the last one stays: the first row
        order = sort_places(first)[: np.count_nonzero(first < len(number_N))]
        return Ids(inverse(order, len(first)).astype(np.int32)[number_N], self.distinct.take(order))

    def to_column(self) -> "pa.DictionaryArray[Any, Any]":
        """The ids of the rows, encoded as a dictionary."""
        return pa.DictionaryArray.from_arrays(pa.array(self.number_R, pa.int32()), self.distinct.cast(pa.string()))

    def count_rows(self, chosen_R: Bools | slice = slice(None)) -> Ints:
        """Rows of each distinct id among the chosen rows."""
        return np.bincount(self.number_R[chosen_R], minlength=len(self.distinct))


@dataclass(frozen=True)
class Interactions:
    """Rows of `schema.RAW_INTERACTIONS` in the order of their column `row`; `context` by the field's name."""

    user: Ids
    item: Ids
    scenario: Ids
    context: dict[str, Ids]
    label_R: Singles
    order_R: Ints
    row_R: Ints

    def __len__(self) -> int:
        return len(self.row_R)

    @classmethod
    def from_table(cls, table: pa.Table) -> "Interactions":
        """The rows of a table, whose ids are in the order of the rows if these come in order."""
        rows = cls.as_they_come(table)
        return rows if is_sorted(rows.row_R) else rows.take(sort_places(rows.row_R))

    @classmethod
    def as_they_come(cls, table: pa.Table) -> "Interactions":
        """The rows of a table in its order, which need not be that of their numbers."""
        names = [name for name in table.column_names if name.startswith(schema.CONTEXT)]
        return cls(
            user=Ids.from_column(table["user_id"]),
            item=Ids.from_column(table["item_id"]),
            scenario=Ids.from_column(table["scenario_id"]),
            context={name.removeprefix(schema.CONTEXT): Ids.from_column(table[name]) for name in names},
            label_R=table["label"].to_numpy(),
            order_R=table["order"].to_numpy(),
            row_R=table["row"].to_numpy(),
        )

    def to_table(self) -> pa.Table:
        """The rows as a table, whose ids and contexts are encoded as dictionaries."""
        ids = {"user_id": self.user, "item_id": self.item, "scenario_id": self.scenario}
        columns: dict[str, Any] = {name: value.to_column() for name, value in ids.items()}
        columns |= {"label": self.label_R, "order": self.order_R, "row": self.row_R}
        columns |= {schema.CONTEXT + name: value.to_column() for name, value in self.context.items()}
        return pa.table(columns)

    def take(self, places_N: Ints) -> "Interactions":
        """Some rows, or all in another order."""
        return Interactions(
            user=self.user.take(places_N),
            item=self.item.take(places_N),
            scenario=self.scenario.take(places_N),
            context={name: ids.take(places_N) for name, ids in self.context.items()},
            label_R=self.label_R[places_N],
            order_R=self.order_R[places_N],
            row_R=self.row_R[places_N],
        )


def is_sorted(values_N: AnyInts) -> bool:
    """Whether no value is smaller than the one before it."""
    return bool((values_N[1:] >= values_N[:-1]).all())


def sort_places(keys_N: AnyInts) -> Ints:
    """Places of the keys in ascending order [N]; equal keys stay in their order."""
    if is_sorted(keys_N):
        return np.arange(len(keys_N))
    low, bits = int(keys_N.min()), len(keys_N).bit_length()
    if (int(keys_N.max()) - low).bit_length() + bits > 63:
        return np.argsort(keys_N, kind="stable")
    packed = (keys_N.astype(np.int64) - low) << bits | np.arange(len(keys_N))  # sorts several times faster than places
    packed.sort()
    return packed & ((1 << bits) - 1)


def inverse(places: Ints, size: int) -> Ints:
    """Where each of `size` numbers stands among `places`; 0 for those that do not."""
    inverted = np.zeros(size, np.int64)
    inverted[places] = np.arange(len(places))
    return inverted


def run_starts(sorted_N: AnyInts) -> Ints:
    """Places where a value begins that differs from the one before it."""
    return np.flatnonzero(np.r_[True, sorted_N[1:] != sorted_N[:-1]][: len(sorted_N)])


def distinct(keys_N: Ints) -> Ints:
    """The keys in ascending order, each once.

    `np.unique` without counts fills a hash table, which takes some fifty times as long.
    """
    sorted_N = keys_N if is_sorted(keys_N) else np.sort(keys_N)
    return sorted_N[run_starts(sorted_N)]


class Keys(NamedTuple):
    """Distinct keys, ascending, and how often each occurs."""

    key_K: Ints
    count_K: Ints


def count_keys(key_N: Ints, size: int, weight_N: Ints | None = None) -> Keys:
    """Count keys from 0 to `size` - 1, each as often as its weight says; those that count nothing are left out."""
    if size > max(1 << 20, 4 * len(key_N)):
        order = sort_places(key_N) if weight_N is not None else None
        sorted_N = np.sort(key_N) if order is None else key_N[order]
        start_K = run_starts(sorted_N)
        if order is None or weight_N is None:
            return Keys(sorted_N[start_K], np.diff(start_K, append=len(sorted_N)))
        return Keys(sorted_N[start_K], np.add.reduceat(weight_N[order], start_K) if len(start_K) else start_K)
    if weight_N is None:
        counts = np.bincount(key_N, minlength=size)
    else:  # as float64, which is exact below 2^53
        counts = np.bincount(key_N, weight_N, size).astype(np.int64)
    held = np.flatnonzero(counts)
    return Keys(held, counts[held])
