"""Users to forget: the list of `extract.forget`, and who on it is known. No Ray here."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm4msr import storage
from llm4msr.arrays import Hashes
from llm4msr.config import Config
from llm4msr.errors import StorageError
from llm4msr.knowledge import index
from llm4msr.knowledge.index import IndexFile
from llm4msr.progress import say
from llm4msr.storage import StageOutput

SHOWN = 3
"""Unknown ids that a message names."""


class Listed(NamedTuple):
    """Ids of the list that the data or an earlier version of the knowledge knows, and those that are nobody's."""

    known: list[str]
    nobodys: list[str]


def forgotten(config: Config, kind: str = "users") -> pa.Array:
    """Raw ids of `extract.forget`, one a line and exactly as given there: string [N], sorted.

    Raises:
        StorageError: the file cannot be read.
    """
    if not config.extract.forget or kind != "users":
        return pa.array([], pa.string())
    lines = storage.read_text(storage.path(config.extract.forget)).split("\n")
    return pa.array(sorted({line for line in lines if line}), pa.string())


def check_list(config: Config, data: StageOutput, bases: Iterable[Iterable[str]]) -> Listed:
    """Look each listed id up in the prepared data and in earlier versions, and tell who is nobody.

    `bases` are parts that are index files, of each earlier version.

    Raises:
        StorageError: the file cannot be read, or every id in it is nobody's.
    """
    ids = forgotten(config)
    if not config.extract.forget:
        return Listed([], [])
    if not len(ids):
        say(f"  {config.extract.forget}: the list of users to forget is empty")
        return Listed([], [])
    hashes = dict(zip(index.hashes(ids.to_pylist()).tolist(), ids.to_pylist(), strict=True))
    known = _in_data(ids, data) | {hashes[one] for one in _in_store(np.array(list(hashes), np.uint64), bases)}
    listed = Listed(sorted(known), [one for one in ids.to_pylist() if one not in known])
    if listed.nobodys:
        message = f"{config.extract.forget}: {_message(listed, data)}"
        if not listed.known:
            raise StorageError(f"{message}; ids are those of the source's files, one a line in UTF-8")
        say(f"  {message}")
    return listed


def _message(listed: Listed, data: StageOutput) -> str:
    total, gone = len(listed.known) + len(listed.nobodys), listed.nobodys
    first = ", ".join(repr(one[:60]) for one in gone[:SHOWN])
    more = f" and {len(gone) - SHOWN} more" if len(gone) > SHOWN else ""
    text = f"{len(gone)} of {total} ids to forget are nobody's: {first}{more}"
    bare = [one for one in gone if one != one.strip()]
    likely = _in_data(pa.array(sorted({one.strip() for one in bare}), pa.string()), data) if bare else set()
    if likely:
        text += f" ({len(likely)} of them are known without the blanks around them, such as {min(likely)[:60]!r})"
    return text


def _in_data(ids: pa.Array, data: StageOutput) -> set[str]:
    found: set[str] = set()
    with data.parquet("users.parquet") as users:
        for batch in users.iter_batches(1 << 16, columns=["user_id"]):
            column = batch.column(0)
            found |= set(column.filter(pc.is_in(column, value_set=ids.cast(column.type))).to_pylist())
    return found


def _in_store(hash_N: Hashes, bases: Iterable[Iterable[str]]) -> set[int]:
    """Those of the hashes that an index file of users has; only buckets that can hold one are read."""
    found: set[int] = set()
    for part in (part for parts in bases for part in parts):
        file, checksum, _ = index.place(part)
        at = IndexFile.of(f"index/{file.name}")
        if at is None or at.kind != "users":
            continue
        here = hash_N[index.bucket_of(hash_N, at.buckets) == at.bucket]
        if len(here):
            there = storage.read_table(file, ["hash"], checksum=checksum)["hash"].to_numpy()
            found |= set(np.intersect1d(here, there).tolist())
    return found
