"""The FastAPI application that a replica's routes are put on: its middleware, its documents, and what errors say.

Fields of requests and responses are defined in `bundle/messages.py`, routes in `routes.py`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.middleware import Middleware

from llm4msr.config import ServeConfig
from llm4msr.errors import ConfigError
from llm4msr.serve.middleware import PROBES, ASCIIResponse, BodyLimits, HostGate, ResponseHeaders, TokenGate
from llm4msr.text import shorten

OPENAPI = Path(__file__).with_name("openapi.json")
"""The committed description of the routes; a test compares it with the one that the endpoint gives of itself."""

REFUSALS: dict[int | str, dict[str, Any]] = {
    401: {"description": "An API token is set, and was not given."},
    403: {"description": "No API token is set, and the Host is neither local nor allowed."},
    408: {"description": "The body did not arrive in time, or no answer by the deadline of X-Request-Timeout-Seconds."},
    413: {"description": "Too many candidates, or too large a body."},
    429: {"description": "Overload: ask again after Retry-After seconds."},
}
"""Statuses of ranking besides 200, and 422 for a request that is wrong."""

EVENT_REFUSALS: dict[int | str, dict[str, Any]] = {
    **REFUSALS,
    409: {"description": "This endpoint keeps no events."},
    413: {"description": "Too large a body."},
    503: {"description": "The log of events does not answer: send the same again, no event counts twice."},
}
"""Statuses of events besides 200, and 422."""

OPEN_PATHS = PROBES | {"/docs", "/redoc", "/openapi.json"}
"""Paths that need no token: they tell nothing of the model."""

MAX_ERRORS, MAX_NAME = 10, 64
"""Of a 422: errors that are listed, and characters of a field's name."""


def web_app(config: ServeConfig, open_paths: frozenset[str] = OPEN_PATHS, routes: Sequence[Middleware] = ()) -> FastAPI:
    """An application without routes of FastAPI.

    Args:
        config: its limits, and the hosts it answers.
        open_paths: need no token.
        routes: what answers within the limits and before FastAPI.
    """
    description = "A multi-scenario ranker with LLM knowledge."
    app = FastAPI(title="llm4msr", version="1", description=description, middleware=routes)
    app.add_middleware(BodyLimits, max_bytes=config.max_body_bytes, timeout_s=config.timeout_s)
    app.add_middleware(TokenGate, open_paths=open_paths)
    app.add_middleware(HostGate, names=[config.host, *config.allowed_hosts])
    app.add_middleware(ResponseHeaders)  # added last, so it is the first that a request meets
    app.add_exception_handler(ConfigError, _refuse)
    app.add_exception_handler(RequestValidationError, _refuse_malformed)
    app.add_exception_handler(Exception, _fail)
    return app


async def _refuse(request: Request, error: Exception) -> Response:
    return ASCIIResponse({"detail": str(error)}, 422)


async def _refuse_malformed(request: Request, error: Exception) -> Response:
    """Say where and what is wrong, and repeat nothing that was sent: it may be huge, or no JSON at all."""
    assert isinstance(error, RequestValidationError)
    if isinstance(error.body, bytes):  # FastAPI has not parsed it: it was not declared as JSON
        return ASCIIResponse(
            {"detail": "no JSON by its content-type; send it with content-type: application/json"}, 422
        )
    details = [
        {"loc": [shorten(str(part), MAX_NAME) for part in e["loc"]], "msg": e["msg"], "type": e["type"]}
        for e in error.errors()[:MAX_ERRORS]
    ]
    return ASCIIResponse({"detail": details}, 422)


async def _fail(request: Request, error: Exception) -> Response:
    """Our own fault: the replica's log says which. This answer passes no middleware, so it brings its headers along."""
    return ASCIIResponse({"detail": "internal error"}, 500)
