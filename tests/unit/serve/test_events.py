"""What a replica makes of the log of events, with a real log and model in this process."""

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llm4msr.bundle.messages import NewEvent
from llm4msr.config import ServeConfig
from llm4msr.serve.event_log import EventLog, LoggedCode
from llm4msr.serve.events import Events
from llm4msr.serve.live_model import LiveModel
from llm4msr.serve.metrics import ServeMetrics
from tests.support.matching import publish_matching

EVENT = {"event_id": "e", "user_id": "u", "item_id": "i7", "scenario": "home", "time": 1.7e9}


class Method:
    """As Ray Serve calls a method of another deployment."""

    def __init__(self, call: Callable[..., Any]):
        self.call = call

    async def remote(self, *arguments: Any) -> Any:
        return self.call(*arguments)


class Handle:
    """As Ray Serve's handle of the log's deployment."""

    def __init__(self, log: EventLog):
        self.since, self.append, self.forget = map(Method, (log.since, log.append, log.forget))


class Delays(ServeMetrics):
    """Keeps what Prometheus would be told of delays."""

    def kept(self, version: str, accepted: int, duplicates: int) -> None:
        pass

    def __init__(self) -> None:
        self.all: list[float] = []
        self.codes: list[float] = []

    def seen(self, version: str, delays: Sequence[float], dropped: int, of_codes: Sequence[float] = ()) -> None:
        self.all += delays
        self.codes += of_codes


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


def test_what_is_read_again_since_somebody_was_forgotten_is_not_measured(tmp_path: Path) -> None:
    bundle = str(publish_matching(tmp_path / "bundle", pooled=True, knowledge="both").output.folder)
    log, metrics, live = EventLog(str(tmp_path / "log"), days=7, most=1_000), Delays(), LiveModel(lambda _: None)

    async def follow() -> None:
        await live.load(bundle)
        events = Events(Handle(log), ServeConfig(), live, metrics)
        now = time.time()
        log.append([("a", "early", "i7", "home", True, now - 3_600)], now - 3_600)
        await events.start()
        assert [one.item_id for one in events.of("early")] == ["i7"]
        log.append([("b", "gone", "i7", "home", True, now)], time.time())
        await until(lambda: events.of("gone"))
        assert (await events.forget(["gone"])).deleted == 1
        await until(lambda: not events.of("gone"))
        await until(lambda: events.of("early"))
        log.append([("c", "late", "i7", "home", True, now)], time.time())
        await until(lambda: events.of("late"))

    asyncio.run(follow())
    assert len(metrics.all) == 2
    assert max(metrics.all) < 60


def test_a_replica_ranks_by_the_codes_of_the_log_that_its_model_can_use(tmp_path: Path) -> None:
    bundle = str(publish_matching(tmp_path / "bundle", match=(), knowledge="user").output.folder)
    log, metrics, live = EventLog(str(tmp_path / "log"), days=7, most=1_000), Delays(), LiveModel(lambda _: None)

    def put(user: str, coder: str) -> None:
        log.append([(user, user, "i7", "home", True, time.time())], time.time())
        (event,) = log.of(user, 1)
        log.put_codes(
            [LoggedCode(0, user, event.sequence, event.arrived, "r", coder, np.ones(4, np.float16).tobytes())]
        )

    async def follow() -> None:
        await live.load(bundle)
        events = Events(Handle(log), ServeConfig(nearline=True), live, metrics)
        coder = live.ranker.knowledge.coder
        put("early", coder)
        await events.start()
        assert events.code_of("early", coder) is not None
        put("others", "another coder")
        put("late", coder)
        await until(lambda: events.code_of("late", coder) is not None)
        assert events.code_of("others", coder) is None
        assert events.code_of("nobody", coder) is None
        assert (await events.keep([NewEvent(**EVENT)])).used
        await events.forget(["late"])
        await until(lambda: events.code_of("late", coder) is None)
        await until(lambda: events.code_of("early", coder) is not None)

    asyncio.run(follow())
    assert len(metrics.codes) == 2
