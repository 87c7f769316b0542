"""What a request meets before the model does: the gates, JSON read strictly, and errors that say what was wrong.

Plain FastAPI; Ray Serve is in `serve.py`, and the gates are in `gates.py`.
"""

import gc
import json
import re
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Header, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.routing import APIRoute
from pydantic import BeforeValidator

from llm4msr.config import ServeConfig
from llm4msr.errors import ConfigError
from llm4msr.serve.gates import PROBES, AnswerHeaders, BodyLimits, HostGate, Plain, TokenGate
from llm4msr.text import shorten

OPENAPI = Path(__file__).with_name("openapi.json")
"""The committed description of the routes; a test compares it with what the endpoint says of itself."""

REFUSALS: dict[int | str, dict[str, Any]] = {
    401: {"description": "An API token is set, and was not given."},
    403: {"description": "No API token is set, and the Host is neither local nor allowed."},
    408: {"description": "The body did not arrive in time."},
    413: {"description": "Too many candidates, or too large a body."},
    429: {"description": "Overload: ask again after Retry-After seconds."},
    504: {"description": "No answer in time."},
}
"""What ranking may answer instead, beside 422 for a request that is wrong."""

OPEN = PROBES | {"/docs", "/redoc", "/openapi.json"}
"""Paths that need no token: they tell nothing of the model."""

ERRORS_SHOWN, KEY_SHOWN = 10, 64

MOST_OBJECTS = 2_000
"""In one body; a batch has two for each request, an edited history one for each scenario."""

MOST_LISTS = 2_000
"""In one body; a batch has one for each request, an edited history one for each scenario."""

_TEXT = re.compile(rb'"(?:[^"\\]|\\.?)*+"?', re.DOTALL)
"""A JSON text, or what begins as one; the pattern never fails where it has begun, so that its time is linear."""


def _readable(raw: str) -> str:
    try:
        text = raw.encode("latin-1").decode()  # headers are bytes, which ASGI frameworks read as latin-1
    except UnicodeError:
        raise ValueError("write it in UTF-8") from None
    if not text.isprintable():
        raise ValueError("write it without control characters")
    return text


RequestId = Annotated[str, Header(max_length=128), BeforeValidator(_readable)]
"""Ray Serve gives every request an id, the client's own X-Request-ID where there is one, and sends it back."""


def web_app(config: ServeConfig, open_paths: frozenset[str] = OPEN) -> FastAPI:
    """An application without routes: documents, gates and errors. `open_paths` need no token."""
    app = FastAPI(title="llm4msr", version="1", description="A multi-scenario ranker with LLM knowledge.")
    app.router.route_class = StrictRoute
    app.add_middleware(BodyLimits, max_bytes=config.max_body_bytes, timeout_s=config.timeout_s)
    app.add_middleware(TokenGate, open_paths=open_paths)
    app.add_middleware(HostGate, names=[config.host, *config.allowed_hosts])
    app.add_middleware(AnswerHeaders)  # the last one is the first to be met

    @app.exception_handler(ConfigError)
    async def bad_request(request: Request, error: ConfigError) -> Response:
        return Plain({"detail": str(error)}, 422)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> Response:
        """Where and what, without what was sent: it may be huge, or no JSON at all."""
        if isinstance(error.body, bytes):  # FastAPI has not read it: it was not declared as JSON
            return Plain({"detail": "no JSON by its content-type; send it with content-type: application/json"}, 422)
        told = [
            {"loc": [shorten(str(part), KEY_SHOWN) for part in e["loc"]], "msg": e["msg"], "type": e["type"]}
            for e in error.errors()[:ERRORS_SHOWN]
        ]
        return Plain({"detail": told}, 422)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        """A fault of ours, which the log of the replica tells; it stands outside of all gates."""
        return Plain({"detail": "internal error"}, 500)

    return app


class StrictRequest(Request):
    """A request whose body is JSON as RFC 8259 has it between machines."""

    async def json(self) -> Any:
        """The value.

        Raises:
            HTTPException: 422, it is no JSON, not in UTF-8, compressed, too deep, or has objects or lists without end,
                or a key twice in an object.
        """
        if (coding := self.headers.get("content-encoding", "identity")) != "identity":
            raise HTTPException(422, f"content-encoding: {shorten(coding)} is not read here; send the body as it is")
        body = await self.body()
        if body.count(b"[") > MOST_LISTS and _TEXT.sub(b"", body).count(b"[") > MOST_LISTS:
            raise HTTPException(422, f"the body has more than {MOST_LISTS} lists")
        collects = gc.isenabled()
        gc.disable()  # else it looks through all that is there again and again while many small lists are made
        try:
            return json.loads(body.decode("utf-8-sig"), object_pairs_hook=Objects())
        except RecursionError:
            raise HTTPException(422, "the body is nested too deep") from None
        except ValueError as error:
            raise HTTPException(422, f"the body is no JSON in UTF-8: {shorten(str(error), 200)}") from None
        finally:
            if collects:
                gc.enable()


class Objects:
    """Makes the objects of one body: not too many, and each key once."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """One object."""
        self.made += 1
        if self.made > MOST_OBJECTS:
            raise ValueError(f"more than {MOST_OBJECTS} objects")
        found = dict(pairs)
        if len(found) < len(pairs):
            before: set[str] = set()
            for key, _ in pairs:
                if key in before:
                    raise ValueError(f"the key '{shorten(key)}' stands twice in an object")
                before.add(key)
        return found


class StrictRoute(APIRoute):
    """A route that reads JSON strictly."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What FastAPI calls with each request."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(StrictRequest(request.scope, request.receive))

        return handle
