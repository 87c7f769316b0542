"""The swap of the model in service: whole, or not at all."""

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from llm4msr import storage
from llm4msr.errors import StorageError
from llm4msr.live_model import LiveModel
from tests.unit.conftest import World
from tests.unit.test_bundle import publish, publish_codes, read_codes, request, turned


class Served:
    """A bundle below export/, where codes for it may lie beside."""

    def __init__(self, world: World, root: Path):
        self.published = publish(world, "both", root / "made")
        self.bundle = Path(shutil.copytree(str(self.published[0].folder), root / "export" / "b1"))
        self.codes = root / "codes" / "b1"

    def refresh(self, name: str, user: str) -> None:
        """Codes that are turned round for one user, and the pointer to them."""
        publish_codes(self.published, self.codes / name, turned(read_codes(self.bundle), user))
        self.point_to(name)

    def point_to(self, name: str) -> None:
        storage.write_bytes(storage.path(self.codes / "latest.json"), json.dumps({"codes": name}).encode())


@pytest.fixture
def served(world: World, tmp_path: Path) -> Served:
    return Served(world, tmp_path)


def test_newer_codes_come_and_go_and_a_taken_ranker_stays_as_it_was(served: Served):
    async def scenario() -> None:
        live = LiveModel(on_refusal=lambda: None)
        await live.load(str(served.bundle))
        first = live.ranker
        before = first.rank(request(), "a")
        served.refresh("n1", "u1")
        await live.take_latest_codes()
        assert live.ranker.rank(request(), "a").knowledge_version == "n1"
        assert live.ranker.rank(request(), "a").ranked != before.ranked
        assert first.rank(request(), "a") == before
        await live.take_latest_codes()
        assert live.ranker.knowledge_version == "n1"
        (served.codes / "latest.json").unlink()
        await live.take_latest_codes()
        assert live.ranker is first

    asyncio.run(scenario())


def test_a_replica_that_starts_later_takes_the_latest_codes(served: Served):
    served.refresh("n1", "u1")

    async def scenario() -> None:
        live = LiveModel(on_refusal=lambda: None)
        await live.load(str(served.bundle))
        assert live.ranker.knowledge_version == "n1"

    asyncio.run(scenario())


@pytest.mark.parametrize("spoil", ["pointer", "codes", "absent"])
def test_what_cannot_be_loaded_leaves_the_old_one_in_service(served: Served, spoil: str):
    refusals: list[int] = []

    async def scenario() -> None:
        live = LiveModel(on_refusal=lambda: refusals.append(1))
        await live.load(str(served.bundle))
        first = live.ranker
        served.refresh("n1", "u1")
        if spoil == "pointer":
            (served.codes / "latest.json").write_text("[]")
        if spoil == "codes":
            (served.codes / "n1" / "codes.arrow").write_bytes(b"x")
        if spoil == "absent":
            served.point_to("n2")
        await live.take_latest_codes()
        assert live.ranker is first
        assert "StorageError: " in live.problem
        served.refresh("n3", "u1")
        await live.take_latest_codes()
        assert (live.problem, live.ranker.knowledge_version) == ("", "n3")
        await live.load(str(served.bundle) + "-gone")
        assert live.ranker.knowledge_version == "n3"
        assert "not a finished bundle" in live.problem

    asyncio.run(scenario())
    assert len(refusals) == 2


def test_the_first_bundle_must_load(tmp_path: Path):
    live = LiveModel(on_refusal=lambda: None)
    with pytest.raises(StorageError, match="not a finished bundle"):
        asyncio.run(live.load(str(tmp_path)))


def test_codes_are_looked_for_again_and_again(served: Served):
    async def scenario() -> str:
        live = LiveModel(on_refusal=lambda: None)
        await live.load(str(served.bundle))
        live.follow(0.02)
        served.refresh("n1", "u1")
        for _ in range(500):
            await asyncio.sleep(0.01)
            if live.ranker.knowledge_version == "n1":
                break
        return live.ranker.knowledge_version

    assert asyncio.run(scenario()) == "n1"
