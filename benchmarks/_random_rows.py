"""Rows of random users, items and scenarios as training reads them, without what `prepare` would do to get there."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from llm4msr import schema, storage
from llm4msr.data import partitions
from llm4msr.data.partitioned_rows import PartitionedRows
from llm4msr.model.embedding import Field
from llm4msr.storage import StageResult
from llm4msr.training.dataset import Dataset
from llm4msr.training.feature_tables import FeatureTables

SCENARIOS = 5
"""The unknown one included, as in all numbers of ids here."""


def random_rows(rng: np.random.Generator, rows: int, users: int, items: int) -> pa.Table:
    """Rows whose label follows from nothing."""
    sizes = {"user": users, "item": items, "scenario": SCENARIOS}
    columns = {name: pa.array(rng.integers(1, size, rows)) for name, size in sizes.items()}
    none, label = pa.array(np.zeros(rows, np.int64)), pa.array(rng.integers(0, 2, rows).astype(np.float32))
    return pa.table(columns | {"seen": none, "event": none, "label": label})


def write_rows(folder: Path, splits: Mapping[str, int], users: int, items: int) -> None:
    """Publish so many rows of each split as an output of `prepare`; written a row group at a time."""
    rng, tables = np.random.default_rng(1), {"users": users, "seen": 0, "events": 0, **splits}

    def build(at: UPath) -> StageResult:
        for table, count in tables.items():
            file = Path(at) / partitions.file_name(table, 0)
            file.parent.mkdir(parents=True)
            with pq.ParquetWriter(file, random_rows(rng, 0, users, items).schema, compression="zstd") as writer:
                for start in range(0, count, schema.TRAIN_GROUP_ROWS):
                    rows = min(schema.TRAIN_GROUP_ROWS, count - start)
                    writer.write_table(random_rows(rng, rows, users, items))
        files = {partitions.file_name(table, 0): count for table, count in tables.items()}
        return StageResult(files=files, rows=sum(splits.values()))

    storage.publish(storage.path(folder), "prepare", 1, {}, {}, build)


def open_dataset(folder: Path, users: int, items: int) -> Dataset:
    """The dataset of rows that `write_rows` has published; users and items have no features."""
    fields = [Field("user_id", "user", users, 1), Field("item_id", "item", items, 1)]
    fields.append(Field("scenario_id", "scenario", SCENARIOS, 1))
    slots = PartitionedRows(np.array([0, users]), lambda _: np.arange(users, dtype=np.int32)[:, None])
    tables = FeatureTables(fields, slots, np.arange(items)[:, None], SCENARIOS)
    prepared = storage.open_output(storage.path(folder))
    assert prepared is not None
    return Dataset(prepared, tables, [str(number) for number in range(SCENARIOS)], None)


def peak_memory() -> int:
    """Highest resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) << 10
