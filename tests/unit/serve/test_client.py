"""The client's retries, on a real server."""

import asyncio
from typing import Any

import httpx
import pytest

from llm4msr.bundle.messages import EventsKept, NewEvent, RankResponse
from llm4msr.serve import api_token
from llm4msr.serve.client import RankClient
from tests.unit.serve.conftest import REQUEST, RESPONSE, Server


def rank(server: Server, request_id: str = "", **options: Any) -> RankResponse:
    async def rank_once() -> RankResponse:
        async with RankClient(server.address, **options) as client:
            return await client.rank(REQUEST, request_id)

    return asyncio.run(rank_once())


def test_the_client_asks_again_until_it_is_answered(server: Server) -> None:
    server.refusals = [429, 503]
    assert rank(server) == RESPONSE
    assert server.calls == 3


def test_the_client_tells_events_again_until_they_are_kept(server: Server) -> None:
    event = NewEvent(event_id="e", user_id="u", item_id="i", scenario="s", time=1_700_000_000.0)

    async def tell() -> EventsKept:
        async with RankClient(server.address) as client:
            return await client.events([event])

    server.refusals = [503]
    assert asyncio.run(tell()).accepted == 1
    assert server.told == [event]


def test_the_client_does_not_wait_longer_than_a_call_may_take(server: Server) -> None:
    for server.retry_after in ("86400", "Fri, 01 Jan 2100 00:00:00 GMT", "9" * 400):
        server.refusals, server.calls = [429], 0
        with pytest.raises(httpx.HTTPStatusError, match="429") as refused:
            rank(server)
        assert (server.calls, refused.value.response.json()) == (1, {"detail": "later"})
    server.refusals, server.retry_after = [429, 503], "nonsense"
    rank(server, "é")
    assert server.ids[-1] == "é"
    server.refusals, server.retry_after, server.calls = [503] * 9, "2", 0
    with pytest.raises(httpx.TimeoutException, match=r"within 3\.5 s, tries and waits together"):
        rank(server, timeout_s=3.5)
    assert server.calls == 2
    server.refusals, server.slow_s = [], 30
    with pytest.raises(httpx.TransportError):
        rank(server, timeout_s=0.2)


def test_the_client_gives_up_and_says_what_was_answered(server: Server) -> None:
    server.refusals = [503] * 9
    with pytest.raises(httpx.HTTPStatusError, match="503"):
        rank(server, retries=2)
    assert server.calls == 3


def test_the_client_brings_the_token_of_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(api_token.VARIABLE, "secret")
    assert rank(server) == RESPONSE
    with pytest.raises(httpx.HTTPStatusError, match="401"):
        rank(server, token="wrong")
