"""A pass of the LLM on a real cluster of several nodes, which come and go under it."""

import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from llm4msr import pipeline
from llm4msr.knowledge.passes import SHARDS_AT_ONCE
from tests.support.experiments import (
    MakeExperiment,
    command_line,
    kill_all,
    matrix,
    own_ray,
    read_store,
    wait_until,
)
from tests.support.llm_endpoint import LLMEndpoint, vector

SECONDS = 4.0
"""That a prompt takes, as long as the cluster changes."""


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head without CPUs, where the driver runs, and two nodes of one CPU each."""
    from ray.cluster_utils import Cluster

    soon = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 3}
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": soon})
    try:
        made.add_node(num_cpus=1)
        made.add_node(num_cpus=1)
        yield made
    finally:
        made.shutdown()


def actor_of(node: Any) -> psutil.Process | None:
    """The actor that asks the LLM on a node, where one has started."""
    (raylet,) = node.all_processes["raylet"]
    for process in psutil.Process(raylet.process.pid).children(recursive=True):
        try:
            if any("AskLLM" in word for word in process.cmdline()):
                return process
        except psutil.Error:
            continue
    return None


def test_actors_follow_the_nodes_and_no_row_is_lost_or_doubled(
    experiment: MakeExperiment, cluster: Any, tmp_path: Path
) -> None:
    """An actor is killed, a node is taken, two others come, one more than there were, and that is taken for good."""
    with LLMEndpoint(seconds=SECONDS) as endpoint:
        settings = {"engine": "http", "http_url": endpoint.url, "model": "tiny", "dtype": "auto", "answers": "none"}
        settings |= {"rows_per_shard": 1, "http_retries": 0}
        made = experiment({f"extract.{key}": value for key, value in settings.items()})
        pipeline.prepare(made.config)
        kept, taken = cluster.list_all_nodes()[1:]
        environment = own_ray() | {"RAY_ADDRESS": cluster.address}
        with (tmp_path / "log").open("w") as log:
            driver = subprocess.Popen(command_line("extract", str(made)), env=environment, stdout=log, stderr=log)
            try:
                wait_until(lambda: len(endpoint.prompts) > 3 and all(map(actor_of, (kept, taken))), driver)
                killed = actor_of(kept)
                assert killed is not None
                killed.kill()
                cluster.remove_node(taken, allow_graceful=False)
                added = [cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1)]
                wait_until(lambda: all(map(actor_of, (kept, *added))), driver)
                cluster.remove_node(added[1], allow_graceful=False)
                endpoint.seconds = 0.0
                assert driver.wait(timeout=180) == 0, (tmp_path / "log").read_text()
            finally:
                if driver.poll() is None:
                    kill_all(driver)

    output = pipeline.extracted(made.config)
    store = read_store(Path(str(output.folder)))
    assert len({*store["raw_id"].to_pylist()}) == len(store) == output.manifest.rows
    good = [not error for error in store["error"].to_pylist()]
    assert good.count(False) == output.manifest.info["users_without_likes"]
    prompts = [prompt.strip() for prompt in store.filter(good)["prompt"].to_pylist()]
    expected = np.stack([vector(prompt, endpoint.width) for prompt in prompts])
    np.testing.assert_array_equal(matrix(store.filter(good)), expected.astype(np.float16))
    asked = Counter(endpoint.prompts)
    assert not Counter(prompts) - asked
    assert (asked - Counter(prompts)).total() <= 3 * SHARDS_AT_ONCE, "more than what was in three actors is asked again"
    assert "the LLM was at work" in (tmp_path / "log").read_text()
