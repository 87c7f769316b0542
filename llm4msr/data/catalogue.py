"""All users and all items by number, with their features as numbers; vocabularies come from training rows alone.

Ids stay Arrow text: in a NumPy array of text the longest id would decide the width of all.
"""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from llm4msr.arrays import Column, Ints
from llm4msr.storage import StageOutput

MAX_VALUES = 8
"""Values kept of a many-valued feature, such as the steps of a category path."""


class Catalogue(NamedTuple):
    """All users or all items, row i for number i and row 0 for the unknown one; and the vocabulary of each field."""

    table: pa.Table
    fields: dict[str, list[str]]


def complete_items(items: pa.Table, train: pd.DataFrame) -> pa.Table:
    """The raw items and those that only training rows name; an item without a title shows its id."""
    frame = items.to_pandas()
    missing = pd.unique(train["item_id"][~train["item_id"].isin(frame["item_id"])])
    lists = [f.name for f in items.schema if pa.types.is_list(f.type)]
    blank = {name: [[] if name in lists else ""] * len(missing) for name in frame.columns}
    frame = pd.concat([frame, pd.DataFrame(blank | {"item_id": missing})], ignore_index=True)
    frame["title"] = frame["title"].where(frame["title"].str.strip() != "", frame["item_id"])
    return pa.Table.from_pandas(frame, items.schema, preserve_index=False)


def build(table: pa.Table, side: str, features: tuple[str, ...], train_ids: "pd.Series[str]") -> Catalogue:
    """Number the raw users (or items) of `table`, those of training rows first, and encode their features.

    The field named `user_id` (or `item_id`) is the id itself.
    """
    key = f"{side}_id"
    trained = sorted(train_ids.unique())
    frame = table.to_pandas().set_index(key)
    ids = trained + sorted(set(frame.index) - set(trained))
    frame = frame.reindex(ids)
    columns: dict[str, Column | Ints | list[str]] = {side: np.arange(len(ids) + 1), key: ["", *ids]}
    if side == "item":
        columns["title"] = ["", *frame["title"]]
    fields = {key: trained}
    columns[f"f:{key}"] = np.r_[0, np.arange(1, len(trained) + 1), np.zeros(len(ids) - len(trained), dtype=int)]
    for name in features:
        column = f"f:{name}"
        fields[name] = vocabulary(frame[column].iloc[: len(trained)])
        columns[column] = _encode(frame[column], fields[name], pa.types.is_list(table.schema.field(column).type))
    return Catalogue(pa.Table.from_pydict(columns), fields)


def vocabulary(values: "pd.Series[Any]") -> list[str]:
    """Sorted distinct values, those inside lists included; empty text and missing values have no number."""
    flat = values.explode().dropna()
    return sorted(set(flat[flat != ""]))


def _encode(values: "pd.Series[Any]", vocabulary: list[str], is_list: bool) -> Column:
    """int64 (or a list of at most `MAX_VALUES` of them) for the unknown row and for each value; 0 = not known."""
    number = {value: i for i, value in enumerate(vocabulary, start=1)}
    if not is_list:
        return pa.array([0, *(number.get(v, 0) for v in values)], pa.int64())
    lists = [
        [number[v] for v in row if v in number][:MAX_VALUES] if isinstance(row, np.ndarray) else [] for row in values
    ]
    return pa.array([[], *lists], pa.list_(pa.int64()))


def item_fields(prepared: StageOutput) -> dict[str, list[str]]:
    """The vocabulary of each field of the prepared items; number 1 is its first word."""
    fields: dict[str, list[str]] = prepared.json("fields.json")["item"]
    return fields
