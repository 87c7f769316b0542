"""Ray Data over shards of users whose vectors are pooled from those of the items they met; no LLM here."""

from typing import Any

import numpy as np
import pyarrow as pa
from upath import UPath

from llm4msr import pool, prompts, schema, session, storage
from llm4msr.config import Config
from llm4msr.errors import StorageError
from llm4msr.progress import track
from llm4msr.render import shard_name, slice_rows, user_shards
from llm4msr.storage import StageOutput


def pool_users(config: Config, data: StageOutput, folder: UPath, items: int) -> dict[str, int]:
    """Write `pooled/users-*.parquet` from `vectors/items-*.parquet`; gives back each file's rows.

    Raises:
        StorageError: no item has a vector.
    """
    import ray

    session.connect()
    vectors_ID, known_I = _item_vectors(config, folder, items)
    shared = ray.put((vectors_ID, known_I))
    counts = storage.read_table(data.folder / "histories.parquet", ["interactions"])["interactions"].to_numpy()
    ends = np.cumsum(counts)
    todo = user_shards(config, len(counts))
    for shard in todo:  # where the users' rows lie in `seen`
        shard |= {"first": int(ends[shard["start"]] - counts[shard["start"]]), "last": int(ends[shard["stop"] - 1])}
    done: dict[str, int] = {}
    results = ray.data.from_items(todo, override_num_blocks=len(todo)).map_batches(
        _pool_shard, fn_args=(str(data.folder), str(folder), shared), batch_size=1, batch_format="pyarrow"
    )
    with track("pool", todo[-1]["stop"]) as progress:
        for batch in results.iter_batches(batch_size=None, batch_format="pyarrow"):
            for result in batch.to_pylist():
                done[result["file"]] = result["rows"]
                progress.advance(result["rows"])
    return done


def _item_vectors(config: Config, folder: UPath, items: int) -> tuple[pool.Floats, np.ndarray]:
    """float32 [items + 1, D], whitened (or random numbers, for the control), and which items have one."""
    dim = config.extract.pool_dim
    if config.extract.item_vectors == "random":
        known_I = np.arange(items + 1) > 0
        return np.random.default_rng(4711).standard_normal((items + 1, dim), np.float32), known_I
    tables = [
        storage.read_table(file, ["id", "error", "vector"]) for file in sorted((folder / "vectors").glob("items-*"))
    ]
    table = pa.concat_tables(tables)
    good = np.array([not error for error in table["error"].to_pylist()], bool)
    if not good.any():
        raise StorageError(f"{folder / 'vectors'}: no item has a vector; look at the errors in its shards")
    vectors = table["vector"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
    known_I = np.zeros(items + 1, bool)
    ids = table["id"].to_numpy()[good]
    known_I[ids] = True
    white = pool.whiten(vectors[good], dim)
    vectors_ID = np.zeros((items + 1, white.shape[1]), np.float32)
    vectors_ID[ids] = white
    return vectors_ID, known_I


def _pool_shard(batch: pa.Table, data_uri: str, folder_uri: str, shared: Any) -> pa.Table:
    """One shard's users, pooled and written; gives back the file and its rows."""
    import ray

    (shard,) = batch.to_pylist()
    data, folder = storage.path(data_uri), storage.path(folder_uri)
    vectors_ID, known_I = ray.get(shared)
    users = slice_rows(data / "histories.parquet", shard["start"], shard["stop"])
    seen = slice_rows(data / "seen.parquet", shard["first"], shard["last"])
    name = f"pooled/{shard_name(shard)}"
    storage.write_table(folder / name, pooled_rows(users, seen, vectors_ID, known_I))
    return pa.table({"file": [name], "rows": [len(users)]})


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
