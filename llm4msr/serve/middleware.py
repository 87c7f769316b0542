"""What stands before every route, as plain ASGI: headers of each response, the Host, the token, limits of a body."""

import asyncio
import json
import re
import secrets
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llm4msr.serve import api_token
from llm4msr.text import is_loopback, shorten

RESPONSE_HEADERS = {"x-content-type-options": "nosniff", "cache-control": "no-store"}
PROBES = frozenset({"/healthz", "/readyz"})
"""Health checks come by the address of a machine or pod, and are told nothing else."""


class ASCIIResponse(JSONResponse):
    """JSON in ASCII: what a client sent and gets back in a message may be no valid Unicode."""

    def __init__(self, content: Any, status: int, headers: Mapping[str, str] | None = None):
        super().__init__(content, status, {**RESPONSE_HEADERS, **(headers or {})})

    def render(self, content: Any) -> bytes:
        """The body."""
        return json.dumps(content, ensure_ascii=True, allow_nan=False).encode()


class ResponseHeaders:
    """Lets no browser guess at the type of a response, and nobody on the way keep it."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(RESPONSE_HEADERS)
            await send(message)

        await self.app(scope, receive, send_with_headers)


class HostGate:
    """Without a token, 403 for whoever calls this endpoint by a foreign name, as a page in a browser may do.

    Such a page points a name of its own to this machine (DNS rebinding) and then reads what the endpoint answers.
    `names` are allowed besides those of this machine, and may hold `*`.
    """

    def __init__(self, app: ASGIApp, names: Collection[str]):
        self.app, self.names = app, [host_name(name) or name.lower() for name in names]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        if scope["type"] != "http" or path_of(scope) in PROBES or api_token.read() or self._allows(_hosts(scope)):
            await self.app(scope, receive, send)
            return
        message = (
            f"without {api_token.VARIABLE}, requests for host '{shorten(', '.join(_hosts(scope)))}' are not answered; "
            "set it, or serve.allowed_hosts"
        )
        await ASCIIResponse({"detail": message}, 403)(scope, receive, send)

    def _allows(self, hosts: list[str]) -> bool:
        name = host_name(hosts[0]) if len(hosts) == 1 else ""
        return bool(name) and (is_loopback(name) or any(fnmatchcase(name, allowed) for allowed in self.names))


def _hosts(scope: Scope) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == b"host"]


def host_name(host: str) -> str:
    """The name or address in a Host header, without port, brackets and last dot; empty where it is malformed."""
    match = re.fullmatch(r"(?:\[([0-9a-f:.]+)\]|([^\s:\[\]@/]+?)\.?)(?::\d*)?", host.strip().lower())
    return "" if match is None else match[1] or match[2]


class TokenGate:
    """Where a token is set, 401 for requests without it, except for `open_paths`."""

    def __init__(self, app: ASGIApp, open_paths: Collection[str]):
        self.app, self.open_paths = app, open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        token = api_token.read()
        if token and scope["type"] == "http" and path_of(scope) not in self.open_paths:
            credentials = dict(scope["headers"]).get(b"authorization", b"")
            if not secrets.compare_digest(credentials, b"Bearer " + token):
                refusal = ASCIIResponse({"detail": "wrong or missing token"}, 401, {"www-authenticate": "Bearer"})
                await refusal(scope, receive, send)
                return
        await self.app(scope, receive, send)


def path_of(scope: Scope) -> str:
    """The request's path below the root path, which is Ray Serve's route prefix."""
    path: str = scope.get("path", "")
    return path.removeprefix(scope.get("root_path", ""))


class BodyLimits:
    """Reads the whole body first: 413 if it is larger than `max_bytes`, 408 if it takes longer than `timeout_s`."""

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
            refusal = ASCIIResponse({"detail": f"the body did not arrive within {self.timeout_s:g} s"}, 408)
            await refusal(scope, receive, send)
            return
        if body is None:
            return  # the client is gone
        if len(body) > self.max_bytes:
            refusal = ASCIIResponse({"detail": f"the body is larger than {self.max_bytes} bytes"}, 413)
            await refusal(scope, receive, send)
            return
        waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return waiting.pop() if waiting else await receive()

        await self.app(scope, replay, send)

    async def _read(self, receive: Receive) -> bytes | None:
        """The body, cut off once it is too large; None if the client hung up."""
        body = bytearray()
        while len(body) <= self.max_bytes:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if not message.get("more_body", False):
                break
        return bytes(body)
