"""The routes of a replica. `BodyRoutes` answers rankings and events as plain ASGI, a body in and an answer out.

FastAPI describes them, answers the rest, and does not see these: it would take longer to route one than to read it.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any

from fastapi import FastAPI, Header, HTTPException
from fastapi.responses import Response
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from llm4msr.bundle.messages import (
    EventBatch,
    EventsForgotten,
    EventsKept,
    ModelInfo,
    NewEvent,
    RankBatchRequest,
    RankBatchResponse,
    RankRequest,
    RankResponse,
    UsersToForget,
)
from llm4msr.config import ServeConfig
from llm4msr.errors import ConfigError
from llm4msr.serve import wire
from llm4msr.serve.live_model import LiveModel
from llm4msr.serve.middleware import ASCIIResponse, path_of
from llm4msr.serve.second import Second
from llm4msr.serve.web_app import EVENT_REFUSALS, REFUSALS, web_app
from llm4msr.text import shorten

Respond = Callable[[list[RankRequest], str], Awaitable[list[RankResponse]]]
"""Requests of one call and its id -> their responses."""
Keep = Callable[[list[NewEvent]], Awaitable[EventsKept]]
Forget = Callable[[list[str]], Awaitable[EventsForgotten]]
Answer = Callable[[bytes, str], Awaitable[bytes]]
"""A body and the request's id -> the body of the answer."""
RANK, BATCH, EVENTS, FORGET = "/v1/rank", "/v1/rank:batch", "/v1/events", "/v1/events:forget"
MAX_REQUEST_ID = 128


def answers(respond: Respond, keep: Keep, forget: Forget) -> dict[str, Answer]:
    """By path."""

    async def rank(body: bytes, request_id: str) -> bytes:
        (response,) = await respond(wire.read_request(body), request_id)
        return wire.write(response)

    async def rank_batch(body: bytes, request_id: str) -> bytes:
        return wire.write({"responses": await respond(wire.read_batch(body), request_id)})

    async def keep_events(body: bytes, request_id: str) -> bytes:
        return wire.write(await keep(wire.read_events(body)))

    async def forget_events(body: bytes, request_id: str) -> bytes:
        return wire.write(await forget(wire.read_users(body)))

    return {RANK: rank, BATCH: rank_batch, EVENTS: keep_events, FORGET: forget_events}


class BodyRoutes:
    """Answers what is posted to these paths, and leaves the rest to the application."""

    def __init__(self, app: ASGIApp, answers: Mapping[str, Answer]):
        self.app, self.answers = app, answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        path = path_of(scope) if scope["type"] == "http" and scope["method"] == "POST" else ""
        if path not in self.answers:
            await self.app(scope, receive, send)
            return
        answer: Response
        try:
            headers = dict(scope["headers"])
            check_headers(headers)
            request_id = read_request_id(headers.get(b"x-request-id", b""))
            body = (await receive())["body"]  # whole, as `BodyLimits` hands it on
            answer = Response(await self.answers[path](body, request_id), media_type="application/json")
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


async def refuse_events(given: object) -> Any:
    """Where no events are kept.

    Raises:
        HTTPException: 409.
    """
    raise HTTPException(409, "this endpoint keeps no events; set serve.events")


def ranking_app(
    config: ServeConfig,
    live: LiveModel,
    respond: Respond,
    second: Second | None = None,
    keep: Keep = refuse_events,
    forget: Forget = refuse_events,
) -> FastAPI:
    """The application of a replica, with what it has in service, how it ranks, and what it does with events."""
    app = web_app(config, routes=[Middleware(BodyRoutes, answers=answers(respond, keep, forget))])
    RequestId = Annotated[str, Header(max_length=MAX_REQUEST_ID)]

    @app.post(RANK, responses=REFUSALS)
    async def rank(body: RankRequest, x_request_id: RequestId = "") -> RankResponse:
        """Rank items for a user in a scenario."""
        raise NotImplementedError("answered by BodyRoutes")

    @app.post(BATCH, responses=REFUSALS)
    async def rank_batch(body: RankBatchRequest, x_request_id: RequestId = "") -> RankBatchResponse:
        """Rank several requests at once; their candidates together count against the limit."""
        raise NotImplementedError("answered by BodyRoutes")

    @app.post(EVENTS, responses=EVENT_REFUSALS)
    async def keep_events(body: EventBatch) -> EventsKept:
        """Tell what users took; it counts in their rankings within a second, after what the bundle knows of them."""
        raise NotImplementedError("answered by BodyRoutes")

    @app.post(FORGET, responses=EVENT_REFUSALS)
    async def forget_events(body: UsersToForget) -> EventsForgotten:
        """Delete all events of some users that were told; what a bundle knows of them stays."""
        raise NotImplementedError("answered by BodyRoutes")

    @app.get("/v1/model")
    async def model() -> ModelInfo:
        """What is being served."""
        info = live.ranker.info().model_copy(update={"problem": live.problem})
        if second is None:
            return info
        problem = "; ".join(filter(None, (live.problem, second.problem)))
        return info.model_copy(update={"problem": problem, "second": second.info()})

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """This replica answers."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> dict[str, str]:
        """This replica has loaded its bundle."""
        return {"status": "ready", "model_version": live.ranker.model_version}

    return app
