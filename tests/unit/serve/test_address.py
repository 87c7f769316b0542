"""Where an endpoint may listen, and what stands before Ray Serve's own handling of a request."""

import asyncio
import socket
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from llm4msr.errors import ConfigError
from llm4msr.serve import address, proxy
from tests.support.experiments import free_port


def test_an_address_is_written_as_clients_read_it() -> None:
    assert address.url("127.0.0.1", 8000) == "http://127.0.0.1:8000"
    assert address.url("::1", 8000) == "http://[::1]:8000"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "::1", "::"])
def test_a_port_is_free_or_taken_in_its_own_family(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as other:
        try:
            other.bind((host, 0))
        except OSError as error:
            pytest.skip(f"no such address here: {error}")
        port = other.getsockname()[1]
        other.listen(1)
        assert address.bind_error(host, port) == "Address already in use"
    assert address.bind_error(host, free_port()) == ""


@pytest.mark.parametrize("host", ["no-such-host.invalid", "", "a b", "[::1]", "http://localhost", "x" * 300, "\ud800"])
def test_a_host_that_is_none_is_blamed_and_not_the_port(host: str) -> None:
    with pytest.raises(ConfigError, match=r"^serve\.host: '.*' cannot be resolved"):
        address.bind_error(host, free_port())


@pytest.mark.parametrize("host", ["203.0.113.9", "2001:db8::9"])
def test_an_address_of_another_machine_is_blamed(host: str) -> None:
    with pytest.raises(ConfigError, match=r"^serve\.host: '.*' is no address of this machine"):
        address.bind_error(host, free_port())


def through_proxy(*headers: tuple[bytes, bytes]) -> tuple[int, dict[bytes, bytes]]:
    """Status and headers of what comes back through the middlewares, from an application that answers 200."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"cache-control", b"max-age=1")]})
        await send({"type": "http.response.body", "body": b""})

    whole: Any = app
    for middleware in proxy.middlewares():  # as Ray Serve puts them around its own
        whole = middleware.cls(whole, *middleware.args, **middleware.kwargs)
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(whole({"type": "http", "headers": headers}, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"])


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        (b"x-request-id", b"\xe9", 400),
        (b"x-request-id", "é".encode(), 200),
        (b"serve_multiplexed_model_id", b"a\xff", 400),
        (b"serve-multiplexed-model-id", b"a\xff", 400),
        (b"x-session-id", b"\x80", 400),
        (b"x-request-timeout-seconds", b"\xe9", 400),
        (b"cookie", b"\xe9", 200),
        (b"accept", b"*/*", 200),
    ],
)
def test_headers_that_ray_serve_cannot_read_are_refused(name: bytes, value: bytes, status: int) -> None:
    found, headers = through_proxy((b"host", b"x"), (name, value))
    assert found == status
    assert (headers[b"x-content-type-options"], headers[b"cache-control"]) == (b"nosniff", b"no-store")


def test_ray_serve_finds_the_middlewares_by_the_name_that_is_handed_over() -> None:
    from ray._common.utils import import_attr

    (path,) = proxy.ENVIRONMENT.values()
    assert import_attr(path) is proxy.middlewares
