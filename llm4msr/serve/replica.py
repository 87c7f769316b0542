"""One replica of the ranker behind Ray Serve: its routes, the batches in which it scores, and the model it has."""

import asyncio
import gc
import time
from typing import Any, NamedTuple

import torch
from fastapi import FastAPI, HTTPException
from fastapi.responses import Response

from llm4msr.bundle.messages import ModelInfo, RankBatchRequest, RankBatchResponse, RankRequest, RankResponse
from llm4msr.config import ServeConfig
from llm4msr.serve.gates import require_token
from llm4msr.serve.live_model import LiveModel
from llm4msr.serve.metrics import ServeMetrics
from llm4msr.serve.middleware import REFUSALS, RequestId


class Waiting(NamedTuple):
    """The requests of one HTTP call, ranked together by one and the same model."""

    requests: list[RankRequest]
    request_id: str
    arrived: float
    """Seconds, monotonic."""


def replica(app: FastAPI, config: ServeConfig) -> Any:
    """The class of a replica, with its routes on `app`."""
    from ray import serve

    @serve.ingress(app)
    class Replica:
        def __init__(self, token_required: bool) -> None:
            require_token(token_required)
            torch.set_num_threads(1)
            self.metrics = ServeMetrics()
            self.live = LiveModel(self.metrics.refused.inc, config.allow_backbones)

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
