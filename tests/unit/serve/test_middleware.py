"""What a request meets before any route: the token, the Host, limits of a body, and headers of each response."""

import os
import socket

import httpx
import pytest

from llm4msr.errors import ConfigError
from llm4msr.serve import api_token
from tests.unit.serve.conftest import BODY, Server


def test_without_the_token_nothing_is_ranked(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(api_token.VARIABLE, "secret")
    for headers in ({}, *({"authorization": value} for value in ("Bearer secreT", "secret", b"Bearer \xff"))):
        answer = server.post(**headers)
        assert (answer.status_code, answer.json()) == (401, {"detail": "wrong or missing token"})
    assert server.calls == 0
    assert httpx.get(f"{server.address}/healthz").status_code == 200
    assert server.post(authorization="Bearer secret").status_code == 200


def test_a_token_is_bytes_without_the_line_end_of_its_file(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for token, right in ((b"abc\n", b"Bearer abc"), ("ü".encode(), "Bearer ü".encode()), (b"\xff", b"Bearer \xff")):
        monkeypatch.setitem(os.environb, api_token.VARIABLE.encode(), token)
        for header, status in ((right, 200), (right + b"x", 401), (b"Bearer", 401)):
            assert server.post(authorization=header).status_code == status


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


LOCAL = ["localhost", "LOCALHOST:1", "localhost.", "127.0.0.1:8000", "127.9.9.9", "[::1]", "[::1]:80", "a.localhost:9"]
ALLOWED = ["shop", "Shop:80", "a.svc.cluster.local", "a.b.svc.cluster.local:8000"]
FOREIGN = ["", "evil.example", "evil.example:8000", "localhost.evil.example", "evillocalhost", "127.0.0.1.evil.example"]
FOREIGN += ["10.0.0.7:8000", "[::2]", "[::ffff:1.2.3.4]", "localhost:80:80", "a@localhost", "localhost/x"]
FOREIGN += ["svc.cluster.local", "shop.evil.example", "127.0.0.1 evil.example", "\xe9", "[localhost]", "*"]
FOREIGN += ["*.localhost.x", "localhost\tx"]


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
    rank = server.post(b"{}", host=host.encode("latin-1"), content_type="text/json")
    assert rank.status_code == (403 if host in FOREIGN else 422)
    assert httpx.get(f"{server.address}/healthz", headers=headers).status_code == 200
    monkeypatch.setenv(api_token.VARIABLE, "secret")
    assert httpx.get(f"{server.address}/docs", headers=headers).status_code == 200
    assert server.calls == 0


def test_one_host_is_named_and_no_more(server: Server) -> None:
    for hosts in (b"", b"host: localhost\r\nhost: evil.example\r\n", b"host: localhost\r\nhost: localhost\r\n"):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
            raw.sendall(b"GET /openapi.json HTTP/1.0\r\n" + hosts + b"\r\n")
            assert raw.recv(4096).split(b" ")[1] in (b"400", b"403")


def test_every_answer_is_neither_guessed_at_nor_kept(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.refusals = [429, 503]
    answers = [server.post() for _ in range(3)] + [server.post(b"{"), server.post(b"x" * 9_000)]
    answers += [httpx.get(f"{server.address}/{path}") for path in ("healthz", "docs", "nowhere", "v1/rank", "fails")]
    answers += [httpx.get(f"{server.address}/docs", headers={"host": "evil.example"})]
    monkeypatch.setenv(api_token.VARIABLE, "secret")
    answers += [server.post()]
    assert [a.status_code for a in answers] == [429, 503, 200, 422, 413, 200, 200, 404, 405, 500, 403, 401]
    for answer in answers:
        assert answer.headers.get_list("x-content-type-options") == ["nosniff"]
        assert answer.headers.get_list("cache-control") == ["no-store"]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_is_read_up_to_its_limit(server: Server, chunked: bool) -> None:
    for body, status in ((BODY.ljust(2_000), 200), (BODY.ljust(2_001), 413), (b"x" * 200_000, 413)):
        content = (body[i : i + 700] for i in range(0, len(body), 700)) if chunked else body
        assert server.post(content).status_code == status


def test_half_a_body_is_told_in_time(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as half:
        half.sendall(b"POST /v1/rank HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{")
        assert half.recv(4096).startswith(b"HTTP/1.1 408 ")
    assert server.calls == 0
