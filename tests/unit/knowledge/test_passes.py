"""How many engines extraction starts, and on what, from the machines that Ray knows."""

from pathlib import Path
from typing import Any

import pytest

from llm4msr.errors import ConfigError
from llm4msr.knowledge.passes import plan_pool
from tests.support.data import config_of

CPUS = {"CPU": 8.0}
GPUS = {"CPU": 16.0, "GPU": 4.0}


@pytest.mark.parametrize(
    ("extract", "nodes", "expected"),
    [
        ({}, [CPUS], (1, 8, 0)),
        ({}, [CPUS, CPUS], (2, 8, 0)),
        ({"actors": 2}, [CPUS], (2, 4, 0)),
        ({}, [GPUS, CPUS], (4, 4, 1)),
        ({"tensor_parallel": 2}, [GPUS], (2, 8, 2)),
        ({"device": "gpu"}, [GPUS, CPUS], (4, 4, 1)),
        ({"device": "gpu", "actors": 3}, [CPUS], (3, 1, 1)),
        ({"device": "gpu", "actors": 300}, [], (100, 1, 1)),
    ],
)
def test_engines_fit_the_machines(tmp_path: Path, extract: dict[str, Any], nodes: Any, expected: tuple[int, int, int]):
    assert plan_pool(config_of(tmp_path, extract=extract), nodes, 100) == expected


@pytest.mark.parametrize(
    ("extract", "nodes", "told"),
    [
        ({"device": "gpu"}, [CPUS], "give extract.actors"),
        ({"tensor_parallel": 8}, [GPUS], "no machine of this cluster has so many GPUs"),
    ],
)
def test_what_cannot_be_had_is_told(tmp_path: Path, extract: dict[str, Any], nodes: Any, told: str):
    with pytest.raises(ConfigError, match=told):
        plan_pool(config_of(tmp_path, extract=extract), nodes, 100)
