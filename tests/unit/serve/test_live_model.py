"""The swap of the model in service: whole, or not at all."""

import asyncio
import json
import re
import shutil
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from llm4msr import Ranker, storage
from llm4msr.bundle.files import latest_codes
from llm4msr.errors import ConfigError, StorageError
from llm4msr.serve.live_model import LiveModel
from tests.unit.bundle.test_ranker import publish, publish_codes, read_codes, request, turned
from tests.unit.conftest import World


class Served:
    """A bundle below export/, where codes for it may lie beside."""

    def __init__(self, world: World, root: Path, **model: Any):
        self.root = root
        self.published = publish(world, "both", root / "made", **model)
        self.bundle = self.another("b1")
        self.codes = root / "codes" / "b1"

    def another(self, name: str) -> Path:
        """The same bundle as another version."""
        folder = Path(shutil.copytree(str(self.published[0].folder), self.root / "export" / name))
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(manifest | {"fingerprint": name}))
        return folder

    def refresh(self, name: str, user: str, bundle: str = "b1") -> None:
        """Codes that are turned round for one user, and the pointer to them."""
        publish_codes(self.published, self.root / "codes" / bundle / name, turned(read_codes(self.bundle), user))
        self.point_to(name, bundle)

    def point_to(self, name: str, bundle: str = "b1") -> None:
        pointer = storage.path(self.root / "codes" / bundle / "latest.json")
        storage.write_bytes(pointer, json.dumps({"codes": name}).encode())


@pytest.fixture
def served(world: World, tmp_path: Path) -> Served:
    return Served(world, tmp_path)


Steps = Callable[[LiveModel], Coroutine[Any, Any, None]]


def run(steps: Steps) -> int:
    """The number of refusals in the course of these steps."""
    refusals: list[int] = []

    async def whole() -> None:
        await steps(LiveModel(lambda: refusals.append(1), [OWN["backbone"]]))

    asyncio.run(whole())
    return len(refusals)


def versions(live: LiveModel) -> tuple[str, str]:
    """As an answer has them."""
    answer = live.ranker.rank(request())
    return answer.model_version, answer.knowledge_version


def test_newer_codes_come_and_go_and_a_taken_ranker_stays_as_it_was(served: Served):
    async def steps(live: LiveModel) -> None:
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

    assert run(steps) == 0


def test_a_replica_that_starts_later_takes_the_latest_codes(served: Served):
    served.refresh("n1", "u1")

    async def steps(live: LiveModel) -> None:
        await live.load(str(served.bundle))
        assert live.ranker.knowledge_version == "n1"

    assert run(steps) == 0


def test_a_new_bundle_and_its_newest_codes_come_together(served: Served):
    served.refresh("n1", "u1", bundle="b2")
    second = str(served.another("b2"))

    async def steps(live: LiveModel) -> None:
        await live.load(str(served.bundle))
        seen = {versions(live)}
        loading = asyncio.create_task(live.load(second))
        while not loading.done():
            seen.add(versions(live))
            await asyncio.sleep(0)
        assert seen | {versions(live)} == {("b1", "b1"), ("b2", "n1")}

    assert run(steps) == 0


def test_a_new_bundle_whose_codes_are_damaged_waits_for_them(served: Served):
    served.refresh("n1", "u1", bundle="b2")
    second = served.another("b2")
    damaged = served.root / "codes" / "b2" / "n1" / "codes.arrow"
    good = damaged.read_bytes()
    damaged.write_bytes(b"x")

    async def steps(live: LiveModel) -> None:
        await live.load(str(served.bundle))
        await live.load(str(second))
        assert versions(live) == ("b1", "b1")
        assert "codes.arrow" in live.problem
        damaged.write_bytes(good)
        await live.take_latest_codes()
        assert (live.problem, *versions(live)) == ("", "b2", "n1")

    assert run(steps) == 1


def test_damaged_codes_do_not_keep_a_replica_from_starting(served: Served):
    served.point_to("absent")

    async def steps(live: LiveModel) -> None:
        await live.load(str(served.bundle))
        assert versions(live) == ("b1", "b1")
        assert "not a finished set of codes" in live.problem
        (served.codes / "latest.json").unlink()
        await live.take_latest_codes()
        assert live.problem == ""

    assert run(steps) == 1


POINTERS = ["[]", "", "{", "null", '{"codes": 1}', '{"codes": ""}', "[" * 100_000]
POINTERS += [f'{{"codes": "{name}"}}' for name in ("..", "../b2/n1", "/etc", "a/b", r"a\\b", "s3://other/codes")]


@pytest.mark.parametrize("text", POINTERS, ids=lambda text: text[:20])
def test_a_pointer_names_a_folder_beside_it(served: Served, text: str):
    served.point_to("n1")
    (served.codes / "latest.json").write_text(text)
    with pytest.raises(StorageError, match=r"latest\.json: damaged; run `llm4msr refresh` again"):
        latest_codes(str(served.bundle))


@pytest.mark.parametrize("spoil", ["pointer", "codes", "absent"])
def test_what_cannot_be_loaded_leaves_the_old_one_in_service(served: Served, spoil: str):
    async def steps(live: LiveModel) -> None:
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

    assert run(steps) == 2


def test_a_problem_ends_with_its_cause(served: Served):
    gone = str(served.bundle) + "-gone"

    async def steps(live: LiveModel) -> None:
        served.refresh("n1", "u1")
        await live.load(str(served.bundle))
        first = live.ranker
        served.point_to("n2")
        await live.take_latest_codes()
        assert live.problem
        served.point_to("n1")  # back to those in service
        await live.take_latest_codes()
        assert (live.problem, live.ranker) == ("", first)
        await live.load(gone)
        assert live.problem
        await live.load(str(served.bundle))  # back to the one in service
        assert (live.problem, live.ranker) == ("", first)
        await live.load(gone)
        served.another("b1-gone")  # the wanted one is there at last
        await live.take_latest_codes()
        assert (live.problem, *versions(live)) == ("", "b1-gone", "b1-gone")

    assert run(steps) == 3


def test_the_bundle_in_service_is_not_loaded_again(served: Served):
    async def steps(live: LiveModel) -> None:
        assert await live.load(str(served.bundle))
        first = live.ranker
        shutil.rmtree(served.bundle)  # so that it could not be
        assert not await live.load(str(served.bundle))
        assert (live.problem, live.ranker) == ("", first)

    assert run(steps) == 0


class SlowBackbone:
    """A backbone on the import path that is built once the file `hold` is gone, and does what `raise` says."""

    SOURCE = """
import os, time
from pathlib import Path
from llm4msr.model import backbones

class Backbone(backbones.find("single")):
    def __init__(self, width, scenarios, config):
        hold = Path(os.environ["LLM4MSR_TEST_HOLD"])
        while hold.exists():
            time.sleep(0.01)
        if hold.with_name("raise").exists():
            exec(hold.with_name("raise").read_text())
        super().__init__(width, scenarios, config)
"""

    def __init__(self, root: Path):
        self.hold, self.error = root / "hold", root / "raise"
        (root / "backbone_of_a_test.py").write_text(self.SOURCE)


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowBackbone]:
    made = SlowBackbone(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("LLM4MSR_TEST_HOLD", str(made.hold))
    yield made
    made.hold.unlink(missing_ok=True)


OWN = {"backbone": "backbone_of_a_test:Backbone"}


def test_of_two_loads_the_later_one_counts_in_whatever_order_they_end(world: World, slow: SlowBackbone, tmp_path: Path):
    made = Served(world, tmp_path, **OWN)
    plain = Served(world, tmp_path / "plain")

    async def steps(live: LiveModel) -> None:
        await live.load(str(plain.bundle))
        second, third = plain.another("b2"), plain.another("b3")
        slow.hold.touch()
        late = asyncio.create_task(live.load(str(made.bundle)))
        again = asyncio.create_task(live.load(str(made.bundle)))
        await asyncio.sleep(0.1)
        await live.load(str(second))
        slow.hold.unlink()
        await asyncio.gather(late, again)
        await asyncio.sleep(0.2)  # its thread has ended by now
        assert versions(live)[0] == "b2"
        await asyncio.gather(live.load(str(made.bundle)), live.load(str(third)))
        assert versions(live)[0] == "b3"
        assert live.problem == ""

    assert run(steps) == 0


ERRORS = {
    "raise ValueError('no such thing')": "ValueError: no such thing",
    "import no_such_module": "ModuleNotFoundError: No module named 'no_such_module'",
    "raise MemoryError": "MemoryError",
    "raise OSError(28, 'No space left on device')": "No space left on device",
    "raise SystemExit(3)": "SystemExit: 3",
    "raise KeyboardInterrupt": "KeyboardInterrupt",
    "raise __import__('asyncio').CancelledError": "CancelledError",
    "raise type('PanicException', (BaseException,), {})('rust')": "PanicException: rust",
}


@pytest.mark.parametrize("error", ERRORS)
def test_a_backbone_may_raise_anything(world: World, slow: SlowBackbone, served: Served, tmp_path: Path, error: str):
    own = Served(world, tmp_path / "own", **OWN)
    slow.error.write_text(error)

    async def steps(live: LiveModel) -> None:
        await live.load(str(served.bundle))
        await live.load(str(own.bundle))
        assert versions(live)[0] == "b1"
        assert live.problem.startswith("StorageError: ")
        assert str(own.bundle) in live.problem
        assert ERRORS[error] in live.problem

    assert run(steps) == 1
    with pytest.raises(StorageError, match="cannot be loaded"):
        asyncio.run(LiveModel(lambda: None, [OWN["backbone"]]).load(str(own.bundle)))


def test_a_python_user_is_told_in_one_error_too(world: World, slow: SlowBackbone, tmp_path: Path):
    own = Served(world, tmp_path, **OWN)
    slow.error.write_text("raise ZeroDivisionError('by zero')")
    with pytest.raises(StorageError, match=r"export/b1: cannot be loaded \(ZeroDivisionError: by zero\)"):
        Ranker.load(str(own.bundle), allow_backbones=[OWN["backbone"]])


def test_a_backbone_that_the_operator_does_not_allow_is_refused_before_anything_of_it_is_imported(
    world: World, slow: SlowBackbone, served: Served, tmp_path: Path
):
    own = Served(world, tmp_path / "own", **OWN)
    sys.modules.pop("backbone_of_a_test")
    allowed = ["backbone_of_a_test", "backbone_of_a_test:Backbon", "backbone_of_a_test:BackboneX", "Backbone"]

    async def steps() -> str:
        live = LiveModel(lambda: None, allowed)
        await live.load(str(served.bundle))
        await live.load(str(own.bundle))
        assert versions(live)[0] == "b1"
        return live.problem

    said = r"export/b1: its backbone 'backbone_of_a_test:Backbone' is code .* name it in serve\.allow_backbones"
    assert re.search(said, asyncio.run(steps()))
    with pytest.raises(ConfigError, match=said):
        Ranker.load(str(own.bundle))
    assert "backbone_of_a_test" not in sys.modules
    assert Ranker.load(str(own.bundle), allow_backbones=[OWN["backbone"]]).info().backbone == OWN["backbone"]


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
