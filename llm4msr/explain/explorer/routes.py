"""The explorer's page and its API, as a FastAPI application."""

import asyncio
from pathlib import Path

from fastapi import FastAPI, HTTPException
from fastapi.responses import Response

from llm4msr.config import ServeConfig
from llm4msr.errors import LLM4MSRError
from llm4msr.explain.explorer.messages import (
    Id,
    Ranking,
    RankingRequest,
    RunDetails,
    Title,
    UserDetails,
    UserSummary,
)
from llm4msr.explain.explorer.view import View
from llm4msr.serve.web_app import web_app

FILES = {"": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
}


def explorer_app(view: View, config: ServeConfig) -> FastAPI:
    """Routes, wherever they are mounted. Where an API token is set, the API needs it and the page does not."""
    app = web_app(config, open_paths=frozenset(["", *(f"/{name}" for name in FILES)]))

    @app.get("/api/run")
    async def run() -> RunDetails:
        """The run, and what the page can do with it."""
        return view.details()

    @app.get("/api/users")
    async def users(begins: Id = "") -> list[UserSummary]:
        """Users whose ids begin so."""
        return await asyncio.to_thread(view.search.users, begins)

    @app.get("/api/titles")
    async def titles(part: Title = "") -> list[str]:
        """Titles of the catalogue that hold this part."""
        return await asyncio.to_thread(view.search.titles, part)

    @app.get("/api/user")
    async def user(user_id: Id, scenario: Id = "") -> UserDetails:
        """Knowledge of one user, and the history before what is held out in a scenario."""
        return await asyncio.to_thread(view.user, user_id, scenario)

    @app.post("/api/rank")
    async def rank(request: RankingRequest) -> Ranking:
        """The candidates by this model and by a rival."""
        try:
            return await asyncio.to_thread(view.rank, request)
        except LLM4MSRError:
            raise
        except Exception as error:  # the LLM may run in another process: the last line of its error says the cause
            cause = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise HTTPException(503, f"the LLM could not read this: {cause[:300]}") from None

    @app.get("/{name:path}")
    async def file(name: str) -> Response:
        """The page, and the files it loads."""
        if name not in FILES:
            raise HTTPException(404, "no such page")
        text = (Path(__file__).parent / (name or "page.html")).read_bytes()
        return Response(text, media_type=FILES[name], headers=HEADERS)

    return app
