"""Shared by all tests of one run: one Ray, one S3 server, one tiny LLM, one finished run of all stages."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import llm4msr
from llm4msr import pipeline
from llm4msr.ray_session import connect
from llm4msr.storage import StageOutput
from tests.support.experiments import REAL_USERS, ROOT, Experiment, MakeExperiment, config_file, small_table, tiny_llama
from tests.support.s3_server import environment, s3_server

BUCKET = "llm4msr-tests"


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URI of an empty bucket on a local S3 server; the AWS variables that lead to it are set before Ray starts."""
    log = tmp_path_factory.mktemp("s3") / "moto.log"
    with s3_server(log, BUCKET) as variables, environment(variables):
        yield f"s3://{BUCKET}"


@pytest.fixture(scope="session")
def ray_session(s3: str) -> Iterator[None]:
    """Ray as the package itself starts it; its workers import this checkout."""
    import ray

    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    connect()
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_table(tmp_path_factory.mktemp("table"))


@pytest.fixture(scope="session")
def experiment(table: Path, llama: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeExperiment:
    """`experiment({"train.epochs": 2}, {"prepare": folder})`: a new config with its own storage.

    The second argument names finished outputs to start from, which are copied.
    """

    def make(changes: dict[str, Any] | None = None, copied: dict[str, Path] | None = None) -> Experiment:
        folder = tmp_path_factory.mktemp("experiment")
        wanted = {"source.path": str(table), "extract.model": str(llama), **(changes or {})}
        for stage, source in (copied or {}).items():
            shutil.copytree(source, folder / "runs" / stage / source.name)
        return Experiment(config_file(folder, wanted))

    return make


@pytest.fixture(scope="session")
def real(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> llm4msr.Config:
    """MovieLens-100K, whose most active users and all scenarios the real LLM has read and answered, run by vLLM."""
    changes = {
        "storage": tmp_path_factory.mktemp("real"),
        "extract.engine": "vllm",
        "extract.dtype": "float32",
        "extract.answers": "all",
        "extract.answer_tokens": 48,
        "extract.max_users": REAL_USERS,
    }
    overrides = [f"{key}={value}" for key, value in changes.items()]
    config = llm4msr.load(str(ROOT / "benchmarks" / "configs" / "ml-100k.toml"), overrides)
    pipeline.prepare(config)
    pipeline.extract(config)
    return config


class Spine:
    """A finished `llm4msr.pipeline` on the small table, and what each stage gave back."""

    def __init__(self, experiment: Experiment):
        self.experiment = experiment
        self.outputs = pipeline.run(experiment.config)

    def one(self, stage: str) -> StageOutput:
        """The output of a stage; of training, that of the model with knowledge."""
        return self.outputs.one(stage)

    def folder(self, stage: str) -> Path:
        return Path(str(self.one(stage).folder))


@pytest.fixture(scope="session")
def spine(experiment: MakeExperiment, ray_session: None) -> Spine:
    return Spine(experiment())
