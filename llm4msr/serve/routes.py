"""The routes of a replica. `RankRoutes` answers rankings as plain ASGI, a body in and an answer out.

FastAPI describes them, answers the rest, and does not see rankings: it would take longer to route one than to read it.
"""

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import FastAPI, Header, HTTPException
from fastapi.responses import Response
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from llm4msr.bundle.messages import ModelInfo, RankBatchRequest, RankBatchResponse, RankRequest, RankResponse
from llm4msr.config import ServeConfig
from llm4msr.errors import ConfigError
from llm4msr.serve import wire
from llm4msr.serve.live_model import LiveModel
from llm4msr.serve.middleware import ASCIIResponse, path_of
from llm4msr.serve.web_app import REFUSALS, web_app
from llm4msr.text import shorten

Respond = Callable[[list[RankRequest], str], Awaitable[list[RankResponse]]]
"""Requests of one call and its id -> their responses."""
RANK, BATCH = "/v1/rank", "/v1/rank:batch"
MAX_REQUEST_ID = 128


class RankRoutes:
    """Answers rankings with `respond`, and leaves the rest to the application."""

    def __init__(self, app: ASGIApp, respond: Respond):
        self.app, self.respond = app, respond

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        path = path_of(scope) if scope["type"] == "http" and scope["method"] == "POST" else ""
        if path not in (RANK, BATCH):
            await self.app(scope, receive, send)
            return
        answer: Response
        try:
            headers = dict(scope["headers"])
            check_headers(headers)
            request_id = read_request_id(headers.get(b"x-request-id", b""))
            body = (await receive())["body"]  # whole, as `BodyLimits` hands it on
            requests = wire.read_request(body) if path == RANK else wire.read_batch(body)
            responses = await self.respond(requests, request_id)
            content = wire.write(responses[0] if path == RANK else {"responses": responses})
            answer = Response(content, media_type="application/json")
        except HTTPException as refusal:
            answer = ASCIIResponse({"detail": refusal.detail}, refusal.status_code, refusal.headers)
        except ConfigError as error:
            answer = ASCIIResponse({"detail": str(error)}, 422)
        await answer(scope, receive, send)


def check_headers(headers: dict[bytes, bytes]) -> None:
    """Refuse what is not said to be JSON: no page of a foreign site can then send it without being asked first.

    Raises:
        HTTPException: 422, another content type or an encoding.
    """
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if not (kind == b"application/json" or (kind.startswith(b"application/") and kind.endswith(b"+json"))):
        raise HTTPException(422, "no JSON by its content-type; send it with content-type: application/json")
    if (coding := headers.get(b"content-encoding", b"identity")) != b"identity":
        message = f"content-encoding: {shorten(coding.decode('latin-1'))} is not read here; send the body as it is"
        raise HTTPException(422, message)


def read_request_id(header: bytes) -> str:
    """Ray Serve gives every request an id, the client's own X-Request-ID where there is one, and sends it back.

    Raises:
        HTTPException: 422, it is no text in UTF-8 without control characters, or too long.
    """
    try:
        text = header.decode()
    except UnicodeError:
        text = "\n"
    if text.isprintable() and len(text) <= MAX_REQUEST_ID:
        return text
    message = f"write it in UTF-8 without control characters, in at most {MAX_REQUEST_ID} characters"
    raise HTTPException(422, [{"loc": ["header", "x-request-id"], "msg": message, "type": "invalid"}])


def ranking_app(config: ServeConfig, live: LiveModel, respond: Respond) -> FastAPI:
    """The application of a replica, with what it has in service and how it ranks."""
    app = web_app(config, routes=[Middleware(RankRoutes, respond=respond)])
    RequestId = Annotated[str, Header(max_length=MAX_REQUEST_ID)]

    @app.post(RANK, responses=REFUSALS)
    async def rank(body: RankRequest, x_request_id: RequestId = "") -> RankResponse:
        """Rank items for a user in a scenario."""
        raise NotImplementedError("answered by RankRoutes")

    @app.post(BATCH, responses=REFUSALS)
    async def rank_batch(body: RankBatchRequest, x_request_id: RequestId = "") -> RankBatchResponse:
        """Rank several requests at once; their candidates together count against the limit."""
        raise NotImplementedError("answered by RankRoutes")

    @app.get("/v1/model")
    async def model() -> ModelInfo:
        """What is being served."""
        return live.ranker.info().model_copy(update={"problem": live.problem})

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """This replica answers."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> dict[str, str]:
        """This replica has loaded its bundle."""
        return {"status": "ready", "model_version": live.ranker.model_version}

    return app
