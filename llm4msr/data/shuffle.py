"""Raw tables -> a file for each partition of users, by one shuffle of Ray Data."""

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
from upath import UPath

from llm4msr import schema, storage
from llm4msr.arrays import strings
from llm4msr.data import partitions
from llm4msr.data.interactions import Ids, Interactions
from llm4msr.data.reading.raw_data import RawTable, require_unique
from llm4msr.progress import track
from llm4msr.storage import FileRecord

BUCKET = "bucket"
"""Column of the partition's number. Ray spreads its values over blocks, so that a block may hold several or none."""
INPUT_BYTES = 1 << 27
"""Bytes that a task of the shuffle takes apart at once; Ray's own default is eight times as much."""
ROWS = "rows"
"""Folder of the files."""
_RECORDS = pa.table({"name": [""], "rows": [0], "bytes": [0], "digest": [""]}).schema

Write = Callable[[pa.Table, UPath], FileRecord]


def write_partitions(raw: RawTable, table: str, label: str, total: int, folder: UPath) -> dict[str, FileRecord]:
    """Write the rows of each partition to a file of its own; their records by name.

    Args:
        raw: the rows.
        table: `interactions` or `users`.
        label: what the progress is called.
        total: number of partitions.
        folder: of the files.
    """
    write = _write_rows if table == "interactions" else _write_users
    written: dict[str, FileRecord] = {}
    with track(f"shuffle {label}", raw.rows) as progress:
        for name, record in _shuffled(raw, total, folder, write) if raw.rows else ():
            if name in written:
                raise RuntimeError(f"partition {name} came in two blocks")
            written[name] = record
            progress.advance(record.rows)
    for name in {partitions.file_name(ROWS, partition) for partition in range(total)} - written.keys():
        written[name] = write(raw.layout.empty_table(), folder / name)
    return written


def _shuffled(raw: RawTable, total: int, folder: UPath, write: Write) -> Iterator[tuple[str, FileRecord]]:
    """The name and the record of each partition that has rows, once its file is written."""
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
                yield row.pop("name"), FileRecord.model_validate(row)
    finally:
        context.shuffle_input_batch_bytes, context.shuffle_compression = before


def add_bucket(table: pa.Table, total: int) -> pa.Table:
    """The rows with their partitions' numbers; texts get offsets of 64 bits, since blocks may outgrow 2 GiB."""
    users = Ids.from_column(table["user_id"])
    bucket_U = partitions.numbers_of(partitions.hash_ids(strings(users.distinct)), total)
    if "scenario_id" in table.column_names:  # so few that each block can have a copy; all blocks must be of one type
        at = table.column_names.index("scenario_id")
        table = table.set_column(at, "scenario_id", Ids.from_column(table["scenario_id"]).to_column())
    table = table.cast(pa.schema([field.with_type(_wide(field.type)) for field in table.schema]))
    return table.append_column(BUCKET, pa.array(bucket_U[users.number_R].astype(np.int32)))


def _wide(kind: pa.DataType) -> pa.DataType:
    return pa.large_string() if pa.types.is_string(kind) else kind


def _write_block(block: pa.Table, folder_uri: str, write: Write) -> pa.Table:
    folder, bucket_R = storage.path(folder_uri), block[BUCKET].to_numpy()
    rows, found = block.drop_columns(BUCKET), []
    buckets = np.unique(bucket_R).tolist()
    for bucket in buckets:
        name = partitions.file_name(ROWS, bucket)
        record = write(rows if len(buckets) == 1 else rows.filter(bucket_R == bucket), folder / name)
        found.append({"name": name, **record.model_dump()})
    return pa.Table.from_pylist(found, _RECORDS)


def _write_rows(rows: pa.Table, file: UPath) -> FileRecord:
    table = Interactions.as_they_come(rows).to_table()
    return storage.write_table(file, table, max(len(table), 1))


def _write_users(users: pa.Table, file: UPath) -> FileRecord:
    narrow = [f.with_type(pa.string()) if pa.types.is_large_string(f.type) else f for f in users.schema]
    users = users.cast(pa.schema(narrow))
    require_unique(users["user_id"], "the source's users", "user_id")
    return storage.write_table(file, schema.check(users, schema.RAW_USERS, "users"))
