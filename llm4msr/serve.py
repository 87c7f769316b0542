"""The ranker behind Ray Serve: HTTP in, scores out, no LLM in the path."""

import socket
from typing import Annotated, Any

from fastapi import FastAPI, Header, HTTPException, Request
from fastapi.responses import JSONResponse

from llm4msr import session
from llm4msr.api import ModelInfo, RankBatchRequest, RankBatchResponse, RankRequest, RankResponse
from llm4msr.bundle import Ranker
from llm4msr.config import Config, ServeConfig
from llm4msr.errors import ConfigError
from llm4msr.export import exported

APP = "llm4msr"
RequestId = Annotated[str, Header(max_length=128)]
"""Ray Serve gives every request an id, the client's own X-Request-ID where there is one, and sends it back."""


def web_app() -> FastAPI:
    """Routes and their documents, without a model behind them."""
    app = FastAPI(title="llm4msr", version="1", description="A multi-scenario ranker with LLM knowledge.")

    @app.exception_handler(ConfigError)
    async def bad_request(request: Request, error: ConfigError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, status_code=422)

    return app


class RankerService:
    """One replica: a loaded bundle and the routes. Ray Serve makes it a deployment in `application`."""

    def __init__(self, bundle_uri: str, max_candidates: int):
        self.ranker = Ranker.load(bundle_uri)
        self.max_candidates = max_candidates

    def rank(self, body: RankRequest, request_id: str = "") -> RankResponse:
        """Rank one request, if it is not too large."""
        self._refuse_too_many(len(body.items))
        return self.ranker.rank(body, request_id)

    def rank_batch(self, body: RankBatchRequest, request_id: str = "") -> RankBatchResponse:
        """Rank several requests; their candidates together count against the limit."""
        self._refuse_too_many(sum(len(one.items) for one in body.requests))
        return RankBatchResponse(responses=[self.ranker.rank(one, request_id) for one in body.requests])

    def _refuse_too_many(self, candidates: int) -> None:
        if candidates > self.max_candidates:
            allowed = f"{candidates} candidates, allowed are {self.max_candidates}; send fewer at once"
            raise HTTPException(status_code=413, detail=allowed)


def application(bundle_uri: str, config: ServeConfig) -> Any:
    """The Ray Serve application that serves a bundle."""
    from ray import serve
    from ray.serve.config import BackpressureConfig

    app = web_app()

    @serve.deployment(
        name="ranker",
        num_replicas=config.replicas,
        max_ongoing_requests=64,
        max_queued_requests=config.max_queued_requests,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        ray_actor_options={"num_cpus": 1},
    )
    @serve.ingress(app)
    class RankerDeployment:
        def __init__(self, uri: str, max_candidates: int):
            self.service = RankerService(uri, max_candidates)

        @app.post("/v1/rank")
        def rank(self, body: RankRequest, x_request_id: RequestId = "") -> RankResponse:
            """Rank items for a user in a scenario."""
            return self.service.rank(body, x_request_id)

        @app.post("/v1/rank:batch")
        def rank_batch(self, body: RankBatchRequest, x_request_id: RequestId = "") -> RankBatchResponse:
            """Rank several requests at once."""
            return self.service.rank_batch(body, x_request_id)

        @app.get("/v1/model")
        def model(self) -> ModelInfo:
            """What is being served."""
            return self.service.ranker.info()

        @app.get("/healthz")
        def healthz(self) -> dict[str, str]:
            """This replica answers."""
            return {"status": "ok"}

        @app.get("/readyz")
        def readyz(self) -> dict[str, str]:
            """This replica has loaded its bundle."""
            return {"status": "ready", "model_version": self.service.ranker.model_version}

    deployment: Any = RankerDeployment
    return deployment.bind(bundle_uri, config.max_candidates)


def start(config: Config) -> str:
    """Serve the exported bundle of this config in the background; gives back the endpoint's address.

    Raises:
        ConfigError: nothing is exported yet, or the port is taken.
        StorageError: the bundle cannot be read or is damaged.
    """
    from ray import serve

    uri = str(exported(config).folder)
    _refuse_taken_port(config.serve)
    session.connect()
    Ranker.load(uri)  # a bundle that cannot be loaded is told here, in one line, and not by every replica
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": config.serve.host, "port": config.serve.port},
        logging_config=_quiet(),
    )
    serve.run(application(uri, config.serve), name=APP, route_prefix="/", logging_config=_quiet())
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


def _quiet() -> dict[str, Any]:
    return {"log_level": "WARNING", "enable_access_log": False}


def stop() -> None:
    """End what `start` began."""
    from ray import serve

    serve.shutdown()
