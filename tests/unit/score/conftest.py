"""A bundle, and the lists that are made with it in a process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm4msr import Ranker
from llm4msr.config import Config
from llm4msr.score import stage
from llm4msr.storage import StageOutput
from tests.support.bundles import publish_bundle
from tests.unit.conftest import World

Score = Callable[..., StageOutput]


@pytest.fixture(scope="package")
def bundle(world: World, tmp_path_factory: pytest.TempPathFactory) -> StageOutput:
    return publish_bundle(world, tmp_path_factory.mktemp("bundle")).output


@pytest.fixture(scope="package")
def ranker(bundle: StageOutput) -> Ranker:
    return Ranker.load(str(bundle.folder))


@pytest.fixture
def score(world: World, bundle: StageOutput, tmp_path: Path) -> Score:
    """`score(top_k=3)`: the lists that a config with these keys of `[score]` makes, below a folder of the test."""

    def make(codes: str = "", forget: str = "", **keys: Any) -> StageOutput:
        document = world.config.model_dump(mode="json")
        document["score"] |= {"output": str(tmp_path / "lists"), **keys}
        document["extract"]["forget"] = forget
        return stage.score(Config.model_validate(document), world.data, bundle, codes)

    return make
