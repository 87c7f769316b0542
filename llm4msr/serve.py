"""The ranker behind Ray Serve: HTTP in, scores out, no LLM in the path."""

import asyncio
import gc
import socket
import time
from typing import Any, NamedTuple

import torch
from fastapi import FastAPI, HTTPException
from fastapi.responses import Response

from llm4msr import session
from llm4msr.api import ModelInfo, RankBatchRequest, RankBatchResponse, RankRequest, RankResponse
from llm4msr.config import Config, ServeConfig
from llm4msr.errors import ConfigError
from llm4msr.explain import check_explainable
from llm4msr.export import exported
from llm4msr.gates import require_token, token
from llm4msr.live_model import LiveModel
from llm4msr.rank import Ranker
from llm4msr.serve_metrics import ServeMetrics
from llm4msr.web import REFUSALS, RequestId, web_app

APP, DEPLOYMENT = "llm4msr", "ranker"


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

    scaling: dict[str, Any] = {"num_replicas": config.replicas}
    if config.max_replicas > config.replicas:
        scaling = {"autoscaling_config": {"min_replicas": config.replicas, "max_replicas": config.max_replicas}}
    deployment: Any = serve.deployment(
        name=DEPLOYMENT,
        user_config={"bundle": bundle_uri},
        max_ongoing_requests=config.max_ongoing_requests,
        max_queued_requests=config.max_queued_requests,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        ray_actor_options={"num_cpus": 1},
        **scaling,
    )(replica(web_app(config), config))
    return deployment.bind(token_required)


def replica(app: FastAPI, config: ServeConfig) -> Any:
    """The class of a replica, with its routes on `app`."""
    from ray import serve

    @serve.ingress(app)
    class Replica:
        def __init__(self, token_required: bool) -> None:
            require_token(token_required)
            torch.set_num_threads(1)
            self.metrics = ServeMetrics()
            self.live = LiveModel(on_refusal=self.metrics.refused.inc)

        async def reconfigure(self, wanted: dict[str, str]) -> None:
            """What Ray Serve calls with `user_config`: at the start, and when it was changed and deployed again."""
            if await self.live.load(wanted["bundle"]):
                gc.collect()
                gc.freeze()  # what was loaded stays: no pause in the midst of requests to look through it
            self.live.follow(config.follow_s)

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
            responses = iter(self.live.ranker.rank_many(requests, ids) if requests else [])
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
                self.live.ranker.check(request)
            try:
                async with asyncio.timeout(config.timeout_s):
                    return await self.ranked(Waiting(requests, request_id, time.monotonic()))
            except TimeoutError:
                raise HTTPException(status_code=504, detail=f"no answer within {config.timeout_s:g} s") from None

        @app.post("/v1/rank", response_model=RankResponse, responses=REFUSALS)
        async def rank(self, body: RankRequest, x_request_id: RequestId = "") -> Response:
            """Rank items for a user in a scenario."""
            (answer,) = await self.answered([body], x_request_id)
            return Response(answer.model_dump_json(), media_type="application/json")

        @app.post("/v1/rank:batch", response_model=RankBatchResponse, responses=REFUSALS)
        async def rank_batch(self, body: RankBatchRequest, x_request_id: RequestId = "") -> Response:
            """Rank several requests at once; their candidates together count against the limit."""
            answers = await self.answered(body.requests, x_request_id)
            whole = RankBatchResponse.model_construct(responses=answers)
            return Response(whole.model_dump_json(), media_type="application/json")

        @app.get("/v1/model")
        async def model(self) -> ModelInfo:
            """What is being served."""
            return self.live.ranker.info().model_copy(update={"problem": self.live.problem})

        @app.get("/healthz")
        async def healthz(self) -> dict[str, str]:
            """This replica answers."""
            return {"status": "ok"}

        @app.get("/readyz")
        async def readyz(self) -> dict[str, str]:
            """This replica has loaded its bundle."""
            return {"status": "ready", "model_version": self.live.ranker.model_version}

    return Replica


def build(args: ServeConfig) -> Any:
    """For `serve deploy` and KubeRay's RayService: `import_path: llm4msr.serve:build`, the keys of [serve] as args.

    Raises:
        ConfigError: no bundle is named, or the explorer is asked for, which needs a whole config.
    """
    if args.explore:
        raise ConfigError(
            "args: 'explore' shows the run of a config; use `llm4msr serve CONFIG --set serve.explore=true`"
        )
    if not args.bundle:
        raise ConfigError("args: 'bundle' is missing; give the uri that `llm4msr export` printed")
    return application(args.bundle, args, token_required=bool(token()))


def openapi() -> dict[str, Any]:
    """The routes' description, as `/openapi.json` gives it; `web.OPENAPI` is its committed copy."""
    app = web_app(ServeConfig())
    replica(app, ServeConfig())
    return app.openapi()


def start(config: Config) -> str:
    """Serve this config's bundle in the background; gives back the endpoint's address.

    Raises:
        ConfigError: nothing is exported yet, or the port is taken.
        StorageError: the bundle cannot be read or is damaged.
    """
    from ray import serve

    uri = config.serve.bundle or str(exported(config).folder)
    if config.serve.explore:
        check_explainable(config)
    _refuse_taken_port(config.serve)
    Ranker.load(uri)  # a bundle that cannot be loaded is told here, in one line, and not by every replica
    session.connect()
    logs = {"log_level": "INFO" if config.serve.access_log else "WARNING", "enable_access_log": config.serve.access_log}
    http = {"host": config.serve.host, "port": config.serve.port}
    serve.start(proxy_location="HeadOnly", http_options=http, logging_config=logs)
    app = application(uri, config.serve, token_required=bool(token()))
    serve.run(app, name=APP, route_prefix="/", logging_config=logs)
    if config.serve.explore:
        from llm4msr.explorer import app as explorer

        page = explorer.application(config, token_required=bool(token()))
        serve.run(page, name=explorer.NAME, route_prefix=explorer.PREFIX, logging_config=logs)
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
