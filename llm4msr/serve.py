"""The ranker behind Ray Serve: HTTP in, scores out, no LLM in the path.

A replica holds one `Ranker` and swaps it as a whole: for another bundle when Ray Serve hands it a new `user_config`,
for newer users' codes when `llm4msr refresh` has published some. A request keeps the one it began with.
"""

import asyncio
import logging
import os
import random
import socket
import time
from typing import Any, NamedTuple

import torch
from fastapi import HTTPException
from fastapi.responses import Response

from llm4msr import session
from llm4msr.api import TOKEN, ModelInfo, RankBatchRequest, RankBatchResponse, RankRequest, RankResponse
from llm4msr.config import Config, ServeConfig
from llm4msr.errors import ConfigError, LLM4MSRError
from llm4msr.export import exported
from llm4msr.rank import Ranker
from llm4msr.refresh import latest
from llm4msr.serve_metrics import ServeMetrics
from llm4msr.web import RequestId, web_app

APP, DEPLOYMENT = "llm4msr", "ranker"
log = logging.getLogger("ray.serve")


class Waiting(NamedTuple):
    """The requests of one HTTP call, ranked together by one and the same model."""

    requests: list[RankRequest]
    request_id: str
    arrived: float
    """Seconds, monotonic."""


def application(bundle_uri: str, config: ServeConfig, token_required: bool = False) -> Any:
    """The Ray Serve application that serves a bundle."""
    from ray import serve
    from ray.serve.config import BackpressureConfig

    app = web_app(config)
    scaling: dict[str, Any] = {"num_replicas": config.replicas}
    if config.max_replicas > config.replicas:
        scaling = {"autoscaling_config": {"min_replicas": config.replicas, "max_replicas": config.max_replicas}}

    @serve.deployment(
        name=DEPLOYMENT,
        user_config={"bundle": bundle_uri},
        max_ongoing_requests=config.max_ongoing_requests,
        max_queued_requests=config.max_queued_requests,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        ray_actor_options={"num_cpus": 1},
        **scaling,
    )
    @serve.ingress(app)
    class RankerDeployment:
        def __init__(self) -> None:
            if token_required and not os.environ.get(TOKEN):
                raise ConfigError(f"{TOKEN} is set where this was started but not on this node; set it on every node")
            torch.set_num_threads(1)
            self.metrics = ServeMetrics()
            self.ranker: Ranker | None = None
            self.bundle = self.codes = self.problem = ""
            self.following: asyncio.Task[None] | None = None

        async def reconfigure(self, wanted: dict[str, str]) -> None:
            """Load a bundle aside and swap; one that cannot be loaded leaves the old one in service, and says so."""
            try:
                ranker = await asyncio.to_thread(Ranker.load, wanted["bundle"])
            except LLM4MSRError as error:
                if self.ranker is None:
                    raise
                self._not_served(error)
                return
            self.ranker, self.bundle, self.codes, self.problem = ranker, wanted["bundle"], "", ""
            await self.take_codes()
            if self.following is None and config.follow_s:
                self.following = asyncio.create_task(self.follow())

        async def follow(self) -> None:
            """Look for newer codes now and then, each replica at its own moments."""
            while True:
                await asyncio.sleep(config.follow_s * random.uniform(0.8, 1.2))
                await self.take_codes()

        async def take_codes(self) -> None:
            """Swap to the codes that the bundle's endpoints shall use."""
            model, bundle = self.loaded(), self.bundle
            try:
                wanted = await asyncio.to_thread(latest, bundle)
                if wanted == self.codes:
                    return
                newer = await asyncio.to_thread(model.with_codes, wanted)
            except Exception as error:  # a store that cannot be reached now: the replica serves on, and tries again
                self._not_served(error)
                return
            if self.bundle == bundle:  # else another bundle came meanwhile, and looks for codes of its own
                self.ranker, self.codes, self.problem = newer, wanted, ""

        def _not_served(self, error: Exception) -> None:
            self.problem = f"{type(error).__name__}: {error}"[:1000]
            self.metrics.refused.inc()
            log.error(f"still serving {self.loaded().model_version}: {self.problem}")

        def loaded(self) -> Ranker:
            """The ranker in service."""
            assert self.ranker is not None, "Ray Serve configures a replica before any request"
            return self.ranker

        @serve.batch(
            max_batch_size=max(config.batch_candidates, config.max_candidates),
            batch_wait_timeout_s=0.0,
            batch_size_fn=lambda calls: sum(len(r.items) for call in calls for r in call.requests),
        )
        async def ranked(self, calls: list[Waiting]) -> list[list[RankResponse]]:
            """Score what waits in one go; a call that has waited too long is answered by nobody, so it is left out."""
            begun = time.monotonic()
            due = [call if begun - call.arrived < config.timeout_s else call._replace(requests=[]) for call in calls]
            requests = [request for call in due for request in call.requests]
            ids = [call.request_id for call in due for _ in call.requests]
            responses = iter(self.loaded().rank_many(requests, ids) if requests else [])
            answers = [[next(responses) for _ in call.requests] for call in due]
            self.metrics.batch(due, begun, answers)
            return answers

        async def answered(self, requests: list[RankRequest], request_id: str) -> list[RankResponse]:
            """Refuse what is too much or cannot be understood, then wait for the answer."""
            candidates = sum(len(request.items) for request in requests)
            if candidates > config.max_candidates:
                allowed = f"{candidates} candidates, allowed are {config.max_candidates}; send fewer at once"
                raise HTTPException(status_code=413, detail=allowed)
            for request in requests:
                self.loaded().check(request)
            arrived = time.monotonic()
            try:
                async with asyncio.timeout(config.timeout_s):
                    return await self.ranked(Waiting(requests, request_id, arrived))
            except TimeoutError:
                raise HTTPException(status_code=504, detail=f"no answer within {config.timeout_s:g} s") from None

        @app.post("/v1/rank", response_model=RankResponse)
        async def rank(self, body: RankRequest, x_request_id: RequestId = "") -> Response:
            """Rank items for a user in a scenario."""
            (answer,) = await self.answered([body], x_request_id)
            return Response(answer.model_dump_json(), media_type="application/json")

        @app.post("/v1/rank:batch", response_model=RankBatchResponse)
        async def rank_batch(self, body: RankBatchRequest, x_request_id: RequestId = "") -> Response:
            """Rank several requests at once; their candidates together count against the limit."""
            answers = await self.answered(body.requests, x_request_id)
            whole = RankBatchResponse.model_construct(responses=answers)
            return Response(whole.model_dump_json(), media_type="application/json")

        @app.get("/v1/model")
        async def model(self) -> ModelInfo:
            """What is being served."""
            return self.loaded().info().model_copy(update={"problem": self.problem})

        @app.get("/healthz")
        async def healthz(self) -> dict[str, str]:
            """This replica answers."""
            return {"status": "ok"}

        @app.get("/readyz")
        async def readyz(self) -> dict[str, str]:
            """This replica has loaded its bundle."""
            return {"status": "ready", "model_version": self.loaded().model_version}

    deployment: Any = RankerDeployment
    return deployment.bind()


def build(args: ServeConfig) -> Any:
    """For `serve deploy` and KubeRay's RayService: `import_path: llm4msr.serve:build`, the keys of [serve] as args.

    Raises:
        ConfigError: no bundle is named.
    """
    if not args.bundle:
        raise ConfigError("args: 'bundle' is missing; give the uri that `llm4msr export` printed")
    return application(args.bundle, args)


def start(config: Config) -> str:
    """Serve this config's bundle in the background; gives back the endpoint's address.

    Raises:
        ConfigError: nothing is exported yet, or the port is taken.
        StorageError: the bundle cannot be read or is damaged.
    """
    from ray import serve

    uri = config.serve.bundle or str(exported(config).folder)
    _refuse_taken_port(config.serve)
    Ranker.load(uri)  # a bundle that cannot be loaded is told here, in one line, and not by every replica
    session.connect()
    logs = {"log_level": "INFO" if config.serve.access_log else "WARNING", "enable_access_log": config.serve.access_log}
    http = {"host": config.serve.host, "port": config.serve.port}
    serve.start(proxy_location="HeadOnly", http_options=http, logging_config=logs)
    app = application(uri, config.serve, token_required=bool(os.environ.get(TOKEN)))
    serve.run(app, name=APP, route_prefix="/", logging_config=logs)
    return f"http://{config.serve.host}:{config.serve.port}"


def _refuse_taken_port(config: ServeConfig) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.host, config.port))
        except OSError as error:
            where = f"{config.host}:{config.port}"
            raise ConfigError(
                f"cannot serve at {where}: {error.strerror}; choose another with --set serve.port="
            ) from None


def stop() -> None:
    """End what `start` began."""
    from ray import serve

    serve.shutdown()
