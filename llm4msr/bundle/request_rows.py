"""The files of a log of requests: a row for each, with what was asked, what the model read, and what it answered.

They stand in one folder, named by the moment of their first row. Raw ids are in them: docs/privacy.md.
"""

import re
from collections.abc import Iterator, Sequence, Sized
from datetime import UTC, datetime
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from upath import UPath

from llm4msr import storage
from llm4msr.arrays import Array, Bools, Column
from llm4msr.bundle.messages import KnowledgeSource
from llm4msr.bundle.ranker import Ranker, Scored

_EVENT: dict[str, pa.DataType] = {"item_id": pa.string(), "scenario": pa.string(), "liked": pa.bool_()}
EVENT = pa.struct([*_EVENT.items()])
_COLUMNS: dict[str, pa.DataType] = {
    "request_id": pa.string(),
    "time": pa.timestamp("us", "UTC"),
    "user_id": pa.string(),
    "scenario": pa.string(),
    "context": pa.map_(pa.string(), pa.string()),
    "items": pa.list_(pa.string()),  # in the order of the request
    "scores": pa.list_(pa.float32()),  # in that order too
    "model_version": pa.string(),
    "knowledge_version": pa.string(),
    "knowledge": pa.string(),
    "history_mode": pa.string(),
    "told_features": pa.list_(pa.string()),  # names of the user's features that the request brought
    "user_slots": pa.list_(pa.int32()),  # places of the user's features in the embedding table
    "code": pa.list_(pa.float32()),  # of the user; null for who has none
    "events": pa.list_(EVENT),  # what the user took before, the oldest first
}
SCHEMA = pa.schema([*_COLUMNS.items()])
_NAME = re.compile(r"(\d{8}T\d{12})Z-[0-9a-f]{12}\.parquet")
_UNFINISHED = re.compile(rf"\.{_NAME.pattern}\.[0-9a-f]+\.tmp")
_MOMENT = "%Y%m%dT%H%M%S%f"
PIECE = 32
"""Rows that become columns at once."""


class Served(NamedTuple):
    """A request that was answered, as it is held until its row is written."""

    time: float
    """In seconds since 1970."""
    request_id: str
    user_id: str
    scenario: str
    context: dict[str, str]
    items: list[str]
    history_mode: str
    told_features: list[str]
    knowledge: KnowledgeSource
    ranker: Ranker
    """That answered."""
    scored: Scored


class LogFile(NamedTuple):
    """A file of a log."""

    name: str
    time: float
    """Of its first row, in seconds since 1970."""
    bytes: int
    is_finished: bool


def file_name(time: float, unique: str) -> str:
    """Of a file whose first row is of this time; `unique` are 12 hexadecimal digits."""
    return f"{datetime.fromtimestamp(time, UTC).strftime(_MOMENT)}Z-{unique}.parquet"


def files(folder: UPath) -> list[LogFile]:
    """The files of a log, the oldest first, those of writers who were killed among them; foreign ones are left out.

    Raises:
        StorageError: the folder cannot be read.
    """
    found = []
    for name, size in storage.files_below(folder, temporary=True).items():
        if match := _NAME.fullmatch(name) or _UNFINISHED.fullmatch(name):
            time = datetime.strptime(match[1], _MOMENT).replace(tzinfo=UTC).timestamp()
            found.append(LogFile(name, time, size, not name.startswith(".")))
    return sorted(found, key=lambda file: (file.time, file.name))


def read_each(folder: UPath) -> Iterator[pa.Table]:
    """The rows of each file, the newest file first.

    Raises:
        StorageError: a file cannot be read, is damaged, or lacks a column.
    """
    for file in reversed(files(folder)):
        if file.is_finished:
            yield storage.read_table(folder / file.name, SCHEMA.names, "delete it").cast(SCHEMA)


def forget(folder: UPath, user_ids: Column, dry_run: bool = False) -> int:
    """Delete the rows of these users; gives back how many there are.

    Raises:
        StorageError: a file cannot be read or written.
    """
    count = 0
    for file in files(folder):
        if file.is_finished:
            table = storage.read_table(folder / file.name, advice="delete it")
            kept = table.filter(pc.invert(pc.is_in(table["user_id"], value_set=user_ids.cast(pa.string()))))
            count += len(table) - len(kept)
            if len(kept) < len(table) and not dry_run:
                storage.write_table(folder / file.name, kept)
    return count


def to_batch(rows: Sequence[Served]) -> pa.RecordBatch:
    """The rows of a few requests."""
    queries = [row.scored.query for row in rows]
    is_without = np.array([query.code_K is None for query in queries])
    codes = [np.zeros(0) if query.code_K is None else query.code_K for query in queries]
    columns: list[list[Any] | pa.Array[Any]] = [
        [row.request_id for row in rows],
        [round(row.time * 1e6) for row in rows],
        [row.user_id for row in rows],
        [row.scenario for row in rows],
        [list(row.context.items()) for row in rows],
        [row.items for row in rows],
        _lists([row.scored.score_B for row in rows], pa.float32()),
        [row.ranker.model_version for row in rows],
        [row.ranker.knowledge_version for row in rows],
        [row.knowledge for row in rows],
        [row.history_mode for row in rows],
        [row.told_features for row in rows],
        _lists([query.user_S for query in queries], pa.int32()),
        _lists(codes, pa.float32(), is_without),
        _events(rows),
    ]
    arrays: list[pa.Array[Any]] = [
        pa.array(column, field.type) if isinstance(column, list) else column
        for column, field in zip(columns, SCHEMA, strict=True)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def _offsets(parts: Sequence[Sized]) -> "pa.Int32Array":
    return pa.array(np.cumsum([0, *map(len, parts)]), pa.int32())


def _lists(parts: Sequence[Array], kind: pa.DataType, is_null: Bools | None = None) -> "pa.Array[Any]":
    values: pa.Array[Any] = pa.array(np.concatenate(parts).astype(kind.to_pandas_dtype()), kind)
    return pa.ListArray.from_arrays(_offsets(parts), values, mask=None if is_null is None else pa.array(is_null))


def _events(rows: Sequence[Served]) -> "pa.Array[Any]":
    events = [row.scored.query.events for row in rows]
    items = chain.from_iterable(row.ranker.item_ids(row.scored.query.events.item_E) for row in rows)
    names = [row.ranker.description.scenarios[n] for row, e in zip(rows, events, strict=True) for n in e.scenario_E]
    liked = np.concatenate([one.liked_E for one in events])
    columns: list[pa.Array[Any]] = [pa.array(items, pa.string()), pa.array(names, pa.string()), pa.array(liked)]
    return pa.ListArray.from_arrays(_offsets(events), pa.StructArray.from_arrays(columns, fields=list(EVENT)))
