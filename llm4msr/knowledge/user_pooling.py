"""Ray Data over partitions of users whose vectors are pooled from those of the items they met; no LLM here.

`pooled/users-*` are rows of the knowledge store, from whole histories. With `extract.point_in_time`, `pooled/past-*`
have a row for each row of `seen`, in its order: what was known of its user before it.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

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
    histories, seen = (partitions.file_name(table, job["partition"]) for table in ("histories", "seen"))
    counts_N = data.table(histories, ["interactions"])["interactions"].to_numpy()[: job["users"]]
    for at in _cut(counts_N):
        users, rows = slice_rows(data, histories, at.start, at.stop), slice_rows(data, seen, at.first, at.last)
        forgotten_N = pc.is_in(users["user_id"], value_set=forget)
        tables = {"users": pooled_rows(users, rows, *items).filter(pc.invert(forgotten_N))}
        if config.extract.point_in_time:
            tables["past"] = past_rows(users, rows, forgotten_N.to_numpy(), *items)
        for kind, table in tables.items():
            name = f"pooled/{Window(kind, at.start, at.stop, job['partition']).file}"
            record = storage.write_table(storage.path(folder_uri) / name, table)
            written.append({"file": name} | record.model_dump())
    return pa.Table.from_pylist(written)


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
    vectors_NZ, known_N = _pools(seen, vectors_ID, known_I, last_N - users["interactions"].to_numpy(), last_N)
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


def past_rows(users: pa.Table, seen: pa.Table, forgotten_N: Bools, vectors_ID: AnyFloats, known_I: Bools) -> pa.Table:
    """Rows of `schema.past`, one for each of `seen`: pools of its user's rows before it.

    Nothing is known of users to forget, bool [N]; the rest as in `pooled_rows`.
    """
    counts_N = users["interactions"].to_numpy()
    first_R = np.repeat(np.cumsum(counts_N) - counts_N, counts_N)
    vectors_RZ, known_R = _pools(seen, vectors_ID, known_I, first_R, first_R + seen["before"].to_numpy())
    known_R &= ~np.repeat(forgotten_N, counts_N)
    vectors_RZ[~known_R] = 0
    columns: list[Column] = [seen["user"], pa.array(known_R), to_column(vectors_RZ)]
    layout = schema.past(vectors_RZ.shape[1])
    return schema.check(pa.Table.from_arrays(columns, layout.names), layout, "past")


def _pools(seen: pa.Table, vectors_ID: AnyFloats, known_I: Bools, first_N: Ints, last_N: Ints) -> tuple[Halves, Bools]:
    """Pools [N, 2 D] of ranges of rows, and in which of them there is an item with a vector."""
    item_R, liked_R = seen["item"].to_numpy(), seen["label"].to_numpy() > 0.5
    pooled_NZ = pooling.pool(vectors_ID[item_R], liked_R, known_I[item_R], first_N, last_N).astype(np.float16)
    known_R = np.r_[0, np.cumsum(known_I[item_R])]
    return pooled_NZ, known_R[last_N] > known_R[first_N]
