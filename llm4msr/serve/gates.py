"""What stands before every route, as plain ASGI: headers of each answer, the Host, the token, limits of a body."""

import asyncio
import ipaddress
import json
import os
import re
import secrets
from collections.abc import Collection
from fnmatch import fnmatchcase
from typing import Any

from fastapi.responses import JSONResponse
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llm4msr.bundle.messages import TOKEN
from llm4msr.errors import ConfigError
from llm4msr.text import shorten

EVERY_ANSWER = {"x-content-type-options": "nosniff", "cache-control": "no-store"}
PROBES = frozenset({"/healthz", "/readyz"})
"""Whoever looks whether this lives asks by the address of a machine or pod, and is told nothing else."""


class Plain(JSONResponse):
    """JSON in ASCII: what a client sent, and gets back in a message, may be no valid Unicode."""

    def __init__(self, content: Any, status: int, headers: dict[str, str] | None = None):
        super().__init__(content, status, EVERY_ANSWER | (headers or {}))

    def render(self, content: Any) -> bytes:
        """The body."""
        return json.dumps(content, ensure_ascii=True, allow_nan=False).encode()


def token() -> bytes:
    """The API token of this node's environment, without the line end of a file that it came from; empty = none.

    Raises:
        ConfigError: it is set, but blank, and whoever set it relies on it.
    """
    given = os.environb.get(TOKEN.encode(), b"")
    if given and not given.strip():
        raise ConfigError(f"{TOKEN} is set but blank; give it a value, or unset it")
    return given.strip()


def require_token(required: bool) -> None:
    """Refuse to serve openly on one node what asks for a token on another.

    Raises:
        ConfigError: it is required and not there.
    """
    if not token() and required:
        raise ConfigError(f"{TOKEN} is set where this was started but not on this node; set it on every node")


class AnswerHeaders:
    """No answer is guessed at by a browser, or kept by anybody on the way."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(EVERY_ANSWER)
            await send(message)

        await self.app(scope, receive, sent)


class HostGate:
    """Without a token, 403 to whoever names this endpoint by a foreign name, as a page in somebody's browser may do.

    Such a page points a name of its own to this machine (DNS rebinding) and then reads what the endpoint answers.
    """

    def __init__(self, app: ASGIApp, names: Collection[str]):
        self.app, self.names = app, [host_name(name) or name.lower() for name in names]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        if scope["type"] != "http" or path_of(scope) in PROBES or token() or self.knows(scope):
            await self.app(scope, receive, send)
            return
        given = b", ".join(value for key, value in scope["headers"] if key == b"host").decode("latin-1")
        told = f"without {TOKEN}, requests for host '{shorten(given)}' are not answered; set it, or serve.allowed_hosts"
        await Plain({"detail": told}, 403)(scope, receive, send)

    def knows(self, scope: Scope) -> bool:
        """Whether the request names this machine, or one of `names`, which may hold `*`."""
        given = [value.decode("latin-1") for key, value in scope["headers"] if key == b"host"]
        name = host_name(given[0]) if len(given) == 1 else ""
        return bool(name) and (_is_local(name) or any(fnmatchcase(name, known) for known in self.names))


def host_name(host: str) -> str:
    """The name or address in a Host header, without port, brackets and last dot; empty where it is none."""
    found = re.fullmatch(r"(?:\[([0-9a-f:.]+)\]|([^\s:\[\]@/]+?)\.?)(?::\d*)?", host.strip().lower())
    return "" if found is None else found[1] or found[2]


def _is_local(name: str) -> bool:
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class TokenGate:
    """401 without the token, where one is set, but for the paths that are open."""

    def __init__(self, app: ASGIApp, open_paths: Collection[str]):
        self.app, self.open_paths = app, open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        expected = token()
        if expected and scope["type"] == "http" and path_of(scope) not in self.open_paths:
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not secrets.compare_digest(given, b"Bearer " + expected):
                refused = Plain({"detail": "wrong or missing token"}, 401, {"www-authenticate": "Bearer"})
                await refused(scope, receive, send)
                return
        await self.app(scope, receive, send)


def path_of(scope: Scope) -> str:
    """Below the root path, which is Ray Serve's route prefix."""
    path: str = scope.get("path", "")
    return path.removeprefix(scope.get("root_path", ""))


class BodyLimits:
    """Reads the whole body first: 413 where it is too large, 408 where it does not arrive."""

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_s: float):
        self.app, self.max_bytes, self.timeout_s = app, max_bytes, timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        if scope["type"] != "http" or scope["method"] not in ("POST", "PUT", "PATCH"):
            await self.app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self.timeout_s):
                body = await self._read(receive)
        except TimeoutError:
            await Plain({"detail": f"the body did not arrive within {self.timeout_s:g} s"}, 408)(scope, receive, send)
            return
        if body is None:
            return  # the client has gone
        if len(body) > self.max_bytes:
            await Plain({"detail": f"the body is larger than {self.max_bytes} bytes"}, 413)(scope, receive, send)
            return
        waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return waiting.pop() if waiting else await receive()

        await self.app(scope, replay, send)

    async def _read(self, receive: Receive) -> bytes | None:
        """The body, cut off once it is too large."""
        body = bytearray()
        while len(body) <= self.max_bytes:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if not message.get("more_body", False):
                break
        return bytes(body)
