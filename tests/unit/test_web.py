"""What a request meets before the model: the token, limits and errors, on a real server; and the client's retries."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator

import httpx
import pytest
import uvicorn
from fastapi.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from llm4msr.api import TOKEN, RankRequest, RankResponse, Unknown
from llm4msr.client import RankClient
from llm4msr.config import ServeConfig
from llm4msr.web import web_app
from tests.helpers import free_port

ASKED = RankRequest(user_id="u", scenario="s", items=["a", "b"])
ANSWER = RankResponse(
    model_version="m",
    knowledge_version="k",
    request_id="",
    scenario="s",
    ranked=[],
    unknown=Unknown(user=False, scenario=False, items=[]),
    knowledge="none",
)


class Server:
    """A small application behind `web_app`, on a port of its own."""

    def __init__(self, prefix: str = "") -> None:
        self.asked = 0
        self.refusals = [429, 503]
        """Statuses of the first answers to /v1/rank."""
        app = web_app(ServeConfig(max_body_bytes=2_000, timeout_s=0.5))

        @app.post("/v1/rank")
        async def rank(body: RankRequest) -> Response:
            self.asked += 1
            if self.refusals:
                return Response(status_code=self.refusals.pop(0), headers={"retry-after": "0"})
            return Response(ANSWER.model_dump_json(), media_type="application/json")

        @app.get("/healthz")
        async def healthz() -> dict[str, str]:
            return {"status": "ok"}

        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}{prefix}"
        self.server = uvicorn.Server(uvicorn.Config(_below(prefix, app), port=self.port, log_level="error"))
        threading.Thread(target=self.server.run, daemon=True).start()
        while not self.server.started:
            time.sleep(0.01)


def _below(prefix: str, app: ASGIApp) -> ASGIApp:
    """As Ray Serve calls an application that has a route prefix: the path is whole, the prefix is the root path."""

    async def called(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "root_path": prefix} if scope["type"] == "http" else scope, receive, send)

    return called


@pytest.fixture(params=["", "/ranker"])
def server(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Server]:
    monkeypatch.delenv(TOKEN, raising=False)
    made = Server(request.param)
    yield made
    made.server.should_exit = True


def test_without_the_token_nothing_is_ranked(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN, "secret")
    server.refusals = []
    for header in (
        {},
        {"authorization": "Bearer secreT"},
        {"authorization": "secret"},
        {"authorization": b"Bearer \xff"},
    ):
        answer = httpx.post(f"{server.address}/v1/rank", content=ASKED.model_dump_json(), headers=header)
        assert (answer.status_code, answer.json()) == (401, {"detail": "wrong or missing token"})
    assert server.asked == 0
    assert httpx.get(f"{server.address}/healthz").status_code == 200
    given = {"authorization": "Bearer secret", "content-type": "application/json"}
    assert httpx.post(f"{server.address}/v1/rank", content=ASKED.model_dump_json(), headers=given).status_code == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_is_read_up_to_its_limit(server: Server, chunked: bool) -> None:
    server.refusals = []
    fits = json.dumps(ASKED.model_dump() | {"top_k": None}).encode()
    for body, status in ((fits.ljust(2_000), 200), (fits.ljust(2_001), 413), (b"x" * 200_000, 413)):
        content = (body[i : i + 700] for i in range(0, len(body), 700)) if chunked else body
        headers = {"content-type": "application/json"}
        answer = httpx.post(f"{server.address}/v1/rank", content=content, headers=headers)
        assert answer.status_code == status


def test_half_a_body_is_told_in_time(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as half:
        half.sendall(b"POST /v1/rank HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        assert half.recv(4096).startswith(b"HTTP/1.1 408 ")
    assert server.asked == 0


def test_an_error_names_the_place_and_repeats_nothing_that_was_sent(server: Server) -> None:
    body = {"user_id": ["u"], "scenario": {"deep": 1}, "items": list(range(50)), "<script>" * 20: float("nan")}
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{server.address}/v1/rank", content=json.dumps(body), headers=headers)
    assert answer.status_code == 422
    told = answer.json()["detail"]
    assert [error["loc"][1] for error in told[:2]] == ["user_id", "scenario"]
    assert len(told) == 10
    assert "uuu" not in answer.text
    assert len(answer.content) < 2_000


def test_the_client_asks_again_until_it_is_answered(server: Server) -> None:
    async def ask() -> RankResponse:
        async with RankClient(server.address) as client:
            return await client.rank(ASKED, "my-id")

    assert asyncio.run(ask()) == ANSWER
    assert server.asked == 3


def test_the_client_gives_up_and_says_what_was_answered(server: Server) -> None:
    server.refusals = [503] * 9

    async def ask() -> None:
        async with RankClient(server.address, retries=2) as client:
            await client.rank(ASKED)

    with pytest.raises(httpx.HTTPStatusError, match="503"):
        asyncio.run(ask())
    assert server.asked == 3


def test_the_client_brings_the_token_of_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN, "secret")
    server.refusals = []

    async def ask(token: str | None) -> RankResponse:
        async with RankClient(server.address, token=token) as client:
            return await client.rank(ASKED)

    assert asyncio.run(ask(None)) == ANSWER
    with pytest.raises(httpx.HTTPStatusError, match="401"):
        asyncio.run(ask("wrong"))
