"""Ray Data over shards of users whose vectors are pooled from those of the items they met; no LLM here."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from upath import UPath

from llm4msr import index, knowledge, pool, prompts, schema, session, storage
from llm4msr.config import Config
from llm4msr.errors import StorageError
from llm4msr.increment import forgotten
from llm4msr.progress import track
from llm4msr.render import slice_rows, user_windows, window_name
from llm4msr.storage import StageOutput


def pool_users(config: Config, data: StageOutput, folder: UPath, items: int, parts: list[str]) -> dict[str, int]:
    """Write `pooled/users-*.parquet` from the items' vectors, which lie in `parts`; gives back each file's rows.

    Raises:
        StorageError: no item has a vector.
    """
    import ray

    session.connect()
    shared = ray.put(_item_vectors(config, folder, items, parts))
    counts = storage.read_table(data.folder / "histories.parquet", ["interactions"])["interactions"].to_numpy()
    ends = np.cumsum(counts)
    todo = user_windows(config, len(counts))
    for shard in todo:  # where the users' rows lie in `seen`
        shard |= {"first": int(ends[shard["start"]] - counts[shard["start"]]), "last": int(ends[shard["stop"] - 1])}
    done: dict[str, int] = {}
    settled = {"config": config, "data_uri": str(data.folder), "folder_uri": str(folder), "shared": shared}
    with track("pool", todo[-1]["stop"]) as progress:
        for result in session.each(_pool_window, todo, **settled):
            done[result["file"]] = result["rows"]
            progress.advance(result["rows"])
    return done


def _item_vectors(config: Config, folder: UPath, items: int, parts: list[str]) -> tuple[pool.Floats, np.ndarray]:
    """float32 [items + 1, D], whitened (or random numbers, for the control), and which items have one."""
    dim = config.extract.pool_dim
    if config.extract.item_vectors == "random":
        known_I = np.arange(items + 1) > 0
        return np.random.default_rng(4711).standard_normal((items + 1, dim), np.float32), known_I
    table = pa.concat_tables(index.read(part, ["id", "error", "vector"]) for part in parts)
    good = knowledge.good_rows(table)
    if not good.any():
        raise StorageError(f"{folder / 'vectors'}: no item has a vector; look at the errors in its shards")
    vectors = knowledge.vectors_of(table)
    known_I = np.zeros(items + 1, bool)
    ids = table["id"].to_numpy()[good]
    known_I[ids] = True
    white = pool.whiten(vectors[good], dim)
    vectors_ID = np.zeros((items + 1, white.shape[1]), np.float32)
    vectors_ID[ids] = white
    return vectors_ID, known_I


def _pool_window(batch: pa.Table, config: Config, data_uri: str, folder_uri: str, shared: Any) -> pa.Table:
    """One window's users, pooled and written; gives back the file and its rows."""
    import ray

    (window,) = batch.to_pylist()
    data, folder = storage.path(data_uri), storage.path(folder_uri)
    vectors_ID, known_I = ray.get(shared)
    users = slice_rows(data / "histories.parquet", window["start"], window["stop"])
    seen = slice_rows(data / "seen.parquet", window["first"], window["last"])
    name = f"pooled/{window_name(window)}"
    rows = pooled_rows(users, seen, vectors_ID, known_I)
    rows = rows.filter(pc.invert(pc.is_in(rows["raw_id"], value_set=forgotten(config))))
    storage.write_table(folder / name, rows)
    return pa.table({"file": [name], "rows": [len(rows)]})


def pooled_rows(users: pa.Table, seen: pa.Table, vectors_ID: pool.Floats, known_I: np.ndarray) -> pa.Table:
    """Rows of the knowledge store for these users; who met no item with a vector is an error row."""
    owner_R = np.repeat(np.arange(len(users)), users["interactions"].to_numpy())
    item_R, liked_R = seen["item"].to_numpy(), seen["label"].to_numpy() > 0.5
    has_R = known_I[item_R]
    pooled = pool.pool(owner_R[has_R], vectors_ID[item_R[has_R]], liked_R[has_R], len(users)).astype(np.float16)
    count_N = np.bincount(owner_R[has_R], minlength=len(users))
    width = pooled.shape[1]
    digests = [prompts.fingerprint("pooled", vector.tobytes().hex()) for vector in pooled]
    blank = pa.array([""] * len(users))
    columns = {
        "id": users["user"],
        "raw_id": users["user_id"],
        "fingerprint": pa.array(digests),
        "prompt": blank,
        "answer": blank,
        "tokens": pa.array(np.zeros(len(users), np.int64)),
        "error": pa.array(["" if count else "no item with a vector" for count in count_N]),
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(pooled.reshape(-1)), width),
    }
    return schema.check(pa.table(columns).select(schema.knowledge(width).names), schema.knowledge(width), "pooled")
