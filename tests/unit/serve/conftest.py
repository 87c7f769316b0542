"""A real server with a replica's application; bundles, and codes beside them."""

import asyncio
import json
import shutil
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from llm4msr import storage
from llm4msr.bundle.messages import EventsKept, NewEvent, RankRequest, RankResponse, Unknown
from llm4msr.config import ServeConfig
from llm4msr.serve import api_token
from llm4msr.serve.live_model import LiveModel
from llm4msr.serve.routes import ranking_app
from tests.support.bundles import flip_code, publish_bundle, publish_codes, rank_request, read_codes
from tests.support.experiments import free_port
from tests.unit.conftest import World

REQUEST = RankRequest(user_id="u", scenario="s", items=["a", "b"])
BODY = REQUEST.model_dump_json().encode()
RESPONSE = RankResponse(
    model_version="m",
    knowledge_version="k",
    request_id="",
    scenario="s",
    ranked=[],
    unknown=Unknown(user=False, scenario=False, items=[]),
    knowledge="none",
)


class Server:
    """A replica's application without a model, on a port of its own."""

    def __init__(self, prefix: str = "") -> None:
        self.calls = 0
        self.refusals: list[str] = []
        """Statuses of the first responses."""
        self.retry_after, self.slow_s, self.ids = "0", 0.0, list[str]()
        config = ServeConfig(max_body_bytes=2_000, timeout_s=0.5, allowed_hosts=("Shop", "*.svc.cluster.local"))
        self.told: list[NewEvent] = []
        app = ranking_app(config, LiveModel(on_refusal=lambda _: None), self.respond, keep=self.keep)

        @app.get("/fails")
        async def fails() -> None:
            raise ZeroDivisionError

        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}{prefix}"
        self.server = uvicorn.Server(uvicorn.Config(below(prefix, app), port=self.port, log_level="error"))
        threading.Thread(target=self.server.run, daemon=True).start()
        while not self.server.started:
            time.sleep(0.01)

    async def respond(self, requests: list[RankRequest], request_id: str) -> list[RankResponse]:
        self.ids.append(request_id)
        await self.answer()
        return [RESPONSE for _ in requests]

    async def keep(self, events: list[NewEvent]) -> EventsKept:
        await self.answer()
        self.told += events
        return EventsKept(accepted=len(events), duplicates=0, unknown_items=0, used=True)

    async def answer(self) -> None:
        self.calls += 1
        await asyncio.sleep(self.slow_s)
        if self.refusals:
            headers = {"retry-after": self.retry_after, "cache-control": "max-age=9"}
            raise HTTPException(self.refusals.pop(0), "later", headers)

    def post(self, content: Any = BODY, path: str = "v1/rank", **headers: str | bytes) -> httpx.Response:
        """The response to a body that is said to be JSON, unless `content_type` says otherwise."""
        sent = {"content_type": "application/json"} | headers
        encoded = {k.replace("_", "-").encode(): v.encode() if isinstance(v, str) else v for k, v in sent.items()}
        return httpx.post(f"{self.address}/{path}", content=content, headers=encoded)


def below(prefix: str, app: ASGIApp) -> ASGIApp:
    """As Ray Serve calls an application that has a route prefix: the path is whole, the prefix is the root path."""

    async def prefixed(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "root_path": prefix} if scope["type"] == "http" else scope, receive, send)

    return prefixed


@pytest.fixture(params=["", "/ranker"])
def server(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Server]:
    monkeypatch.delenv(api_token.VARIABLE, raising=False)
    started = Server(request.param)
    yield started
    started.server.should_exit = True


class Served:
    """A bundle below export/, where codes for it may lie beside."""

    def __init__(self, world: World, root: Path, **model: Any):
        self.root = root
        self.published = publish_bundle(world, root / "published", **model)
        self.bundle = self.copy("b1")
        self.codes = root / "codes" / "b1"

    def copy(self, name: str) -> Path:
        """The same bundle as another version."""
        folder = Path(shutil.copytree(str(self.published.output.folder), self.root / "export" / name))
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(manifest | {"fingerprint": name}))
        return folder

    def refresh(self, name: str, user: str, bundle: str = "b1") -> None:
        """Codes with one user's flipped, and the pointer to them."""
        codes = flip_code(read_codes(self.bundle), user)
        publish_codes(self.published.output, self.root / "codes" / bundle / name, codes)
        self.point_to(name, bundle)

    def point_to(self, name: str, bundle: str = "b1") -> None:
        pointer = storage.path(self.root / "codes" / bundle / "latest.json")
        storage.write_bytes(pointer, json.dumps({"codes": name}).encode())


@pytest.fixture
def served(world: World, tmp_path: Path) -> Served:
    return Served(world, tmp_path)


Steps = Callable[[LiveModel], Coroutine[Any, Any, None]]


def count_refusals(steps: Steps, allow_backbones: Sequence[str] = ()) -> int:
    """The number of refusals in the course of these steps; each says which version stays in service."""
    refusals: list[str] = []

    async def run() -> None:
        await steps(LiveModel(refusals.append, allow_backbones))

    asyncio.run(run())
    assert all(refusals)
    return len(refusals)


def versions(live: LiveModel) -> tuple[str, str]:
    """Of the model and of its codes, as a response has them."""
    response = live.ranker.rank(rank_request())
    return response.model_version, response.knowledge_version
