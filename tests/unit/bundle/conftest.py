"""A bundle that several tests read and none changes."""

import pytest

from llm4msr import Ranker
from tests.support.bundles import Published, publish_bundle
from tests.unit.conftest import World


@pytest.fixture(scope="package")
def published(world: World, tmp_path_factory: pytest.TempPathFactory) -> Published:
    return publish_bundle(world, tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="package")
def ranker(published: Published) -> Ranker:
    return Ranker.load(str(published.output.folder))
