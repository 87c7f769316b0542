"""The explorer behind Ray Serve, below /explore: an application of its own, which takes nothing from the ranker's.

The LLM has a replica of its own too, opened in the background: one edits a history before one needs it.
"""

import asyncio
import functools
import threading
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from fastapi import HTTPException
from fastapi.responses import Response

from llm4msr.config import Config
from llm4msr.engines import open_engine, open_tokenizer
from llm4msr.errors import LLM4MSRError
from llm4msr.explorer.view import Asked, Found, Person, Ranking, View
from llm4msr.web import web_app

NAME, PREFIX = "explorer", "/explore"
WAIT_S = 120.0
"""For the LLM, which may still be opening."""
FILES = {"/": "text/html", "/page.css": "text/css", "/page.js": "text/javascript"}
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}


class LLM:
    """The frozen LLM that a run's knowledge is from: a prompt's vector."""

    def __init__(self, config: Config):
        self._config = config
        self._lock = threading.Lock()

    @functools.cached_property
    def _opened(self) -> tuple[Any, Any]:
        return open_tokenizer(self._config.extract), open_engine(self._config.extract)

    async def read(self, prompt: str) -> npt.NDArray[np.float32]:
        """float32 [Z]."""
        return await asyncio.to_thread(self._read, prompt)

    async def open(self) -> None:
        """Be ready."""
        await asyncio.to_thread(self._read, "")

    def _read(self, prompt: str) -> npt.NDArray[np.float32]:
        with self._lock:
            tokenizer, engine = self._opened
            return np.asarray(engine.vectors([tokenizer(prompt)])[0]) if prompt else np.zeros(0, np.float32)


def application(config: Config) -> Any:
    """The Ray Serve application."""
    from ray import serve

    llm: Any = serve.deployment(name="llm", max_ongoing_requests=4, ray_actor_options={"num_cpus": 1})(LLM)
    deployment: Any = serve.deployment(name=NAME, ray_actor_options={"num_cpus": 0})(replica(config))
    return deployment.bind(config, llm.bind(config))


def replica(config: Config) -> Any:
    """The class of a replica, with its routes."""
    from ray import serve

    app = web_app(config.serve, open_paths=frozenset(FILES))

    @serve.ingress(app)
    class Explorer:
        def __init__(self, config: Config, llm: Any) -> None:
            def read_prompt(prompt: str) -> npt.NDArray[np.float32]:
                vector: npt.NDArray[np.float32] = llm.read.remote(prompt).result(timeout_s=WAIT_S)
                return vector

            self.view = View(config, read_prompt)
            llm.open.remote()

        @app.get("/api/scenarios")
        async def scenarios(self) -> dict[str, Any]:
            """Their names, and whether histories can be edited."""
            return {"scenarios": self.view.scenarios, "editable": self.view.editable, "name": self.view.run.config.name}

        @app.get("/api/users")
        async def users(self, begins: str = "") -> list[Found]:
            """Whose ids begin so."""
            return await asyncio.to_thread(self.view.users, begins[:512])

        @app.get("/api/user")
        async def user(self, user_id: str) -> Person:
            """What is known of one."""
            return await asyncio.to_thread(self.view.person, user_id)

        @app.post("/api/rank")
        async def rank(self, asked: Asked) -> Ranking:
            """Both rankings."""
            try:
                return await asyncio.to_thread(self.view.ranking, asked)
            except LLM4MSRError:
                raise
            except Exception as error:  # of the LLM's replica, which Ray hands on with its stack
                raise HTTPException(503, f"the LLM cannot read this: {str(error).splitlines()[-1][:300]}") from None

        @app.get("/{name:path}")
        async def file(self, name: str) -> Response:
            """The page and what it loads."""
            if f"/{name}" not in FILES:
                raise HTTPException(404, "no such page")
            text = (Path(__file__).parent / (name or "page.html")).read_bytes()
            return Response(text, media_type=FILES[f"/{name}"], headers=HEADERS)

    return Explorer
