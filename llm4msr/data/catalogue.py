"""All users and all items by number, with their features as numbers; vocabularies come from training rows alone.

Ids stay Arrow text: in a NumPy array of text the longest id would decide the width of all.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm4msr import schema
from llm4msr.arrays import Column, Ints, in_one_piece, strings
from llm4msr.storage import StageOutput

MAX_VALUES = 8
"""Values kept of a many-valued feature, such as the steps of a category path."""

WORDS = pa.table({"word": [""], "count": [0]}).schema
"""Of what `count_words` gives."""


def number_ids(ids: Column, known: Column) -> Ints:
    """Place of each id among `known`, counted from 1; 0 = not there."""
    places = pc.index_in(ids, value_set=known).fill_null(-1)
    return np.asarray(places.to_numpy(zero_copy_only=False)).astype(np.int64) + 1


def order_ids(trained: Column, described: Column) -> Column:
    """The ids by number, from 1 on: those of training rows first, both parts sorted."""
    others = described.filter(pc.invert(pc.is_in(described, value_set=trained)))
    in_order = [in_one_piece(ids.take(pc.sort_indices(ids))) for ids in (trained, others)]
    return pa.chunked_array(in_order, trained.type)


def describe(raw: pa.Table, key: str, ids: Column) -> pa.Table:
    """The rows of the raw users or items that have these ids, null where there is none."""
    return raw.take(pc.index_in(ids, value_set=raw[key])).set_column(0, key, ids)


def build(
    side: str,
    ids: Column,
    trained: int,
    described: pa.Table,
    fields: dict[str, list[str]],
    first: int = 1,
    unknown: bool = True,
) -> pa.Table:
    """The table of users or items.

    Args:
        side: `user` or `item`.
        ids: all of them, in their order.
        trained: how many of them, from the first on, have a number as the value of the field `user_id` or `item_id`.
        described: their rows, as `describe` gives them.
        fields: the words of each feature.
        first: the number of the first of those.
        unknown: whether the first row is for the unknown one.
    """
    key, count, zero = f"{side}_id", len(ids), [0] if unknown else []
    own = np.where(np.arange(count) < trained, np.arange(first, first + count), 0)
    columns: dict[str, Column | Ints] = {
        side: np.arange(count + len(zero)),
        key: pa.chunked_array([[""][: len(zero)], *_chunks(ids)], pa.string()),
    }
    if side == "item":
        titles = _titles(ids, described["title"])
        columns["title"] = pa.chunked_array([[""][: len(zero)], *_chunks(titles)], pa.string())
    columns[schema.FEATURE + key] = np.r_[np.array(zero, np.int64), own]
    for name, words in fields.items():
        columns[schema.FEATURE + name] = encode(described[schema.FEATURE + name], words, unknown)
    return pa.Table.from_pydict(columns)


def _chunks(column: Column) -> "list[pa.Array[Any]]":
    return column.chunks if isinstance(column, pa.ChunkedArray) else [column]


def _titles(ids: Column, titles: Column) -> Column:
    """An item without a title shows its id."""
    has_none = pc.equal(pc.utf8_trim_whitespace(pc.coalesce(titles, pa.scalar(""))), pa.scalar(""))
    return pc.if_else(has_none, ids, titles)


def count_words(values: Column) -> pa.Table:
    """Distinct values, those inside lists included, and how often each occurs: columns `word`, `count`.

    Empty text and missing values are no words.
    """
    flat = pc.list_flatten(values) if pa.types.is_list(values.type) else values
    counts = pc.value_counts(flat.filter(pc.not_equal(flat, pa.scalar(""))))
    return pa.table({"word": counts.field("values"), "count": counts.field("counts")})


def vocabulary(counts: list[pa.Table], least: int = 1) -> list[str]:
    """The words that the tables of `count_words` have at least so often, sorted."""
    total = pa.concat_tables(counts).group_by("word").aggregate([("count", "sum")])
    frequent = total.filter(pc.greater_equal(total["count_sum"], pa.scalar(least)))
    return sorted(strings(frequent["word"]))


def encode(values: Column, words: list[str], unknown: bool = True) -> Column:
    """int64 (or a list of at most `MAX_VALUES` of them) for the unknown row and for each value; 0 = not known."""
    known = pa.array(words, pa.string())
    if not pa.types.is_list(values.type):
        return pa.array(np.r_[np.zeros(int(unknown), np.int64), number_ids(values, known)])
    lists = in_one_piece(values)
    length_N = pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False)
    number_V = number_ids(pc.list_flatten(lists), known)
    row_V = np.repeat(np.arange(len(length_N)), length_N)
    row_V, number_V = row_V[number_V > 0], number_V[number_V > 0]
    count_N = np.bincount(row_V, minlength=len(length_N))
    is_kept = np.arange(len(row_V)) - np.repeat(np.cumsum(count_N) - count_N, count_N) < MAX_VALUES
    ends = np.cumsum(np.minimum(count_N, MAX_VALUES))
    offsets = np.r_[np.zeros(1 + int(unknown), np.int32), ends.astype(np.int32)]
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(number_V[is_kept], pa.int64()))


def field_sizes(prepared: StageOutput) -> dict[str, dict[str, int]]:
    """How many values each field of each side has in the prepared data, without the unknown one, by side and name."""
    sides: dict[str, dict[str, list[str] | int]] = prepared.json("fields.json")
    return {
        side: {name: words if isinstance(words, int) else len(words) for name, words in fields.items()}
        for side, fields in sides.items()
    }


def item_fields(prepared: StageOutput) -> dict[str, list[str]]:
    """The vocabulary of each feature of the prepared items."""
    return feature_words(prepared, "item")


def feature_words(prepared: StageOutput, side: str) -> dict[str, list[str]]:
    """The vocabulary of each feature of a side, ids left out; number 1 is its first word."""
    fields: dict[str, list[str] | int] = prepared.json("fields.json")[side]
    return {name: known for name, known in fields.items() if isinstance(known, list)}
