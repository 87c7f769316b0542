"""JSON as RFC 8259 has it between machines, read without surprises: each key once, and no lists without end."""

import gc
import json
import re
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import HTTPException, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute

from llm4msr.text import shorten

MAX_OBJECTS, MAX_LISTS = 60_000, 2_000
"""In one body. A batch has two objects and two lists for each request, and an object for each event of its history, so
that 256 requests may bring 200 events each; an edited history has one of each for each scenario."""

_STRING = re.compile(rb'"(?:[^"\\]|\\.?)*+"?', re.DOTALL)
"""A JSON string, or what begins as one. The pattern never fails where it has begun, so its time is linear."""


class StrictRequest(Request):
    """A request whose body must be strict JSON."""

    async def json(self) -> Any:
        """The parsed body.

        Raises:
            HTTPException: 422, the body is compressed, no JSON, not in UTF-8 or nested too deep, has more than
                `MAX_LISTS` lists, or an object with the same key twice; 413, it has more than `MAX_OBJECTS` objects.
        """
        if (coding := self.headers.get("content-encoding", "identity")) != "identity":
            raise HTTPException(422, f"content-encoding: {shorten(coding)} is not read here; send the body as it is")
        body = await self.body()
        if body.count(b"[") > MAX_LISTS and _STRING.sub(b"", body).count(b"[") > MAX_LISTS:
            raise HTTPException(422, f"the body has more than {MAX_LISTS} lists")
        collects = gc.isenabled()
        gc.disable()  # while many small lists are made, it would walk through the whole heap again and again
        try:
            return json.loads(body.decode("utf-8-sig"), object_pairs_hook=_ObjectBuilder())
        except RecursionError:
            raise HTTPException(422, "the body is nested too deep") from None
        except ValueError as error:
            raise HTTPException(422, f"the body is no JSON in UTF-8: {shorten(str(error), 200)}") from None
        finally:
            if collects:
                gc.enable()


class _ObjectBuilder:
    """Builds the objects of one body; refuses too many of them, and raises a ValueError for a key that stands twice."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        self.count += 1
        if self.count > MAX_OBJECTS:
            message = "send fewer requests, or shorter histories, at once"
            raise HTTPException(413, f"the body has more than {MAX_OBJECTS} objects; {message}")
        built = dict(pairs)
        if len(built) < len(pairs):
            seen: set[str] = set()
            for key, _ in pairs:
                if key in seen:
                    raise ValueError(f"the key '{shorten(key)}' stands twice in an object")
                seen.add(key)
        return built


class StrictRoute(APIRoute):
    """A route that reads strict JSON."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The function that FastAPI calls with each request."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(StrictRequest(request.scope, request.receive))

        return handle
