"""What a replica does with several requests at once, without Ray."""

import asyncio
import gc
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from fastapi import HTTPException

from llm4msr.bundle.messages import RankRequest
from llm4msr.config import ServeConfig
from llm4msr.serve import api_token
from llm4msr.serve.event_log import EventLog, LoggedCode
from llm4msr.serve.replica import Replica
from tests.support.bundles import rank_request
from tests.support.matching import publish_matching
from tests.unit.serve.conftest import Served
from tests.unit.serve.test_events import Handle, until

REQUEST = RankRequest(user_id="new", scenario="home", items=["i1", "i2"])


@pytest.fixture
def replica(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Replica]:
    """One that keeps events; afterwards the process is as it was."""
    monkeypatch.delenv(api_token.VARIABLE, raising=False)
    threads = torch.get_num_threads()
    log = EventLog(str(tmp_path / "log"), days=7, most=1_000)
    log.append([("a", "new", "i7", "home", True, time.time())], time.time())
    yield Replica(ServeConfig(follow_s=0, max_candidates=4), False, Handle(log))
    torch.set_num_threads(threads)
    gc.unfreeze()


def test_a_request_that_waits_while_the_model_is_swapped_is_answered_by_the_old_one_alone(
    replica: Replica, served: Served, tmp_path: Path
) -> None:
    reads_events = publish_matching(tmp_path / "matching", pooled=True, knowledge="both").output

    async def steps() -> None:
        await replica.reconfigure({"bundle": str(reads_events.folder)})
        async with replica._turn:
            waits = asyncio.create_task(replica.respond([REQUEST], ""))
            await asyncio.sleep(0)
            old = weakref.ref(replica.live.ranker)
            await replica.reconfigure({"bundle": str(served.bundle)})
        (response,) = await waits
        assert (response.model_version, response.knowledge) == (reads_events.manifest.fingerprint, "events")
        (response,) = await replica.respond([rank_request()], "")
        assert response.model_version == "b1"
        async with asyncio.timeout(30):
            while old() is not None:  # the thread that has loaded the other one may have it for a moment
                gc.collect()
                await asyncio.sleep(0.01)

    asyncio.run(steps())


def test_a_code_that_was_made_since_is_used_by_the_model_that_it_was_made_for(
    replica: Replica, served: Served, tmp_path: Path
) -> None:
    old = publish_matching(tmp_path / "old", match=(), knowledge="user").output
    log = EventLog(str(tmp_path / "log"), days=7, most=9)
    (event,) = log.of("new", 1)

    async def steps() -> None:
        await replica.reconfigure({"bundle": str(old.folder)})
        coder, code = replica.live.ranker.knowledge.coder, np.ones(4, np.float16).tobytes()
        log.put_codes([LoggedCode(0, "new", event.sequence, event.arrived, "r", coder, code)])
        assert replica.events is not None
        events = replica.events
        await until(lambda: events.code_of("new", coder) is not None)
        async with replica._turn:
            waits = asyncio.create_task(replica.respond([REQUEST], ""))
            await asyncio.sleep(0)
            await replica.reconfigure({"bundle": str(served.bundle)})
        (response,) = await waits
        assert (response.model_version, response.knowledge) == (old.manifest.fingerprint, "events")
        (response,) = await replica.respond([REQUEST], "")
        assert (response.model_version, response.knowledge) == ("b1", "none")

    asyncio.run(steps())


def test_requests_are_ranked_in_turn_and_one_that_is_cancelled_or_refused_holds_up_no_other(
    replica: Replica, served: Served
) -> None:
    ranked: list[str] = []

    async def ask(name: str, items: int = 2) -> None:
        await replica.respond([REQUEST.model_copy(update={"items": ["i1"] * items})], name)
        ranked.append(name)

    async def steps() -> None:
        await replica.reconfigure({"bundle": str(served.bundle)})
        async with replica._turn:
            first, gone, second = (asyncio.create_task(ask(name)) for name in ("first", "gone", "second"))
            await asyncio.sleep(0)
            with pytest.raises(HTTPException, match="413"):
                await ask("too many", 5)
            gone.cancel()
        await asyncio.gather(first, second)
        assert gone.cancelled()
        last = asyncio.create_task(ask("last"))
        await asyncio.sleep(0)
        assert replica._turn.locked()
        last.cancel()
        await ask("after all")

    asyncio.run(steps())
    assert ranked == ["first", "second", "after all"]
