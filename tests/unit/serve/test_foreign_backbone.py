"""A backbone of somebody else's in a bundle: it may be slow, raise anything, or not be allowed."""

import asyncio
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm4msr import Ranker
from llm4msr.errors import ConfigError, StorageError
from llm4msr.serve.live_model import LiveModel
from tests.unit.conftest import World
from tests.unit.serve.conftest import Served, count_refusals, versions

BACKBONE = "backbone_of_a_test:Backbone"


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
    backbone = SlowBackbone(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("LLM4MSR_TEST_HOLD", str(backbone.hold))
    yield backbone
    backbone.hold.unlink(missing_ok=True)


def test_of_two_loads_the_later_one_counts_in_whatever_order_they_end(world: World, slow: SlowBackbone, tmp_path: Path):
    foreign = Served(world, tmp_path, backbone=BACKBONE)
    plain = Served(world, tmp_path / "plain")

    async def steps(live: LiveModel) -> None:
        await live.load(str(plain.bundle))
        second, third = plain.copy("b2"), plain.copy("b3")
        slow.hold.touch()
        late = asyncio.create_task(live.load(str(foreign.bundle)))
        again = asyncio.create_task(live.load(str(foreign.bundle)))
        await asyncio.sleep(0.1)
        await live.load(str(second))
        slow.hold.unlink()
        await asyncio.gather(late, again)
        await asyncio.sleep(0.2)  # its thread has ended by now
        assert versions(live)[0] == "b2"
        await asyncio.gather(live.load(str(foreign.bundle)), live.load(str(third)))
        assert versions(live)[0] == "b3"
        assert live.problem == ""

    assert count_refusals(steps, [BACKBONE]) == 0


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
    foreign = Served(world, tmp_path / "foreign", backbone=BACKBONE)
    slow.error.write_text(error)

    async def steps(live: LiveModel) -> None:
        await live.load(str(served.bundle))
        await live.load(str(foreign.bundle))
        assert versions(live)[0] == "b1"
        assert live.problem.startswith("StorageError: ")
        assert str(foreign.bundle) in live.problem
        assert ERRORS[error] in live.problem

    assert count_refusals(steps, [BACKBONE]) == 1
    with pytest.raises(StorageError, match="cannot be loaded"):
        asyncio.run(LiveModel(lambda _: None, [BACKBONE]).load(str(foreign.bundle)))


def test_a_python_user_is_told_in_one_error_too(world: World, slow: SlowBackbone, tmp_path: Path):
    foreign = Served(world, tmp_path, backbone=BACKBONE)
    slow.error.write_text("raise ZeroDivisionError('by zero')")
    with pytest.raises(StorageError, match=r"export/b1: cannot be loaded \(ZeroDivisionError: by zero\)"):
        Ranker.load(str(foreign.bundle), allow_backbones=[BACKBONE])


def test_a_backbone_that_the_operator_does_not_allow_is_refused_before_anything_of_it_is_imported(
    world: World, slow: SlowBackbone, served: Served, tmp_path: Path
):
    foreign = Served(world, tmp_path / "foreign", backbone=BACKBONE)
    sys.modules.pop("backbone_of_a_test")
    allowed = ["backbone_of_a_test", "backbone_of_a_test:Backbon", "backbone_of_a_test:BackboneX", "Backbone"]

    async def steps() -> str:
        live = LiveModel(lambda _: None, allowed)
        await live.load(str(served.bundle))
        await live.load(str(foreign.bundle))
        assert versions(live)[0] == "b1"
        return live.problem

    message = r"export/b1: its backbone 'backbone_of_a_test:Backbone' is code .* name it in serve\.allow_backbones"
    assert re.search(message, asyncio.run(steps()))
    with pytest.raises(ConfigError, match=message):
        Ranker.load(str(foreign.bundle))
    assert "backbone_of_a_test" not in sys.modules
    assert Ranker.load(str(foreign.bundle), allow_backbones=[BACKBONE]).info().backbone == BACKBONE
