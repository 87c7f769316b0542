"""Arrow schemas: the contract between the stages, and nothing else.

Ids are strings at the edges and dense int64 inside, where 0 means unknown.
"""

from collections.abc import Iterable
from typing import TypedDict

import pyarrow as pa

from llm4msr.errors import DataError

CONTEXT, FEATURE = "c:", "f:"
"""A column's name is one of these and then the name of a context field or of a feature."""

TRAIN_GROUP_ROWS = 1 << 14
"""Rows of a row group of the training rows: a stream of training holds one at a time, and mixes its rows."""


def _schema(**columns: pa.DataType) -> pa.Schema:
    return pa.schema(columns)


RAW_INTERACTIONS = _schema(
    user_id=pa.string(),
    item_id=pa.string(),
    scenario_id=pa.string(),
    label=pa.float32(),
    order=pa.int64(),
    row=pa.int64(),
)
"""What a source gives, besides one string column `c:NAME` for each context field. `order` grows with time; only the
order of its values matters. `row` differs in each row, and grows in the order of the source where it has one; it
decides between rows of equal `order`."""

RAW_USERS = _schema(user_id=pa.string())
"""Besides one string or list<string> column `f:NAME` for each feature; `RAW_ITEMS` has one for each item feature."""

RAW_ITEMS = _schema(item_id=pa.string(), title=pa.string())

INTERACTIONS = _schema(
    user=pa.int64(), item=pa.int64(), scenario=pa.int64(), label=pa.float32(), seen=pa.int64(), event=pa.int64()
)
"""Rows of train, valid and test, besides one int64 column `c:NAME` for each context field. `seen` is the row's place in
`SEEN`, counted from 1, or that of the row that a negative was drawn for; 0 where knowledge has not seen it. `event` is
likewise the place in `EVENTS`, counted from 0, which every row has."""

USERS = _schema(user=pa.int64(), user_id=pa.string())
"""Row i is user i, row 0 the unknown user; besides int64 or list<int64> features `f:NAME`, as `ITEMS` has too."""

ITEMS = _schema(item=pa.int64(), item_id=pa.string(), title=pa.string())

SCENARIOS = _schema(
    scenario=pa.int64(),
    scenario_id=pa.string(),
    interactions=pa.int64(),
    users=pa.int64(),
    items=pa.int64(),
    positive_rate=pa.float64(),
    shared_users=pa.list_(pa.struct([("scenario_id", pa.string()), ("fraction", pa.float64())])),
    categories=pa.list_(pa.string()),
    titles=pa.list_(pa.string()),
)
"""Statistics of the training rows. `fraction` of this scenario's users are also users of the other one."""


class SharedUsers(TypedDict):
    """An element of `shared_users` in a row of `SCENARIOS`."""

    scenario_id: str
    fraction: float


class ScenarioStatistics(TypedDict):
    """A row of `SCENARIOS`."""

    scenario: int
    scenario_id: str
    interactions: int
    users: int
    items: int
    positive_rate: float
    shared_users: list[SharedUsers]
    categories: list[str]
    titles: list[str]


HISTORIES = _schema(
    user=pa.int64(),
    user_id=pa.string(),
    interactions=pa.int64(),
    history=pa.list_(pa.struct([("scenario_id", pa.string()), ("titles", pa.list_(pa.string()))])),
)
"""One row per user of the training rows, the most active first; titles liked in each scenario, oldest first."""

SEEN = _schema(
    user=pa.int64(), item=pa.int64(), label=pa.float32(), before=pa.int64(), scenario=pa.int64(), order=pa.int64()
)
"""The rows that histories are made of: users in the order of `HISTORIES`, each user's rows together, oldest first.
`before` counts the user's rows that are older than this one, without those of the same moment."""

EVENTS = _schema(
    user=pa.int64(),
    item=pa.int64(),
    scenario=pa.int64(),
    label=pa.float32(),
    split=pa.int8(),
    earlier=pa.int64(),
    before=pa.int64(),
)
"""All rows of `train`, `valid` and `test` but drawn ones: users in the order of `HISTORIES`, then those without a
history (who may have one number together), each user's rows together, oldest first. `split` is 0, 1 or 2 for those
tables. `earlier` counts the user's rows above this one, `before` those of them that are of an earlier moment."""

PROMPTS = _schema(id=pa.int64(), raw_id=pa.string(), prompt=pa.string())
"""What the LLM reads of each user, scenario or item; `id` as the prepared data number them."""

INDEX = _schema(
    id=pa.int64(),
    hash=pa.uint64(),
    key=pa.binary(16),
    shard=pa.string(),
    checksum=pa.string(),
    row=pa.int32(),
    state=pa.int8(),
)
"""Where a version's rows lie: `id` as this version numbers it, a user's within the partition; `hash` of the raw id;
`key`, the hash of the raw id with all that decides the row; `shard` as `<version>/vectors/<file>`, whichever version
wrote it, and its `checksum`; `row` in it; and its `State`."""


def knowledge(width: int) -> pa.Schema:
    """A shard of the knowledge store: one row per user (or item, or scenario) with a vector of `width` numbers.

    `id` is as in the prepared files: a user's within the partition. `error` is empty for a good row; the vector of a
    bad row is zero.
    """
    return _schema(
        id=pa.int64(),
        raw_id=pa.string(),
        fingerprint=pa.string(),
        prompt=pa.string(),
        answer=pa.string(),
        tokens=pa.int64(),
        error=pa.string(),
        vector=pa.list_(pa.float16(), width),
    )


def past(width: int) -> pa.Schema:
    """A row for each row of `EVENTS`, in its order: the vector of its user's past before it, zero if not `known`."""
    return _schema(user=pa.int64(), known=pa.bool_(), vector=pa.list_(pa.float16(), width))


def item_vectors(width: int) -> pa.Schema:
    """A row for each row of `ITEMS`, in its order: the item's vector as models read it, zero if not `known`."""
    return _schema(item=pa.int64(), known=pa.bool_(), vector=pa.list_(pa.float16(), width))


def category_field(items: pa.Table, fields: Iterable[str]) -> str | None:
    """The feature of the items that prompts show: `category` where there is one, else the first many-valued one."""
    many = [name for name in fields if pa.types.is_list(items.schema.field(f"f:{name}").type)]
    return "category" if "category" in many else next(iter(many), None)


def check(table: pa.Table, expected: pa.Schema, where: str) -> pa.Table:
    """The table itself, if it has the expected columns with the expected types and no nulls in them.

    Raises:
        DataError: names the place, the column and, for a null, the first row.
    """
    for field in expected:
        if field.name not in table.column_names:
            raise DataError(f"{where}: column '{field.name}' is missing; it has {', '.join(table.column_names)}")
        column = table[field.name]
        if column.type != field.type:
            raise DataError(f"{where}: column '{field.name}' is {column.type}, expected {field.type}")
        if column.null_count:
            row = column.is_null().to_pylist().index(True)
            raise DataError(f"{where}: column '{field.name}' is empty in row {row + 1}")
    return table
