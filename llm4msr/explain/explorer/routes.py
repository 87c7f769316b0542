"""The explorer's page and what it asks for, as a FastAPI application."""

import asyncio
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException
from fastapi.responses import Response

from llm4msr.config import ServeConfig
from llm4msr.errors import LLM4MSRError
from llm4msr.explain.explorer.view import Asked, Found, Id, Person, Ranking, View
from llm4msr.serve.middleware import web_app

FILES = {"": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
}


def explorer_app(view: View, config: ServeConfig) -> FastAPI:
    """Routes, wherever they are mounted. Where an API token is set, the page needs none, but what it asks for does."""
    app = web_app(config, open_paths=frozenset(["", *(f"/{name}" for name in FILES)]))

    @app.get("/api/run")
    async def run() -> dict[str, Any]:
        """Name and scenarios, whether histories can be edited, and how many titles of a scenario the LLM reads."""
        shown = {"name": view.name, "scenarios": view.scenarios}
        return shown | {"editable": view.editable, "titles_read": view.titles_read}

    @app.get("/api/users")
    async def users(begins: Id = "") -> list[Found]:
        """Whose ids begin so."""
        return await asyncio.to_thread(view.users, begins)

    @app.get("/api/user")
    async def user(user_id: Id) -> Person:
        """What is known of one."""
        return await asyncio.to_thread(view.person, user_id)

    @app.post("/api/rank")
    async def rank(asked: Asked) -> Ranking:
        """Both rankings."""
        try:
            return await asyncio.to_thread(view.ranking, asked)
        except LLM4MSRError:
            raise
        except Exception as error:  # of the LLM, which may be another process: its last line says what
            told = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise HTTPException(503, f"the LLM could not read this: {told[:300]}") from None

    @app.get("/{name:path}")
    async def file(name: str) -> Response:
        """The page, and what it loads."""
        if name not in FILES:
            raise HTTPException(404, "no such page")
        text = (Path(__file__).parent / (name or "page.html")).read_bytes()
        return Response(text, media_type=FILES[name], headers=HEADERS)

    return app
