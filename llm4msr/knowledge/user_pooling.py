"""Ray Data over partitions of users whose vectors are pooled from those of the items they met; no LLM here.

`pooled/users-*` are rows of the knowledge store, from whole histories. With `extract.point_in_time`, `pooled/past-*`
have a row for each row of `events`, in its order: what was known of its user before it.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from upath import UPath

from llm4msr import ray_session, schema, storage
from llm4msr.arrays import AnyFloats, Bools, Column, Halves, Ints
from llm4msr.config import Config
from llm4msr.data import partitions
from llm4msr.knowledge import pooling
from llm4msr.knowledge.active_users import users_to_read
from llm4msr.knowledge.forget import ids_to_forget
from llm4msr.knowledge.item_vectors import ItemVectors
from llm4msr.knowledge.prompts import templates
from llm4msr.knowledge.prompts.render import Window, slice_rows
from llm4msr.progress import track
from llm4msr.storage import FileRecord, StageOutput
from llm4msr.storage.vectors import to_column

if TYPE_CHECKING:
    import ray


MOST_USERS, MOST_ROWS = 1 << 13, 1 << 17
"""Users whose vectors are pooled and written together, and their rows: at most so many, but a user with more."""


class UserRows(NamedTuple):
    """Users [start, stop) of a partition's `histories`, and where their rows [first, last) lie in its `seen`."""

    start: int
    stop: int
    first: int
    last: int


def pool_users(config: Config, data: StageOutput, folder: UPath, items: ItemVectors) -> dict[str, FileRecord]:
    """Write the vectors of all users (and of their past) as pools of the items' vectors.

    Args:
        config: the run's.
        data: what was prepared.
        folder: of the new version.
        items: their vectors.

    Returns:
        The files that were written, by name.
    """
    import ray

    ray_session.connect()
    shared = ray.put(items)
    users = users_to_read(config, data)
    written: dict[str, FileRecord] = {}
    with track("pool", sum(users)) as progress:
        jobs = [{"partition": partition, "users": count} for partition, count in enumerate(users) if count]
        for result in ray_session.run_each(
            _pool_partition, jobs, config=config, data=data, folder_uri=str(folder), shared=shared
        ):
            written[result["file"]] = FileRecord.model_validate(result)
            if result["file"].startswith("pooled/users"):
                progress.advance(result["rows"])
    return written


def _pool_partition(
    batch: pa.Table, config: Config, data: StageOutput, folder_uri: str, shared: "ray.ObjectRef"
) -> pa.Table:
    """Pool and write a partition's first users; gives back a row for each file, with its name and record."""
    import ray

    (job,) = batch.to_pylist()
    items, forget, written = ray.get(shared), ids_to_forget(config), []
    histories, seen, events = (partitions.file_name(t, job["partition"]) for t in ("histories", "seen", "events"))
    counts_N = data.table(histories, ["interactions"])["interactions"].to_numpy()[: job["users"]]
    windows = [("users", seen, at) for at in _cut(counts_N)]
    if config.extract.point_in_time:
        windows += [("past", events, at) for at in _cut(_count_events(data, events)[: job["users"]])]
    for kind, file, at in windows:
        users, rows = slice_rows(data, histories, at.start, at.stop), slice_rows(data, file, at.first, at.last)
        forgotten_N = pc.is_in(users["user_id"], value_set=forget)
        if kind == "users":
            table = pooled_rows(users, rows, *items).filter(pc.invert(forgotten_N))
        else:
            table = past_rows(rows, users["user"].filter(forgotten_N), *items)
        name = f"pooled/{Window(kind, at.start, at.stop, job['partition']).file}"
        record = storage.write_table(storage.path(folder_uri) / name, table)
        written.append({"file": name} | record.model_dump())
    return pa.Table.from_pylist(written)


def _count_events(data: StageOutput, file: str) -> Ints:
    """The events of each user of a partition; users with a history come first, in its order."""
    earlier_E = data.table(file, ["earlier"])["earlier"].to_numpy()
    return np.diff(np.flatnonzero(earlier_E == 0), append=len(earlier_E))


def _cut(counts_N: Ints) -> Iterator[UserRows]:
    """Users in their order, with so many rows each, in pieces of `MOST_USERS` and `MOST_ROWS`."""
    bounds, start = np.r_[0, np.cumsum(counts_N)], 0
    while start < len(counts_N):
        fit = int(np.searchsorted(bounds, bounds[start] + MOST_ROWS, side="right")) - 1
        stop = min(max(fit, start + 1), start + MOST_USERS, len(counts_N))
        yield UserRows(start, stop, int(bounds[start]), int(bounds[stop]))
        start = stop


def pooled_rows(users: pa.Table, seen: pa.Table, vectors_ID: AnyFloats, known_I: Bools) -> pa.Table:
    """Rows of `schema.knowledge` for these users; a user who met no item with a vector has an error.

    Args:
        users: rows of `schema.HISTORIES`.
        seen: their rows of `schema.SEEN`, in the same order of users.
        vectors_ID: by item number.
        known_I: bool, which items have a vector.
    """
    last_N = np.cumsum(users["interactions"].to_numpy())
    counts_R = known_I[seen["item"].to_numpy()]
    vectors_NZ, known_N = _pools(seen, counts_R, vectors_ID, last_N - users["interactions"].to_numpy(), last_N)
    blank = pa.array([""] * len(users))
    columns: dict[str, Column] = {
        "id": users["user"],
        "raw_id": users["user_id"],
        "fingerprint": pa.array([templates.fingerprint("pooled", vector.tobytes().hex()) for vector in vectors_NZ]),
        "prompt": blank,
        "answer": blank,
        "tokens": pa.array(np.zeros(len(users), np.int64)),
        "error": pa.array(["" if known else "no item with a vector" for known in known_N]),
        "vector": to_column(vectors_NZ),
    }
    layout = schema.knowledge(vectors_NZ.shape[1])
    return schema.check(pa.Table.from_arrays([columns[name] for name in layout.names], layout.names), layout, "pooled")


def past_rows(events: pa.Table, forgotten: "pa.ChunkedArray[Any]", vectors_ID: AnyFloats, known_I: Bools) -> pa.Table:
    """Rows of `schema.past`, one for each of these rows of `schema.EVENTS`: pools of its user's rows before it.

    Rows of validation and test are counted only for rows of the same or a later split.

    Args:
        events: all those of some users.
        forgotten: numbers of users of whom nothing is known.
        vectors_ID: by item number.
        known_I: bool, which items have a vector.
    """
    split_E, known_E = events["split"].to_numpy(), np.zeros(len(events), bool)
    vectors_EZ = np.zeros((len(events), 2 * vectors_ID.shape[1]), np.float16)
    first_E = np.arange(len(events)) - events["earlier"].to_numpy()
    last_E = first_E + events["before"].to_numpy()
    for level in np.unique(split_E):
        own = np.flatnonzero(split_E == level)
        counts_E = known_I[events["item"].to_numpy()] & (split_E <= level)
        vectors_EZ[own], known_E[own] = _pools(events, counts_E, vectors_ID, first_E[own], last_E[own])
    known_E &= ~np.asarray(pc.is_in(events["user"], value_set=forgotten.combine_chunks()).to_numpy())
    vectors_EZ[~known_E] = 0
    columns: list[Column] = [events["user"], pa.array(known_E), to_column(vectors_EZ)]
    layout = schema.past(vectors_EZ.shape[1])
    return schema.check(pa.Table.from_arrays(columns, layout.names), layout, "past")


def _pools(rows: pa.Table, counts_R: Bools, vectors_ID: AnyFloats, first_N: Ints, last_N: Ints) -> tuple[Halves, Bools]:
    """Pools [N, 2 D] of the rows that count in ranges of rows, and in which ranges there are any."""
    item_R, liked_R = rows["item"].to_numpy(), rows["label"].to_numpy() > 0.5
    pooled_NZ = pooling.pool(vectors_ID[item_R], liked_R, counts_R, first_N, last_N).astype(np.float16)
    sum_R = np.r_[0, np.cumsum(counts_R)]
    return pooled_NZ, sum_R[last_N] > sum_R[first_N]
