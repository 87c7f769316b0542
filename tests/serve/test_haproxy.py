"""The way in that production uses: `llm4msr serve` on a Ray of its own, behind HAProxy."""

import contextlib
import signal
import socket
import subprocess
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from llm4msr import Ranker, RankRequest
from tests.support.experiments import command_line, free_port, own_ray, wait_until
from tests.support.fixtures import Spine

LIMITS = {"max_candidates": 200, "max_ongoing_requests": 2, "max_queued_requests": 4, "timeout_s": 5}
BODY = {"user_id": "user-2", "scenario": "films", "items": [f"item-{i}" for i in range(20)]}


@pytest.fixture(scope="module")
def client(spine: Spine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """On ports of its own; at the end it does not wait for load balancers."""
    names = ("RAY_SERVE_HAPROXY_STATS_PORT", "RAY_SERVE_HAPROXY_METRICS_PORT")
    chosen = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0"}
    chosen |= {name: str(free_port()) for name in names}
    port, log = free_port(), tmp_path_factory.mktemp("haproxy") / "log"
    words = command_line("serve", str(spine.experiment), "--set", f"serve.port={port}")
    words += [word for key, value in LIMITS.items() for word in ("--set", f"serve.{key}={value}")]
    with log.open("w") as stderr:
        process = subprocess.Popen(words, env=own_ray() | chosen, stdout=subprocess.DEVNULL, stderr=stderr)
        try:
            wait_until(lambda: "end with Ctrl-C" in log.read_text(), process)
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as opened:
                wait_until(lambda: opened.get("/-/healthz").status_code == 200, process)
                yield opened
            process.send_signal(signal.SIGTERM)
            assert process.wait(120) == 143, log.read_text()
        finally:
            process.kill()


def ask(client: httpx.Client, headers: Any = None, **changes: Any) -> httpx.Response:
    return client.post("/v1/rank", json=BODY | changes, headers=headers)


def test_it_answers_what_python_answers(client: httpx.Client, spine: Spine) -> None:
    there = ask(client, {"x-request-id": "mine"})
    here = Ranker.load(str(spine.folder("export"))).rank(RankRequest.model_validate(BODY), "mine").model_dump()
    assert there.json() | {"ranked": []} == here | {"ranked": []}
    found, expected = ({one["item_id"]: one["score"] for one in a["ranked"]} for a in (there.json(), here))
    assert found == pytest.approx(expected, abs=1e-6)
    assert there.headers["x-request-id"] == "mine"
    assert there.headers.get_list("cache-control") == ["no-store"]


def test_what_is_wrong_is_refused_by_us_or_by_it(client: httpx.Client) -> None:
    assert ask(client, items=[]).status_code == 422
    assert ask(client, items=["item-1"] * 201).status_code == 413
    assert ask(client, {b"x-request-id": b"\xe9"}).status_code == 400
    assert ask(client, {"x-long": "x" * 20_000}).status_code == 400
    assert client.get("/v1/model", headers={"host": "evil.example"}).status_code == 403
    assert client.get("/nowhere").status_code == 404


def burst(client: httpx.Client, deadline: str) -> Counter[int]:
    """Statuses of 100 requests that are all on their way before the first is answered: no client library is as fast."""
    at = (client.base_url.host, client.base_url.port)
    request = client.build_request("POST", "/v1/rank", json=BODY, headers={"x-request-timeout-seconds": deadline})
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    message = f"POST /v1/rank HTTP/1.1\r\n{head}\r\n".encode() + request.read()
    with contextlib.ExitStack() as open_ones:
        sockets = [open_ones.enter_context(socket.create_connection(at, timeout=60)) for _ in range(100)]
        for one in sockets:
            one.sendall(message)
        return Counter(int(one.recv(1 << 16)[9:12]) for one in sockets)


def test_overload_is_told_at_once_and_a_deadline_is_kept(client: httpx.Client) -> None:
    assert set(burst(client, "30")) == {200, 429}
    assert set(burst(client, "0.0001")) <= {408, 429}
    assert ask(client).status_code == 200
