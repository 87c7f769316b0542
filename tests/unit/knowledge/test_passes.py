"""How many engines a pass starts, and on what, from the machines that Ray knows; and which shards are finished."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from llm4msr import storage
from llm4msr.errors import ConfigError
from llm4msr.knowledge.actor_pool import plan_pool, rows_per_shard
from llm4msr.knowledge.passes import finished_shards
from llm4msr.knowledge.work import Shard
from tests.support.data import config_of

CPUS = {"CPU": 8.0}
GPUS = {"CPU": 16.0, "GPU": 4.0}


@pytest.mark.parametrize(
    ("extract", "nodes", "expected"),
    [
        ({}, [CPUS], (1, 100, 8, 0)),
        ({}, [CPUS, CPUS], (2, 100, 8, 0)),
        ({}, [CPUS, {"CPU": 32.0}], (2, 2, 8, 0)),
        ({"actors": 2}, [CPUS], (2, 2, 4, 0)),
        ({}, [GPUS, CPUS], (4, 100, 4, 1)),
        ({"tensor_parallel": 2}, [GPUS], (2, 100, 8, 2)),
        ({}, [{"CPU": 16.0, "GPU": 8.0}, {"CPU": 16.0, "GPU": 1.0}], (9, 100, 2, 1)),
        ({"engines_per_gpu": 3}, [GPUS], (12, 100, 1, 1 / 3)),
        ({"engines_per_gpu": 2, "actors": 3}, [{"CPU": 16.0, "GPU": 2.0}], (3, 3, 5, 0.5)),
        ({"device": "gpu"}, [GPUS, CPUS], (4, 100, 4, 1)),
        ({"device": "gpu", "actors": 3}, [CPUS], (3, 3, 1, 1)),
        ({"device": "gpu", "actors": 300}, [], (100, 100, 1, 1)),
    ],
)
def test_engines_fit_the_machines(tmp_path: Path, extract: dict[str, Any], nodes: Any, expected: tuple[int, int, int]):
    assert plan_pool(config_of(tmp_path, extract=extract), nodes, 100) == expected


@pytest.mark.parametrize(
    ("extract", "nodes", "message"),
    [
        ({"device": "gpu"}, [CPUS], "give extract.actors"),
        ({"tensor_parallel": 8}, [GPUS], "no machine of this cluster has so many GPUs"),
    ],
)
def test_an_engine_that_fits_no_machine_is_refused(tmp_path: Path, extract: dict[str, Any], nodes: Any, message: str):
    with pytest.raises(ConfigError, match=message):
        plan_pool(config_of(tmp_path, extract=extract), nodes, 100)


def test_a_shard_is_finished_if_no_row_of_it_is_to_be_tried_again(tmp_path: Path):
    folder, name = storage.path(tmp_path), "users-000000000.parquet"
    shards = [Shard(name=name, kind="users", todo=name, group=0, rows=5)]

    def write(*errors: str) -> None:
        storage.write_table(folder / name, pa.table({"error": errors}))

    assert finished_shards(folder, shards) == {}
    write("", "nothing liked before the cut", "", "RuntimeError: broke down")
    assert finished_shards(folder, shards) == {}
    write("", "nothing liked before the cut", "", "")
    assert finished_shards(folder, shards) == {name: (4, 1, 1)}
    (folder / name).write_bytes((folder / name).read_bytes()[:-7])  # as a crash of the machine may leave it
    assert finished_shards(folder, shards) == {}
    assert finished_shards(folder, []) == {}


@pytest.mark.parametrize(
    ("extract", "machines", "rows"),
    [
        ({}, [{"CPU": 8.0}], 256),
        ({}, [{"CPU": 8.0}, {"CPU": 8.0, "GPU": 2.0}], 4096),
        ({"device": "gpu", "actors": 2}, [], 4096),
        ({"rows_per_shard": 7}, [{"CPU": 8.0, "GPU": 2.0}], 7),
    ],
)
def test_a_shard_is_larger_where_engines_run_on_gpus(
    tmp_path: Path, extract: dict[str, Any], machines: list[dict[str, float]], rows: int
):
    assert rows_per_shard(config_of(tmp_path, extract=extract), machines) == rows
