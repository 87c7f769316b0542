"""Rows of random users, items and scenarios as training reads them, without what `prepare` would do to get there."""

from pathlib import Path

import numpy as np
import pyarrow as pa
from upath import UPath

from llm4msr import storage
from llm4msr.data.partitioned_rows import PartitionedRows
from llm4msr.model.embedding import Field
from llm4msr.storage import StageResult
from llm4msr.training.dataset import Dataset
from llm4msr.training.feature_tables import FeatureTables

SCENARIOS = 5
"""The unknown one included, as in all numbers of ids here."""
SPLITS = ("train", "valid")


def random_rows(rng: np.random.Generator, rows: int, users: int, items: int) -> pa.Table:
    """Rows whose label follows from nothing."""
    sizes = {"user": users, "item": items, "scenario": SCENARIOS}
    columns = {name: pa.array(rng.integers(1, size, rows)) for name, size in sizes.items()}
    label = pa.array(rng.integers(0, 2, rows).astype(np.float32))
    return pa.table(columns | {"seen": pa.array(np.zeros(rows, np.int64)), "label": label})


def open_dataset(folder: UPath, users: int, items: int) -> Dataset:
    """The dataset of `train.parquet` and `valid.parquet` in this folder; users and items have no features."""
    fields = [Field("user_id", "user", users, 1), Field("item_id", "item", items, 1)]
    fields.append(Field("scenario_id", "scenario", SCENARIOS, 1))
    slots = PartitionedRows(np.array([0, users]), lambda _: np.arange(users, dtype=np.int32)[:, None])
    tables = FeatureTables(fields, slots, np.arange(items)[:, None], SCENARIOS)
    result = StageResult(files={f"{split}/p=00000.parquet": -1 for split in SPLITS}, rows=0)
    prepared = storage.publish(folder, "prepare", 1, {}, {}, lambda _: result, resumable=True)
    return Dataset(prepared, tables, [str(number) for number in range(SCENARIOS)], None)


def peak_memory() -> int:
    """Highest resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) << 10
