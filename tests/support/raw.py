"""The raw data of a source, all of it in this process."""

from typing import NamedTuple

import pyarrow as pa

from llm4msr.config import SourceConfig
from llm4msr.data import sources
from llm4msr.data.reading.raw_data import whole


class WholeData(NamedTuple):
    """What `sources.read` gives, as tables; the interactions without their column `row`."""

    interactions: pa.Table
    users: pa.Table
    items: pa.Table
    implicit: bool
    context: tuple[str, ...]
    user_features: tuple[str, ...]
    item_features: tuple[str, ...]


def read_raw(config: SourceConfig) -> WholeData:
    raw = sources.read(config)
    interactions, users = whole(raw.interactions), raw.read_users()
    assert (interactions.schema, users.schema) == (raw.interactions.layout, raw.users.layout)
    row = interactions["row"].to_pylist()
    assert len(set(row)) == len(row)
    return WholeData(
        interactions.drop_columns("row"),
        users,
        raw.items,
        raw.implicit,
        raw.context,
        raw.user_features,
        raw.item_features,
    )
