"""One replica of the ranker behind Ray Serve: its model, the batches in which it scores, and its routes.

What requests and responses hold is defined in `bundle/messages.py`, for Python and HTTP alike: a new field goes there.
"""

import asyncio
import gc
import time
from typing import Any, NamedTuple

import torch
from fastapi import FastAPI, HTTPException
from fastapi.responses import Response

from llm4msr.bundle.messages import ModelInfo, RankBatchRequest, RankBatchResponse, RankRequest, RankResponse
from llm4msr.config import ServeConfig
from llm4msr.serve import api_token
from llm4msr.serve.live_model import LiveModel
from llm4msr.serve.metrics import ServeMetrics
from llm4msr.serve.web_app import REFUSALS, RequestId


class Call(NamedTuple):
    """The requests of one HTTP call, ranked together by one and the same model."""

    requests: list[RankRequest]
    request_id: str
    arrived: float
    """Seconds, monotonic."""

    @property
    def candidates(self) -> int:
        """Items to score."""
        return sum(len(request.items) for request in self.requests)


class Replica:
    """What a replica does apart from HTTP."""

    def __init__(self, config: ServeConfig, token_required: bool) -> None:
        api_token.check_node(token_required)
        torch.set_num_threads(1)
        self.config = config
        self.metrics = ServeMetrics()
        self.live = LiveModel(self.metrics.refused.inc, config.allow_backbones)

    async def reconfigure(self, user_config: dict[str, str]) -> None:
        """Ray Serve calls this at the start, and when a new `user_config` was deployed."""
        if await self.live.load(user_config["bundle"]):
            gc.collect()
            gc.freeze()  # what was loaded stays, so no request pauses for a walk through it
        self.live.follow(self.config.follow_s)

    def check(self, call: Call) -> None:
        """Refuse what is too much, or what the model does not know.

        Raises:
            HTTPException: 413, too many candidates; 422, too long a history.
            ConfigError: a context field that the model was not trained with.
        """
        if call.candidates > self.config.max_candidates:
            message = f"{call.candidates} candidates, allowed are {self.config.max_candidates}; send fewer at once"
            raise HTTPException(status_code=413, detail=message)
        for request in call.requests:
            if (events := len(request.history)) > self.config.max_history:
                message = f"history: {events} events, allowed are {self.config.max_history}; send the newest ones"
                raise HTTPException(status_code=422, detail=message)
            self.live.ranker.check(request)

    def score(self, calls: list[Call]) -> list[list[RankResponse]]:
        """Score calls in one go. One that has waited too long gets no response: nobody waits for it any more."""
        begun = time.monotonic()
        in_time = [c if begun - c.arrived < self.config.timeout_s else c._replace(requests=[]) for c in calls]
        requests = [request for call in in_time for request in call.requests]
        ids = [call.request_id for call in in_time for _ in call.requests]
        ranked = iter(self.live.ranker.rank_many(requests, ids) if requests else [])
        responses = [[next(ranked) for _ in call.requests] for call in in_time]
        waits = [begun - call.arrived for call in in_time]
        self.metrics.observe_batch(begun, waits, [call.candidates for call in in_time], responses)
        return responses


def replica_class(app: FastAPI, config: ServeConfig) -> Any:
    """The class that Ray Serve makes replicas of, with its routes on `app`."""
    from ray import serve

    @serve.ingress(app)
    class HTTPReplica(Replica):
        def __init__(self, token_required: bool) -> None:
            super().__init__(config, token_required)

        @serve.batch(
            max_batch_size=max(config.batch_candidates, config.max_candidates),
            batch_wait_timeout_s=0.0,
            batch_size_fn=lambda calls: sum(call.candidates for call in calls),
        )
        async def score_batch(self, calls: list[Call]) -> list[list[RankResponse]]:
            return self.score(calls)

        async def respond(self, requests: list[RankRequest], request_id: str) -> list[RankResponse]:
            call = Call(requests, request_id, time.monotonic())
            self.check(call)
            try:
                async with asyncio.timeout(config.timeout_s):
                    return await self.score_batch(call)
            except TimeoutError:
                raise HTTPException(status_code=504, detail=f"no answer within {config.timeout_s:g} s") from None

        @app.post("/v1/rank", response_model=RankResponse, responses=REFUSALS)
        async def rank(self, body: RankRequest, x_request_id: RequestId = "") -> Response:
            """Rank items for a user in a scenario."""
            (response,) = await self.respond([body], x_request_id)
            return Response(response.model_dump_json(), media_type="application/json")

        @app.post("/v1/rank:batch", response_model=RankBatchResponse, responses=REFUSALS)
        async def rank_batch(self, body: RankBatchRequest, x_request_id: RequestId = "") -> Response:
            """Rank several requests at once; their candidates together count against the limit."""
            responses = await self.respond(body.requests, x_request_id)
            batch = RankBatchResponse.model_construct(responses=responses)
            return Response(batch.model_dump_json(), media_type="application/json")

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

    return HTTPReplica
