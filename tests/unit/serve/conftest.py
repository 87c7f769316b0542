"""A real server with a small application behind our middleware; bundles, and codes beside them."""

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
from fastapi.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from llm4msr import storage
from llm4msr.bundle.messages import RankBatchRequest, RankRequest, RankResponse, Unknown
from llm4msr.config import ServeConfig
from llm4msr.serve import api_token
from llm4msr.serve.live_model import LiveModel
from llm4msr.serve.web_app import RequestId, web_app
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
    """A small application behind `web_app`, on a port of its own."""

    def __init__(self, prefix: str = "") -> None:
        self.calls = 0
        self.refusals: list[int] = []
        """Statuses of the first responses of /v1/rank."""
        self.retry_after, self.slow_s, self.ids = "0", 0.0, list[str]()
        app = web_app(ServeConfig(max_body_bytes=2_000, timeout_s=0.5, allowed_hosts=("Shop", "*.svc.cluster.local")))

        @app.post("/v1/rank")
        async def rank(body: RankRequest, x_request_id: RequestId = "") -> Response:
            self.calls += 1
            self.ids.append(x_request_id)
            await asyncio.sleep(self.slow_s)
            if self.refusals:
                headers = {"retry-after": self.retry_after, "cache-control": "max-age=9"}
                return Response("later", self.refusals.pop(0), headers=headers)
            return Response(RESPONSE.model_dump_json(), media_type="application/json")

        @app.post("/v1/rank:batch")
        async def rank_batch(body: RankBatchRequest) -> int:
            return len(body.requests)

        @app.get("/fails")
        async def fails() -> None:
            raise ZeroDivisionError

        @app.get("/healthz")
        async def healthz() -> dict[str, str]:
            return {"status": "ok"}

        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}{prefix}"
        self.server = uvicorn.Server(uvicorn.Config(below(prefix, app), port=self.port, log_level="error"))
        threading.Thread(target=self.server.run, daemon=True).start()
        while not self.server.started:
            time.sleep(0.01)

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
    """The number of refusals in the course of these steps."""
    refusals: list[int] = []

    async def run() -> None:
        await steps(LiveModel(lambda: refusals.append(1), allow_backbones))

    asyncio.run(run())
    return len(refusals)


def versions(live: LiveModel) -> tuple[str, str]:
    """Of the model and of its codes, as a response has them."""
    response = live.ranker.rank(rank_request())
    return response.model_version, response.knowledge_version
