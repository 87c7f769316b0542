"""What a request meets before the model: the token, limits and errors, on a real server; and the client's retries."""

import asyncio
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import HTTPException, Request
from fastapi.responses import Response
from pydantic import ValidationError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llm4msr.bundle.messages import RankBatchRequest, RankRequest, RankResponse, Unknown
from llm4msr.config import ServeConfig
from llm4msr.errors import ConfigError
from llm4msr.serve import api_token
from llm4msr.serve.client import RankClient
from llm4msr.serve.strict_json import MAX_LISTS, StrictRequest
from llm4msr.serve.web_app import RequestId, web_app
from llm4msr.text import MAX_ID
from tests.support.experiments import free_port

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
        self.retry_after, self.slow_s, self.ids = "0", 0.0, list[str]()
        app = web_app(ServeConfig(max_body_bytes=2_000, timeout_s=0.5, allowed_hosts=("Shop", "*.svc.cluster.local")))

        @app.post("/v1/rank")
        async def rank(body: RankRequest, x_request_id: RequestId = "") -> Response:
            self.asked += 1
            self.ids.append(x_request_id)
            await asyncio.sleep(self.slow_s)
            if self.refusals:
                told = {"retry-after": self.retry_after, "cache-control": "max-age=9"}
                return Response("later", self.refusals.pop(0), headers=told)
            return Response(ANSWER.model_dump_json(), media_type="application/json")

        @app.post("/v1/rank:batch")
        async def rank_batch(body: RankBatchRequest) -> int:
            return len(body.requests)

        @app.get("/fails")
        async def fails() -> None:
            raise ZeroDivisionError

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
    monkeypatch.delenv(api_token.VARIABLE, raising=False)
    made = Server(request.param)
    yield made
    made.server.should_exit = True


def test_without_the_token_nothing_is_ranked(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(api_token.VARIABLE, "secret")
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


def test_a_token_is_bytes_without_the_line_end_of_its_file(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.refusals = []
    for token, given in ((b"abc\n", b"Bearer abc"), ("ü".encode(), "Bearer ü".encode()), (b"\xff", b"Bearer \xff")):
        monkeypatch.setitem(os.environb, api_token.VARIABLE.encode(), token)
        for header, status in ((given, 200), (given + b"x", 401), (b"Bearer", 401)):
            headers = {b"authorization": header, b"content-type": b"application/json"}
            answer = httpx.post(f"{server.address}/v1/rank", content=ASKED.model_dump_json(), headers=headers)
            assert answer.status_code == status


def test_a_node_without_the_token_of_the_others_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(api_token.VARIABLE, raising=False)
    api_token.check_node(False)
    with pytest.raises(ConfigError, match="LLM4MSR_API_TOKEN is set where this was started but not on this node"):
        api_token.check_node(True)
    monkeypatch.setenv(api_token.VARIABLE, " \n")
    with pytest.raises(ConfigError, match="set but blank"):
        api_token.check_node(False)
    monkeypatch.setenv(api_token.VARIABLE, "x")
    api_token.check_node(True)


LOCAL = [
    "localhost",
    "LOCALHOST:1",
    "localhost.",
    "127.0.0.1:8000",
    "127.9.9.9",
    "[::1]",
    "[::1]:80",
    "a.b.localhost:9",
]
ALLOWED = ["shop", "Shop:80", "a.svc.cluster.local", "a.b.svc.cluster.local:8000"]
FOREIGN = ["", "evil.example", "evil.example:8000", "localhost.evil.example", "evillocalhost", "127.0.0.1.evil.example"]
FOREIGN += [
    "10.0.0.7:8000",
    "[::2]",
    "[::ffff:1.2.3.4]",
    "localhost:80:80",
    "a@localhost",
    "localhost/x",
    "svc.cluster.local",
]
FOREIGN += ["shop.evil.example", "127.0.0.1 evil.example", "\xe9", "[localhost]", "*", "*.localhost.x", "localhost\tx"]


@pytest.mark.parametrize("host", [*LOCAL, *ALLOWED, *FOREIGN])
def test_without_a_token_only_local_and_allowed_names_are_answered(
    server: Server, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    headers = {b"host": host.encode("latin-1")}
    expected = 403 if host in FOREIGN else 200
    for path in ("docs", "openapi.json"):
        answer = httpx.get(f"{server.address}/{path}", headers=headers)
        assert answer.status_code == expected
        if expected == 403:
            assert "serve.allowed_hosts" in answer.json()["detail"]
    rank = httpx.post(f"{server.address}/v1/rank", content=b"{}", headers=headers | {b"content-type": b"text/json"})
    assert rank.status_code == (403 if host in FOREIGN else 422)
    assert httpx.get(f"{server.address}/healthz", headers=headers).status_code == 200
    monkeypatch.setenv(api_token.VARIABLE, "secret")
    assert httpx.get(f"{server.address}/docs", headers=headers).status_code == 200
    assert server.asked == 0


def test_one_host_is_named_and_no_more(server: Server) -> None:
    for hosts in (b"", b"host: localhost\r\nhost: evil.example\r\n", b"host: localhost\r\nhost: localhost\r\n"):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
            raw.sendall(b"GET /openapi.json HTTP/1.0\r\n" + hosts + b"\r\n")
            assert raw.recv(4096).split(b" ")[1] in (b"400", b"403")


def test_every_answer_is_neither_guessed_at_nor_kept(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    post, json_type = f"{server.address}/v1/rank", {"content-type": "application/json"}
    answers = [httpx.post(post, content=ASKED.model_dump_json(), headers=json_type) for _ in range(3)]
    answers += [httpx.post(post, content=b"{", headers=json_type), httpx.post(post, content=b"x" * 9_000)]
    answers += [httpx.get(f"{server.address}/{path}") for path in ("healthz", "docs", "nowhere", "v1/rank", "fails")]
    answers += [httpx.get(f"{server.address}/docs", headers={"host": "evil.example"})]
    monkeypatch.setenv(api_token.VARIABLE, "secret")
    answers += [httpx.post(post, content=ASKED.model_dump_json())]
    assert [a.status_code for a in answers] == [429, 503, 200, 422, 413, 200, 200, 404, 405, 500, 403, 401]
    for answer in answers:
        assert answer.headers.get_list("x-content-type-options") == ["nosniff"]
        assert answer.headers.get_list("cache-control") == ["no-store"]


IDS = {b"plain-1": 200, "é漢".encode(): 200, b"x" * 128: 200, b"x" * 129: 422, b"\xe9": 422, b"a\xffb": 422}
IDS |= {("漢" * 128).encode(): 200, ("é" * 129).encode(): 422}
IDS |= {b"a\x1b[31m": 400, "a\u202eb".encode(): 422, "a\u2028b".encode(): 422, b"a\tb": 422}


@pytest.mark.parametrize("given", IDS, ids=lambda given: repr(given[:9]))
def test_request_ids_are_readable_text(server: Server, given: bytes) -> None:
    server.refusals = []
    headers = {b"content-type": b"application/json", b"x-request-id": given}
    answer = httpx.post(f"{server.address}/v1/rank", content=ASKED.model_dump_json(), headers=headers)
    assert answer.status_code == IDS[given]
    assert server.ids == ([given.decode()] if answer.status_code == 200 else [])


NO_REQUESTS = {
    "broken": b"{",
    "empty": b"",
    "a bare NaN": b"NaN",
    "deep lists": b"[" * 2_000,
    "deep objects": b'{"a":' * 400,
    "deep context": b'{"user_id":"u","scenario":"s","items":["a"],"context":' + b'{"a":' * 200 + b"1" + b"}" * 201,
    "key twice": b'{"user_id":"a","user_id":"b","scenario":"s","items":["a"]}',
    "key twice below": b'{"user_id":"a","scenario":"s","items":["a"],"context":{"c":"1","c":"2"}}',
    "NaN": b'{"user_id":"u","scenario":"s","items":["a"],"top_k":NaN}',
    "infinite": b'{"user_id":"u","scenario":"s","items":["a"],"top_k":1e999}',
    "huge": b'{"user_id":"u","scenario":"s","items":["a"],"top_k":-' + b"9" * 1_900 + b"}",
    "surrogate": b'{"user_id":"\\ud800","scenario":"s","items":["a"]}',
    "surrogate key": b'{"\\ud800":1,"\\ud800":2}',
    "latin-1": '{"user_id":"é","scenario":"s","items":["a"]}'.encode("latin-1"),
    "UTF-16": '{"user_id":"u","scenario":"s","items":["a"]}'.encode("utf-16"),
    "UTF-32": '{"user_id":"u","scenario":"s","items":["a"]}'.encode("utf-32"),
    "overlong": b'{"user_id":"\xc0\xaf","scenario":"s","items":["a"]}',
    "true is no number": b'{"user_id":"u","scenario":"s","items":["a"],"top_k":true}',
    "a text is no number": b'{"user_id":"u","scenario":"s","items":["a"],"top_k":"3"}',
    "a list": b"[1,2]",
    "text": b'"text"',
}


@pytest.mark.parametrize("body", NO_REQUESTS.values(), ids=NO_REQUESTS)
def test_what_is_no_request_is_refused(server: Server, body: bytes) -> None:
    for path in ("v1/rank", "v1/rank:batch"):
        answer = httpx.post(f"{server.address}/{path}", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 422
        assert len(answer.content) < 3_000
    assert server.asked == 0


def test_a_body_that_is_not_said_to_be_json_or_is_compressed_is_told_how_to_be_sent(server: Server) -> None:
    server.refusals = []
    for name, value, told in (
        ("content-type", "application/x-www-form-urlencoded", "send it with content-type: application/json"),
        ("content-type", "text/plain", "send it with content-type: application/json"),
        ("content-encoding", "gzip", "content-encoding: gzip is not read here; send the body as it is"),
    ):
        headers = {"content-type": "application/json"} | {name: value}
        answer = httpx.post(f"{server.address}/v1/rank", content=ASKED.model_dump_json(), headers=headers)
        assert answer.status_code == 422
        assert told in answer.json()["detail"]
    headers = {"content-type": "application/json", "content-encoding": "identity"}
    assert httpx.post(f"{server.address}/v1/rank", content=ASKED.model_dump_json(), headers=headers).status_code == 200


def body_with(items: list[Any]) -> Request:
    body = json.dumps({"user_id": "u", "scenario": "s", "items": items}).encode()

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return StrictRequest({"type": "http", "headers": []}, receive)


def test_lists_are_counted_before_they_are_made_and_brackets_in_texts_are_none() -> None:
    for items in ([[]] * MAX_LISTS, [[[[[]]]]] * MAX_LISTS, ["[", '"', "\\", *[[]] * MAX_LISTS]):
        with pytest.raises(HTTPException, match="more than 2000 lists"):
            asyncio.run(body_with(items).json())
    for item in ("[" * MAX_LISTS, '"[\\"[' * MAX_LISTS, "\\"):
        assert asyncio.run(body_with([item, "["]).json())["items"] == [item, "["]
    assert len(asyncio.run(body_with([[]] * (MAX_LISTS - 1)).json())["items"]) == MAX_LISTS - 1


MANY = 200_000
GOOD = {"user_id": "u", "scenario": "s", "items": ["a"]}
WRONG = {
    "items": GOOD | {"items": [0] * MANY},
    "long items": GOOD | {"items": ["x" * (MAX_ID + 1)] * 300},
    "too many items": GOOD | {"items": ["a"] * MANY},
    "fields": GOOD | {str(i): i for i in range(MANY)},
    "context": GOOD | {"context": {str(i): i for i in range(MANY)}},
    "context of lists": GOOD | {"context": {str(i): [] for i in range(60)}},
    "all at once": {"user_id": 1, "scenario": 2, "items": [3] * 9, "context": {"a": 1}, "top_k": "x"},
    "nothing": {},
}


@pytest.mark.parametrize("body", WRONG.values(), ids=WRONG)
def test_a_message_is_not_wrong_in_more_than_ten_ways(body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as one:
        RankRequest.model_validate(body)
    assert one.value.error_count() <= 10
    for requests in ([body] * 256, [GOOD, body] * 100, [None] * MANY, [GOOD] * 257):
        with pytest.raises(ValidationError) as batch:
            RankBatchRequest.model_validate({"requests": requests})
        assert batch.value.error_count() <= 10


def test_the_context_that_is_wrong_is_named() -> None:
    for context, told in (
        ({"a": "b", "c\x1b": 1}, "'c�'"),
        ({str(i): "" for i in range(65)}, "65 fields, allowed are 64"),
    ):
        with pytest.raises(ValidationError, match=told):
            RankRequest.model_validate(GOOD | {"context": context})
    for context in ({"a": "x" * (MAX_ID + 1)}, {"x" * (MAX_ID + 1): "a"}, {1: "a"}):
        with pytest.raises(ValidationError, match="texts of up to 8192 characters"):
            RankRequest.model_validate(GOOD | {"context": context})
    longest = "x" * MAX_ID
    assert RankRequest.model_validate({"user_id": longest, "scenario": longest, "items": [longest]}).user_id == longest


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
        half.sendall(b"POST /v1/rank HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{")
        assert half.recv(4096).startswith(b"HTTP/1.1 408 ")
    assert server.asked == 0


def test_an_error_names_the_place_and_repeats_nothing_that_was_sent(server: Server) -> None:
    body = {"user_id": ["u"], "scenario": {"deep": 1}, "items": list(range(50)), "<script>" * 20: float("nan")}
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{server.address}/v1/rank", content=json.dumps(body), headers=headers)
    assert answer.status_code == 422
    told = answer.json()["detail"]
    assert [error["loc"][1] for error in told[:2]] == ["user_id", "scenario"]
    assert [error["loc"][1:] for error in told[2:]] == [["items", "0"], ["<script>" * 7 + "<script…"]]
    assert "uuu" not in answer.text
    assert len(answer.content) < 2_000


def test_the_client_asks_again_until_it_is_answered(server: Server) -> None:
    async def ask() -> RankResponse:
        async with RankClient(server.address) as client:
            return await client.rank(ASKED, "my-id")

    assert asyncio.run(ask()) == ANSWER
    assert server.asked == 3


def test_the_client_does_not_wait_longer_than_a_call_may_take(server: Server) -> None:
    async def ask(**limits: Any) -> None:
        async with RankClient(server.address, **limits) as client:
            await client.rank(ASKED, "é")

    for server.retry_after in ("86400", "Fri, 01 Jan 2100 00:00:00 GMT", "9" * 400):
        server.refusals, server.asked = [429], 0
        with pytest.raises(httpx.HTTPStatusError, match="429") as refused:
            asyncio.run(ask())
        assert (server.asked, refused.value.response.text) == (1, "later")
    server.refusals, server.retry_after = [429, 503], "nonsense"
    asyncio.run(ask())
    assert server.ids[-1] == "é"
    server.refusals, server.retry_after, server.asked = [503] * 9, "1", 0
    with pytest.raises(httpx.TimeoutException, match=r"within 1\.5 s, tries and waits together"):
        asyncio.run(ask(timeout_s=1.5))
    assert server.asked == 2
    server.refusals, server.slow_s = [], 30
    with pytest.raises(httpx.TransportError):
        asyncio.run(ask(timeout_s=0.2))


def test_the_client_gives_up_and_says_what_was_answered(server: Server) -> None:
    server.refusals = [503] * 9

    async def ask() -> None:
        async with RankClient(server.address, retries=2) as client:
            await client.rank(ASKED)

    with pytest.raises(httpx.HTTPStatusError, match="503"):
        asyncio.run(ask())
    assert server.asked == 3


def test_the_client_brings_the_token_of_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(api_token.VARIABLE, "secret")
    server.refusals = []

    async def ask(token: str | None) -> RankResponse:
        async with RankClient(server.address, token=token) as client:
            return await client.rank(ASKED)

    assert asyncio.run(ask(None)) == ANSWER
    with pytest.raises(httpx.HTTPStatusError, match="401"):
        asyncio.run(ask("wrong"))
