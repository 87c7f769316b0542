"""Files made to run code when they are read: in this process and in Ray's workers nothing of theirs runs."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llm4msr import storage
from llm4msr.config import SourceConfig, TableColumns
from llm4msr.data.sources import table as source_table
from llm4msr.errors import DataError, LLM4MSRError, StorageError
from llm4msr.ray_session import run_each


class Bomb:
    """Unpickling one leaves a file."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


def pickled(trace: Path) -> pa.Array:
    """Two bombs as Ray Data keeps objects in a column; this also registers Ray's types here, as in any worker."""
    from ray.data._internal.object_extensions.arrow import ArrowPythonObjectArray

    bombs = np.empty(2, object)
    bombs[:] = [Bomb(trace), Bomb(trace)]
    return ArrowPythonObjectArray.from_objects(bombs)


def readings(folder: Path) -> list[str]:
    """What each of our readers says of the files."""
    from ray.data._internal.object_extensions import arrow  # noqa: F401

    said = []
    file = storage.path(folder / "interactions.parquet")
    source = SourceConfig(kind="table", path=str(folder), table=TableColumns(interactions=file.name))
    for read in (lambda: storage.read_table(file, ["x"]).to_pylist(), lambda: source_table.read(source)):
        try:
            said.append(f"read: {read()}")
        except LLM4MSRError as error:
            said.append(f"{type(error).__name__}: {error}")
    return said


def reading_task(batch: pa.Table, folder: str) -> pa.Table:
    return pa.table({"said": readings(Path(folder))})


def test_a_pickled_column_is_refused_here_and_in_a_worker(ray_session: None, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    names = ("user_id", "item_id", "scenario")
    rows = {name: ["a", "b"] for name in names} | {"x": pickled(trace)}
    pq.write_table(pa.table(rows), tmp_path / "interactions.parquet")
    pq.read_table(tmp_path / "interactions.parquet")["x"].to_pylist()
    assert trace.exists()  # the file does what it is meant to
    trace.unlink()
    here = readings(tmp_path)
    there = [row["said"] for row in run_each(reading_task, [{"n": 0}], few=0, folder=str(tmp_path))]
    assert here == there
    for said, error in zip(here, (StorageError, DataError), strict=True):
        assert said.startswith(f"{error.__name__}: {tmp_path / 'interactions.parquet'}: ")
        assert "a column has an Arrow extension type" in said
    assert not trace.exists()
