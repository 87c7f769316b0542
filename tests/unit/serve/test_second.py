"""A second bundle beside the first, in a replica without Ray."""

import asyncio
import gc
import hashlib
import shutil
import threading
import weakref
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest

from llm4msr.bundle.messages import RankRequest, RankResponse
from llm4msr.bundle.ranker import Ranker
from llm4msr.config import ServeConfig
from llm4msr.errors import ConfigError
from llm4msr.serve import live_model
from llm4msr.serve.live_model import LiveModel
from llm4msr.serve.metrics import ServeMetrics
from llm4msr.serve.replica import Replica
from llm4msr.serve.second import WAITING, Second, is_among
from tests.support.bundles import rank_request
from tests.unit.conftest import World
from tests.unit.serve.conftest import Served

BUNDLES = ("b1", "b2")
USERS = [f"u{number}" for number in range(40)]


@pytest.fixture
def other(world: World, tmp_path: Path) -> str:
    """The URI of a bundle `b2` whose scores are others."""
    served = Served(world, tmp_path / "other", knowledge="user")
    return str(served.copy("b2"))


pytestmark = pytest.mark.usefixtures("replica_process")


def run(steps: Callable[[Replica], Coroutine[Any, Any, None]], **config: Any) -> None:
    async def all_steps() -> None:
        await steps(Replica(ServeConfig.model_validate({"follow_s": 0} | config), False))

    asyncio.run(all_steps())


async def answers(replica: Replica, users: Sequence[str] = USERS, **changes: Any) -> list[RankResponse]:
    return await replica.respond([rank_request(user_id=user, **changes) for user in users], "")


async def versions(replica: Replica, users: Sequence[str] = USERS) -> list[str]:
    return [answer.model_version for answer in await answers(replica, users)]


def expected(share: float, salt: str = "") -> list[str]:
    return ["b2" if is_among(user, share, salt) else "b1" for user in USERS]


def test_who_is_among_a_share_follows_from_the_id_and_the_salt() -> None:
    many = [f"user-{number}" for number in range(20_000)]
    tenth, fifth = ([is_among(user, share, "") for user in many] for share in (0.1, 0.2))
    assert sum(tenth) == pytest.approx(2_000, abs=150)
    assert all(later for before, later in zip(tenth, fifth, strict=True) if before)
    salted = [is_among(user, 0.1, "spring") for user in many]
    assert sum(both for both in map(lambda one, two: one and two, tenth, salted)) == pytest.approx(200, abs=60)
    assert not any(is_among(user, 0.0, "") for user in many)
    assert all(is_among(user, 1.0, "") for user in many)
    hashed = int.from_bytes(hashlib.blake2b("spring\0é".encode(), digest_size=8).digest(), "big") / 2**64
    assert (is_among("é", hashed + 1e-9, "spring"), is_among("é", hashed - 1e-9, "spring")) == (True, False)


def test_each_user_is_ranked_by_one_of_two_bundles_alone_and_in_a_batch(served: Served, other: str) -> None:
    first, second = Ranker.load(str(served.bundle)), Ranker.load(other)

    async def steps(replica: Replica) -> None:
        await replica.reconfigure({"bundle": str(served.bundle)})
        together = await answers(replica)
        assert [answer.model_version for answer in together] == expected(0.5)
        assert set(expected(0.5)) == set(BUNDLES)
        for user, answer in zip(USERS, together, strict=True):
            alone = (await answers(replica, [user]))[0]
            ranker = {"b1": first, "b2": second}[answer.model_version]
            scores = [item.score for item in ranker.rank(rank_request(user_id=user)).ranked]
            assert [item.score for item in alone.ranked] == pytest.approx(scores, abs=1e-6)
            assert [item.score for item in answer.ranked] == pytest.approx(scores, abs=1e-6)
            assert alone.model_version == answer.model_version

    run(steps, second={"bundle": other, "share": 0.5})


def test_the_second_bundle_is_changed_and_taken_away_in_place(served: Served, other: str) -> None:
    async def steps(replica: Replica) -> None:
        one = {"bundle": str(served.bundle)}
        await replica.reconfigure(one)
        assert set(await versions(replica)) == {"b1"}
        assert replica.second.info() is None
        await replica.reconfigure(one | {"second": {"bundle": other, "share": 0.25, "salt": "a"}})
        assert await versions(replica) == expected(0.25, "a")
        await replica.reconfigure(one | {"second": {"bundle": other, "share": 1, "salt": "a"}})
        assert set(await versions(replica)) == {"b2"}
        told = replica.second.info()
        assert told is not None
        assert (told.model_version, told.share, told.shadow, told.salt) == ("b2", 1, False, "a")
        gone = weakref.ref(replica.second.ranker_for("u1"))
        await replica.reconfigure(one | {"second": {}})
        assert set(await versions(replica)) == {"b1"}
        async with asyncio.timeout(30):
            while gone() is not None:  # a thread may have it for a moment
                gc.collect()
                await asyncio.sleep(0.01)
        assert (replica.second.problem, replica.second.info()) == ("", None)

    run(steps)


def test_a_second_bundle_that_cannot_be_loaded_leaves_its_users_to_the_first(served: Served, other: str) -> None:
    hidden = Path(other).rename(Path(other).with_name("hidden"))

    async def steps(replica: Replica) -> None:
        await replica.reconfigure({"bundle": str(served.bundle)})
        assert set(await versions(replica)) == {"b1"}
        assert "second bundle: StorageError: " in replica.second.problem
        assert "not a finished bundle" in replica.second.problem
        told = replica.second.info()
        assert told is not None
        assert (told.model_version, told.knowledge_version) == ("", "")
        shutil.copytree(hidden, other)  # it is there at last
        async with asyncio.timeout(30):
            while replica.second.problem:
                await asyncio.sleep(0.01)
        assert await versions(replica) == expected(0.5)
        await replica.reconfigure({"bundle": str(served.bundle), "second": {"bundle": other + "-gone", "share": 0.5}})
        assert await versions(replica) == expected(0.5)
        assert "not a finished bundle" in replica.second.problem
        await replica.reconfigure({"bundle": str(served.bundle), "second": {}})

    run(steps, second={"bundle": other, "share": 0.5}, follow_s=0.02)


def test_a_second_bundle_that_hangs_does_not_hold_up_the_replica(
    served: Served, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm4msr.serve.replica.SECOND_S", 0.1)
    gate, load = threading.Event(), live_model._load

    def load_at_last(bundle: str, *others: Any) -> Any:
        if bundle == other:
            gate.wait(60)  # as for a store that does not answer
        return load(bundle, *others)

    monkeypatch.setattr(live_model, "_load", load_at_last)

    async def steps(replica: Replica) -> None:
        one = {"bundle": str(served.bundle)}
        await replica.reconfigure(one)
        await replica.reconfigure(one | {"second": {"bundle": other, "share": 1}})
        assert set(await versions(replica)) == {"b1"}
        assert replica.second.problem == f"second bundle: {other} is being loaded"
        gate.set()
        async with asyncio.timeout(30):
            while replica.second.problem:
                await asyncio.sleep(0.01)
        assert set(await versions(replica)) == {"b2"}

    run(steps)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"bundle": "OTHER", "share": 2}, "second.share: Input should be less than or equal to 1"),
        ({"bundle": "OTHER", "shair": 1}, "second.shair: Extra inputs are not permitted"),
        ({"bundle": "OTHER", "share": float("nan")}, "second.share: Input should be a finite number"),
        ({"salt": "x" * 201}, "second.salt: String should have at most 200 characters"),
        ("x" * 5000, "second.: Input should be a valid dictionary"),
        ([1], "second.: Input should be a valid dictionary"),
    ],
)
def test_wrong_keys_change_nothing_and_are_told(served: Served, other: str, wrong: Any, told: str) -> None:
    async def steps(replica: Replica) -> None:
        one = {"bundle": str(served.bundle)}
        await replica.reconfigure(one | {"second": wrong})  # Ray Serve would end a replica that raises here
        assert set(await versions(replica)) == {"b1"}
        assert told in replica.second.problem
        await replica.reconfigure(one | {"second": {"bundle": other, "share": 0.5}})
        assert replica.second.problem == ""
        await replica.reconfigure(one | {"second": wrong})
        assert await versions(replica) == expected(0.5)
        assert told in replica.second.problem
        assert len(replica.second.problem) < 1_100

    run(steps)


def test_context_fields_are_those_of_the_users_own_bundle(served: Served, other: str) -> None:
    async def steps(replica: Replica) -> None:
        await replica.reconfigure({"bundle": str(served.bundle)})
        firsts, seconds = ([user for user, one in zip(USERS, expected(0.5), strict=True) if one == b] for b in BUNDLES)
        replica.second.ranker_for(seconds[0])._context.clear()
        assert len(await answers(replica, firsts)) == len(firsts)
        with pytest.raises(ConfigError, match="context: unknown field 'device'"):
            await answers(replica, [*firsts, seconds[0]])
        assert await answers(replica, seconds, context={})

    run(steps, second={"bundle": other, "share": 0.5})


class Counts(ServeMetrics):
    """Keeps what Prometheus would be told of the shadow."""

    def __init__(self) -> None:
        self.differences: list[float] = []
        self.same_best, self.missed = 0, dict[str, int]()

    def shadowed(self, version: str, seconds: float, differences: Sequence[float], same_best: int) -> None:
        assert (version, seconds) == ("b2", 0.5)
        self.differences += differences
        self.same_best += same_best

    def not_shadowed(self, version: str, result: str, lists: int) -> None:
        assert version == "b2"
        self.missed[result] = self.missed.get(result, 0) + lists


def test_what_the_second_bundle_says_in_the_shadow_is_counted(served: Served, other: str) -> None:
    first, second = Ranker.load(str(served.bundle)), Ranker.load(other)
    requests = [rank_request(user_id=user, top_k=2) for user in USERS]
    responses = first.rank_many(requests, USERS)
    in_turn, broken = asyncio.Event(), list[str]()

    async def rank(ranker: Ranker, asked: Sequence[RankRequest]) -> tuple[list[RankResponse], float]:
        await in_turn.wait()
        if broken:
            raise ZeroDivisionError(broken.pop())
        return ranker.rank_many(asked, [""] * len(asked)), 0.5

    async def settle(asks: Second) -> None:
        while asks._comparing:
            await asyncio.sleep(0)

    async def steps() -> Counts:
        live, counts = LiveModel(lambda _: None), Counts()
        await live.load(str(served.bundle))
        asks = Second(live, counts, ServeConfig(follow_s=0))
        asks.compare(requests, responses, rank)
        await asks.configure({"bundle": other, "share": 0.5, "shadow": True})
        assert all(asks.ranker_for(user) is live.ranker for user in USERS)
        for _ in range(WAITING + 3):
            asks.compare(requests, responses, rank)
        in_turn.set()
        await settle(asks)
        theirs = expected(0.5).count("b2")
        assert counts.missed == {"dropped": 3 * theirs}
        assert len(counts.differences) == WAITING * theirs
        broken.append("a backbone of somebody else's")
        asks.compare(requests, responses, rank)
        await settle(asks)
        assert counts.missed["failed"] == theirs
        await asks.configure({"bundle": other, "share": 0.0, "shadow": True})
        asks.compare(requests, responses, rank)
        assert not asks._comparing
        return counts

    counts = asyncio.run(steps())
    same, differences = 0, []
    for request, answer, version in zip(requests, responses, expected(0.5), strict=True):
        if version == "b2":
            whole = second.rank(request.model_copy(update={"top_k": None})).ranked
            scores = {item.item_id: item.score for item in whole}
            differences.append(sum(abs(scores[item.item_id] - item.score) for item in answer.ranked) / 2)
            same += whole[0].item_id == answer.ranked[0].item_id
    assert counts.differences == pytest.approx(WAITING * differences, abs=1e-6)
    assert counts.same_best == WAITING * same
    assert 0 < same < len(differences)
    assert min(differences) > 0


def test_a_shadow_is_ranked_when_the_answer_is_out(served: Served, other: str) -> None:
    async def steps(replica: Replica) -> None:
        await replica.reconfigure({"bundle": str(served.bundle)})
        assert set(await versions(replica)) == {"b1"}
        (task,) = replica.second._comparing
        assert not task.done()
        await task
        assert not replica.second._comparing

    run(steps, second={"bundle": other, "share": 0.5, "shadow": True})
