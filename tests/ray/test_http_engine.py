"""The engine `http` against a real vLLM server on loopback: vectors, and a server that dies in the middle of a pass."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest

from llm4msr import pipeline
from llm4msr.errors import EndpointError
from tests.support.experiments import (
    ROOT,
    Experiment,
    MakeExperiment,
    command_line,
    cosines,
    free_port,
    kill_all,
    matrix,
    own_ray,
    read_store,
    wait_until,
)
from tests.support.fixtures import Spine
from tests.support.llm_endpoint import LLMEndpoint

KEY = "vllm-key-never-in-any-log-0000000000"
START_S = 900
WITH_KEY = own_ray() | {"VLLM_SECRET": KEY, "RAY_ADDRESS": "local"}


class VllmServer:
    """A vLLM server that pools as the engine `vllm` does; it can be killed and started again at the same address."""

    def __init__(self, model: Path, folder: Path):
        self.port, self._model, self._log = free_port(), model, folder / "server.log"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        """Returns when it answers."""
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(self._model)]
        command += ["--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--runner", "pooling", "--convert", "embed", "--dtype", "float32", "--max-model-len", "1120"]
        command += ["--enforce-eager", "--pooler-config", '{"seq_pooling_type": "LAST", "use_activation": false}']
        settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, env=os.environ | settings | {"VLLM_API_KEY": KEY}, cwd=ROOT, stdout=log, stderr=log
            )
        wait_until(self._answers, self._process, START_S)

    def kill(self) -> None:
        kill_all(self._process)

    def _answers(self) -> bool:
        time.sleep(0.2)
        try:
            return httpx.get(self.url.replace("/v1", "/health"), timeout=5).status_code == 200
        except httpx.HTTPError:
            return False


@pytest.fixture(scope="module")
def server(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    pytest.importorskip("vllm")
    opened = VllmServer(llama, tmp_path_factory.mktemp("vllm"))
    opened.start()
    yield opened
    opened.kill()


def over_http(url: str, **changes: Any) -> dict[str, Any]:
    """An experiment whose prompts an endpoint reads."""
    settings = {"engine": "http", "http_url": url, "dtype": "auto", "answers": "none", "model": "tiny"} | changes
    return {f"extract.{key}": value for key, value in settings.items()}


def extraction(made: Experiment) -> list[str]:
    return command_line("extract", str(made))


def shards(made: Experiment) -> list[Path]:
    return sorted(made.root.glob("extract/*/vectors/*.parquet"))


def test_vectors_are_those_of_the_engine_in_the_process_and_a_key_stays_secret(
    server: VllmServer, spine: Spine, llama: Path, experiment: MakeExperiment, tmp_path: Path
) -> None:
    """As text and as tokens; by a command with a Ray of its own, whose actors have the key from its environment."""
    local = experiment({"extract.answers": "none"}, {"prepare": spine.folder("prepare")})
    expected = matrix(read_store(Path(str(pipeline.extract(local.config).folder))))
    for changes in ({}, {"http_tokenizer": str(llama), "http_prompts": 5}):
        wanted = over_http(server.url, http_key_variable="VLLM_SECRET", http_price=2.0, **changes)
        made = experiment(wanted, {"prepare": spine.folder("prepare")})
        done = subprocess.run(extraction(made), env=WITH_KEY, cwd=ROOT, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
        output = pipeline.extracted(made.config)
        found = matrix(read_store(Path(str(output.folder))))
        good = expected.any(1)
        np.testing.assert_array_equal(found.any(1), good)
        assert cosines(found[good], expected[good]).min() > 0.9999
        np.testing.assert_allclose(found, expected, atol=0.01 * np.abs(expected).max())
        assert output.manifest.info["spent"]["vectors"]["billed"] > output.manifest.rows
        assert b"cost 0." in done.stderr
        texts = [done.stdout, done.stderr, *(f.read_bytes() for f in made.root.rglob("*") if f.is_file())]
        assert not any(KEY.encode() in text for text in texts)


def test_a_server_that_is_killed_in_a_pass_costs_the_shards_in_flight_alone(
    server: VllmServer, experiment: MakeExperiment
) -> None:
    changes = {"http_key_variable": "VLLM_SECRET", "http_retries": 0, "rows_per_shard": 1}
    made = experiment(over_http(server.url, **changes))
    pipeline.prepare(made.config)
    with subprocess.Popen(extraction(made), env=WITH_KEY, cwd=ROOT, stderr=subprocess.PIPE) as process:
        wait_until(lambda: len(shards(made)) > 3, process)
        server.kill()
        _, told = process.communicate()
    assert process.returncode == EndpointError.exit_code
    assert f"{server.url}/embeddings: no answer after 0 retries" in told.decode()
    before = {file: file.stat().st_mtime_ns for file in shards(made)}
    server.start()
    done = subprocess.run(extraction(made), env=WITH_KEY, cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert {file: file.stat().st_mtime_ns for file in before} == before
    output = pipeline.extracted(made.config)
    assert len(shards(made)) == output.manifest.rows > len(before) > 3
    assert output.manifest.failed == output.manifest.info["users_without_likes"]


def test_an_endpoint_that_fails_in_a_pass_costs_the_shards_in_flight_alone(
    ray_session: None, spine: Spine, experiment: MakeExperiment
) -> None:
    with LLMEndpoint(seconds=0.02) as endpoint:
        made = experiment(over_http(endpoint.url, http_retries=0), {"prepare": spine.folder("prepare")})
        reply = endpoint._reply
        endpoint._reply = lambda path, body: (  # type: ignore[method-assign]
            (503, {}, b"gone") if len(endpoint.prompts) > 30 else reply(path, body)
        )
        with pytest.raises(EndpointError, match="503 Service Unavailable: gone"):
            pipeline.extract(made.config)
        tables = [pq.read_table(file, columns=["prompt"]) for file in shards(made)]
        finished = {prompt.strip() for table in tables for prompt in table["prompt"].to_pylist() if prompt}
        assert finished
        endpoint._reply, before = reply, len(endpoint.prompts)  # type: ignore[method-assign]
        output = pipeline.extract(made.config)
    assert output.manifest.continued
    assert finished.isdisjoint(endpoint.prompts[before:])
    assert output.manifest.failed == output.manifest.info["users_without_likes"]


def test_another_model_of_another_width_at_the_same_address_is_told_before_it_is_asked(
    ray_session: None, spine: Spine, experiment: MakeExperiment
) -> None:
    with LLMEndpoint() as endpoint:
        made = experiment(over_http(endpoint.url, max_users=10), {"prepare": spine.folder("prepare")})
        pipeline.extract(made.config)
        endpoint.width, before = 5, len(endpoint.prompts)
        extract = made.config.extract.model_copy(update={"max_users": 20})
        with pytest.raises(EndpointError, match=r"of 5 numbers, earlier versions have 4; .*http_revision"):
            pipeline.extract(made.config.model_copy(update={"extract": extract}))
        assert len(endpoint.prompts) == before
        extract = extract.model_copy(update={"http_revision": "2"})
        output = pipeline.extract(made.config.model_copy(update={"extract": extract}))
        assert output.manifest.info["width"] == 5
