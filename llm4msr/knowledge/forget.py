"""Users to forget: the list of `extract.forget`, and who on it is known. No Ray here."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm4msr import storage
from llm4msr.arrays import Column, Hashes, strings
from llm4msr.config import Config
from llm4msr.data import partitions
from llm4msr.data.partitions import hash_ids
from llm4msr.errors import StorageError
from llm4msr.knowledge.buckets import OF_USERS
from llm4msr.knowledge.index import RowGroup, read_index
from llm4msr.progress import say
from llm4msr.storage import StageOutput

MAX_NAMED = 3
"""Ids that are nobody's and that a message names."""


class Listed(NamedTuple):
    """Ids of the list that the data or an earlier version of the knowledge knows, and those that are nobody's."""

    known: list[str]
    nobodys: list[str]


def ids_to_forget(config: Config, kind: str = "users") -> Column:
    """Raw ids of `extract.forget`, one a line and exactly as given there: string [N], sorted.

    Raises:
        StorageError: the file cannot be read.
    """
    if not config.extract.forget or kind not in OF_USERS:
        return pa.array([], pa.string())
    lines = storage.read_text(storage.path(config.extract.forget)).split("\n")
    return pa.array(sorted({line for line in lines if line}), pa.string())


def leave_out(table: pa.Table, forget: Column) -> pa.Table:
    """The rows of a table whose `id` is none of those to forget."""
    return table.filter(pc.invert(pc.is_in(table["id"], value_set=forget.cast(table["id"].type))))


def check_list(config: Config, data: StageOutput, bases: Iterable[Sequence[RowGroup]]) -> Listed:
    """Look each listed id up in the prepared data and in earlier versions, and say which ids are nobody's.

    `bases` are the index files of each earlier version.

    Raises:
        StorageError: the file cannot be read, or every id in it is nobody's.
    """
    ids = strings(ids_to_forget(config))
    if not ids:
        if config.extract.forget:
            say(f"  {config.extract.forget}: the list of users to forget is empty")
        return Listed([], [])
    hash_N = hash_ids(ids)
    in_versions_N = np.isin(hash_N, _find_in_versions(hash_N, bases))
    known = _find_in_data(ids, data) | {ids[i] for i in np.flatnonzero(in_versions_N)}
    listed = Listed(sorted(known), [raw_id for raw_id in ids if raw_id not in known])
    if listed.nobodys:
        message = f"{config.extract.forget}: {_message(listed, data)}"
        if not listed.known:
            raise StorageError(f"{message}; ids are those of the source's files, one a line in UTF-8")
        say(f"  {message}")
    return listed


def _message(listed: Listed, data: StageOutput) -> str:
    total, nobodys = len(listed.known) + len(listed.nobodys), listed.nobodys
    first = ", ".join(repr(raw_id[:60]) for raw_id in nobodys[:MAX_NAMED])
    more = f" and {len(nobodys) - MAX_NAMED} more" if len(nobodys) > MAX_NAMED else ""
    text = f"{len(nobodys)} of {total} ids to forget are nobody's: {first}{more}"
    stripped = {raw_id.strip() for raw_id in nobodys if raw_id != raw_id.strip()}
    if stripped and (likely := _find_in_data(stripped, data)):
        text += f" ({len(likely)} of them are known without the blanks around them, such as {min(likely)[:60]!r})"
    return text


def _find_in_data(raw_ids: Iterable[str], data: StageOutput) -> set[str]:
    """Those of the ids that the prepared data has."""
    sought, known = sorted(raw_ids), set[str]()
    home_N = partitions.numbers_of(hash_ids(sought), partitions.count(data))
    for partition in np.unique(home_N):  # the others are not read
        ids = partitions.read(data, "users", int(partition), ["user_id"])["user_id"]
        here = pa.array([sought[i] for i in np.flatnonzero(home_N == partition)], ids.type)
        known.update(strings(ids.filter(pc.is_in(ids, value_set=here))))
    return known


def _find_in_versions(hash_N: Hashes, bases: Iterable[Sequence[RowGroup]]) -> Hashes:
    """Those of the hashes that an index file of users has; only buckets that can hold one are read."""
    known = [hash_N[:0]]
    for file in (file for files in bases for file in files):
        if file.bucket and file.bucket.kind == "users":
            sought = hash_N[file.bucket.holds(hash_N)]
            if len(sought):
                known.append(np.intersect1d(sought, read_index(file, ["hash"])["hash"].to_numpy()))
    return np.concatenate(known)
