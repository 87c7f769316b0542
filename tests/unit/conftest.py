"""Fixtures of the unit tests. Nothing is fetched, and nothing is written outside of pytest's folders."""

import gc
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import hypothesis
import pytest
import torch

from llm4msr.config import Config
from llm4msr.pipeline import explain
from llm4msr.serve import api_token
from llm4msr.storage import StageOutput
from tests.support.data import config_of, hostile_config, prepare_and_make_knowledge, publish_trained, write_data

hypothesis.settings.register_profile("patient", deadline=None)  # an example may wait for a busy machine
hypothesis.settings.load_profile("patient")


@pytest.fixture(scope="package", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Our cache below pytest's folder."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLM4MSR_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors are faster on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def replica_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A replica changes its process; this brings it back."""
    monkeypatch.delenv(api_token.VARIABLE, raising=False)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    gc.unfreeze()


class World(NamedTuple):
    """Prepared data and knowledge that several tests read and none changes."""

    config: Config
    data: StageOutput
    knowledge: StageOutput


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    config = config_of(write_data(tmp_path_factory.mktemp("world")), split={"by": "user"})
    return World(config, *prepare_and_make_knowledge(config))


@pytest.fixture(scope="package")
def report(tmp_path_factory: pytest.TempPathFactory, own_cache: Path, one_thread: None) -> tuple[Config, StageOutput]:
    """The report of a finished run whose every text is hostile."""
    config = hostile_config(tmp_path_factory.mktemp("report"), train={"epochs": 6})
    for run in (config, config.using("none", config.seed)):
        publish_trained(run)
    return config, explain(config)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], capture_output=True)
    if done.returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)
