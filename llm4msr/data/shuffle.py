"""Raw tables -> a file for each partition of users, by one shuffle of Ray Data."""

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
from upath import UPath

from llm4msr import schema, storage
from llm4msr.arrays import strings
from llm4msr.data import partitions, work_files
from llm4msr.data.interactions import Ids, Interactions
from llm4msr.data.reading.raw_data import RawTable, require_unique
from llm4msr.progress import track

BUCKET = "bucket"
"""Column of the partition's number. Ray spreads its values over blocks, so that a block may hold several or none."""
INPUT_BYTES = 1 << 27
"""Bytes that a task of the shuffle takes apart at once; Ray's own default is eight times as much."""


def shuffle(raw: RawTable, name: str, total: int, folder: UPath) -> None:
    """Write the rows of each partition below `work/NAME`, or find that an earlier run has."""
    done = folder / work_files.WORK / f"{name}.json"
    if done.exists():
        return
    write = _write_rows if name == work_files.RAW_ROWS else _write_users
    written: dict[int, int] = {}
    with track(f"shuffle {name.removeprefix('raw-')}", raw.rows) as progress:
        for bucket, rows in _shuffled(raw, total, folder, write) if raw.rows else ():
            if bucket in written:
                raise RuntimeError(f"partition {bucket} came in two blocks")
            written[bucket] = rows
            progress.advance(rows)
    for bucket in set(range(total)) - written.keys():
        write(raw.layout.empty_table(), folder, bucket)
    work_files.write_json(done, written)


def _shuffled(
    raw: RawTable, total: int, folder: UPath, write: Callable[[pa.Table, UPath, int], None]
) -> Iterator[tuple[int, int]]:
    """Each partition that has rows, and how many, once its file is written."""
    import ray

    context = ray.data.DataContext.get_current()
    before = context.shuffle_input_batch_bytes, context.shuffle_compression
    context.shuffle_input_batch_bytes, context.shuffle_compression = INPUT_BYTES, "lz4"  # its default costs more time
    try:
        blocks = (
            raw.dataset()
            .map_batches(add_bucket, batch_size=None, batch_format="pyarrow", fn_kwargs={"total": total})
            .repartition(total, keys=[BUCKET])
            .map_batches(
                _write_block,
                batch_size=None,
                batch_format="pyarrow",
                fn_kwargs={"folder_uri": str(folder), "write": write},
            )
        )
        for batch in blocks.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for row in batch.to_pylist():
                yield row[BUCKET], row["rows"]
    finally:
        context.shuffle_input_batch_bytes, context.shuffle_compression = before


def add_bucket(table: pa.Table, total: int) -> pa.Table:
    """The rows with their partitions' numbers; texts get offsets of 64 bits, since blocks may outgrow 2 GiB."""
    users = Ids.from_column(table["user_id"])
    bucket_U = partitions.numbers_of(partitions.hash_ids(strings(users.distinct)), total)
    if (
        "scenario_id" in table.column_names
    ):  # so few that each block can have a copy of them; blocks must be of one type
        at = table.column_names.index("scenario_id")
        table = table.set_column(at, "scenario_id", Ids.from_column(table["scenario_id"]).to_column())
    table = table.cast(pa.schema([field.with_type(_wide(field.type)) for field in table.schema]))
    return table.append_column(BUCKET, pa.array(bucket_U[users.number_R].astype(np.int32)))


def _wide(kind: pa.DataType) -> pa.DataType:
    return pa.large_string() if pa.types.is_string(kind) else kind


def _write_block(block: pa.Table, folder_uri: str, write: Callable[[pa.Table, UPath, int], None]) -> pa.Table:
    folder, bucket_R = storage.path(folder_uri), block[BUCKET].to_numpy()
    counts = np.bincount(bucket_R)
    buckets = np.flatnonzero(counts)
    for bucket in buckets.tolist():
        rows = block.drop_columns(BUCKET)
        write(rows if len(buckets) == 1 else rows.filter(bucket_R == bucket), folder, bucket)
    return pa.table({BUCKET: pa.array(buckets), "rows": pa.array(counts[buckets])})


def _write_rows(rows: pa.Table, folder: UPath, bucket: int) -> None:
    work_files.write_rows(folder, bucket, Interactions.from_table(rows))


def _write_users(users: pa.Table, folder: UPath, bucket: int) -> None:
    narrow = [f.with_type(pa.string()) if pa.types.is_large_string(f.type) else f for f in users.schema]
    users = users.cast(pa.schema(narrow))
    require_unique(users["user_id"], "the source's users", "user_id")
    file = work_files.place(folder, work_files.RAW_USERS, bucket)
    storage.write_table(file, schema.check(users, schema.RAW_USERS, "users"))
