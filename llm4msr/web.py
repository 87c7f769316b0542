"""What a request meets before the model does: the token, limits on its body, and errors that say what was wrong.

Plain FastAPI and ASGI; Ray Serve is in `serve.py`.
"""

import asyncio
import json
import os
import secrets
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Header, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llm4msr.api import TOKEN
from llm4msr.config import ServeConfig
from llm4msr.errors import ConfigError

OPENAPI = Path(__file__).with_name("openapi.json")
"""The committed description of the routes; a test compares it with what the endpoint says of itself."""

RequestId = Annotated[str, Header(max_length=128)]
"""Ray Serve gives every request an id, the client's own X-Request-ID where there is one, and sends it back."""

REFUSALS: dict[int | str, dict[str, Any]] = {
    401: {"description": "An API token is set, and was not given."},
    408: {"description": "The body did not arrive in time."},
    413: {"description": "Too many candidates, or too large a body."},
    429: {"description": "Overload: ask again after Retry-After seconds."},
    504: {"description": "No answer in time."},
}
"""What ranking may answer instead, beside 422 for a request that is wrong."""

OPEN = frozenset({"/healthz", "/readyz", "/docs", "/redoc", "/openapi.json"})
"""Paths that need no token: they tell nothing of the model."""

ERRORS_SHOWN, KEY_SHOWN = 10, 64


class Plain(JSONResponse):
    """JSON in ASCII: what a client sent, and gets back in a message, may be no valid Unicode."""

    def render(self, content: Any) -> bytes:
        """The body."""
        return json.dumps(content, ensure_ascii=True, allow_nan=False).encode()


def web_app(config: ServeConfig, open_paths: frozenset[str] = OPEN) -> FastAPI:
    """An application without routes: documents, limits and errors. `open_paths` need no token."""
    app = FastAPI(title="llm4msr", version="1", description="A multi-scenario ranker with LLM knowledge.")
    app.add_middleware(BodyLimits, max_bytes=config.max_body_bytes, timeout_s=config.timeout_s)
    app.add_middleware(TokenGate, open_paths=open_paths)

    @app.exception_handler(ConfigError)
    async def bad_request(request: Request, error: ConfigError) -> Response:
        return Plain({"detail": str(error)}, 422)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> Response:
        """Where and what, without what was sent: it may be huge, or no JSON at all."""
        told = [
            {"loc": [str(part)[:KEY_SHOWN] for part in e["loc"]], "msg": e["msg"], "type": e["type"]}
            for e in error.errors()[:ERRORS_SHOWN]
        ]
        return Plain({"detail": told}, 422)

    return app


class TokenGate:
    """401 without the token, where one is set, but for the paths that are open."""

    def __init__(self, app: ASGIApp, open_paths: frozenset[str]):
        self.app, self.open_paths = app, open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        token = os.environ.get(TOKEN, "")
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))  # which is Ray Serve's route prefix
        if token and scope["type"] == "http" and path not in self.open_paths:
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not secrets.compare_digest(given, f"Bearer {token}".encode()):
                refused = Plain({"detail": "wrong or missing token"}, 401, {"www-authenticate": "Bearer"})
                await refused(scope, receive, send)
                return
        await self.app(scope, receive, send)


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
