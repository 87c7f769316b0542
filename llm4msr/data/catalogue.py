"""All users and all items by number, with their features as numbers; what has a vocabulary gets it from training rows.

An id costs its own bytes here: no array of text of one width, in which the longest decides for all.
"""

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from llm4msr.data.sources import RawData
from llm4msr.storage import StageOutput

MAX_VALUES = 8
"""Values kept of a many-valued feature, such as the steps of a category path."""


def titled(raw: RawData, train: pd.DataFrame) -> pa.Table:
    """The items, those of training rows included that no file describes; an item without a title shows its id."""
    items = raw.items.to_pandas()
    missing = pd.unique(train["item_id"][~train["item_id"].isin(items["item_id"])])
    lists = [f.name for f in raw.items.schema if pa.types.is_list(f.type)]
    blank = {name: [[] if name in lists else ""] * len(missing) for name in items.columns}
    items = pd.concat([items, pd.DataFrame(blank | {"item_id": missing})], ignore_index=True)
    items["title"] = items["title"].where(items["title"].str.strip() != "", items["item_id"])
    return pa.Table.from_pandas(items, raw.items.schema, preserve_index=False)


def numbered(
    table: pa.Table, side: str, features: tuple[str, ...], train_ids: "pd.Series[str]"
) -> tuple[pa.Table, dict[str, list[str]]]:
    """All users (or items): row i is number i, row 0 the unknown one; and the vocabulary of each field.

    The field named `user` (or `item`) is the id itself.
    """
    key = f"{side}_id"
    seen = sorted(train_ids.unique())
    frame = table.to_pandas().set_index(key)
    ids = seen + sorted(set(frame.index) - set(seen))
    frame = frame.reindex(ids)
    columns: dict[str, Any] = {side: np.arange(len(ids) + 1), key: ["", *ids]}
    if side == "item":
        columns["title"] = ["", *frame["title"]]
    fields = {key: seen}
    columns[f"f:{key}"] = np.r_[0, np.arange(1, len(seen) + 1), np.zeros(len(ids) - len(seen), dtype=int)]
    for name in features:
        column = f"f:{name}"
        fields[name] = vocabulary(frame[column].iloc[: len(seen)])
        columns[column] = _feature(frame[column], fields[name], pa.types.is_list(table.schema.field(column).type))
    return pa.table(columns), fields


def vocabulary(values: "pd.Series[Any]") -> list[str]:
    """Sorted distinct values, those inside lists included; empty text and missing values have no number."""
    flat = values.explode().dropna()
    return sorted(set(flat[flat != ""]))


def _feature(values: "pd.Series[Any]", vocabulary: list[str], is_list: bool) -> pa.Array:
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
