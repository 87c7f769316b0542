"""One replica of the ranker behind Ray Serve: its model, its limits, and what it counts.

What requests and responses hold is defined in `bundle/messages.py`, for Python and HTTP alike: a new field goes there.
"""

import asyncio
import gc
import time
from typing import Any

import torch
from fastapi import FastAPI, HTTPException
from threadpoolctl import threadpool_limits

from llm4msr.bundle.messages import RankRequest, RankResponse
from llm4msr.config import ServeConfig
from llm4msr.serve import api_token
from llm4msr.serve.events import Events
from llm4msr.serve.live_model import LiveModel
from llm4msr.serve.metrics import ServeMetrics
from llm4msr.serve.routes import ranking_app

READS = 8
"""Rounds of the event loop before a request is ranked, in each of which uvloop accepts one connection."""


class Replica:
    """What a replica does apart from HTTP.

    It ranks in the event loop that also reads requests, as `app.ONE_LOOP` asks of Ray Serve, so it ranks one at a time,
    and reads what has come before each. Else requests would wait in sockets, where Ray Serve sees neither how many
    there are, to refuse some, nor that their deadline is over.
    """

    def __init__(self, config: ServeConfig, token_required: bool, event_log: Any = None) -> None:
        api_token.check_node(token_required)
        torch.set_num_threads(1)
        threadpool_limits(1)  # of numpy's products too: a replica is one CPU
        self.config = config
        self.metrics = ServeMetrics()
        self.live = LiveModel(self.metrics.refused, config.allow_backbones)
        self.events = Events(event_log, config, self.live, self.metrics) if event_log is not None else None
        self._turn = asyncio.Lock()

    async def reconfigure(self, user_config: dict[str, str]) -> None:
        """Ray Serve calls this at the start, and when a new `user_config` was deployed."""
        has_changed = await self.live.load(user_config["bundle"])
        self.live.follow(self.config.follow_s)
        if self.events is not None:
            await self.events.start()
        if has_changed:
            gc.collect()
            gc.freeze()  # what was loaded stays, so no request pauses for a walk through it

    async def respond(self, requests: list[RankRequest], request_id: str) -> list[RankResponse]:
        """Rank the requests of one call, all by the same model.

        Raises:
            HTTPException: 413, too many candidates; 422, too long a history.
            ConfigError: a context field that the model was not trained with.
        """
        ranker = self.live.ranker
        candidates = sum(len(request.items) for request in requests)
        if candidates > self.config.max_candidates:
            message = f"{candidates} candidates, allowed are {self.config.max_candidates}; send fewer at once"
            raise HTTPException(413, message)
        for request in requests:
            if (events := len(request.history)) > self.config.max_history:
                message = f"history: {events} events, allowed are {self.config.max_history}; send the newest ones"
                raise HTTPException(422, message)
            ranker.check(request)
        async with self._turn:
            for _ in range(READS):
                await asyncio.sleep(0)
            begun = time.monotonic()
            recent = codes = None
            if self.events is not None and ranker.knowledge.reads_history:
                recent = [self.events.of(request.user_id) for request in requests]
            if self.events is not None:
                codes = [self.events.code_of(request.user_id) for request in requests]
            responses = ranker.rank_many(requests, [request_id] * len(requests), recent, codes)
            self.metrics.observe(ranker.model_version, time.monotonic() - begun, candidates, responses)
            return responses


def replica_class(config: ServeConfig) -> Any:
    """The class that Ray Serve makes replicas of."""
    from ray import serve

    @serve.ingress()
    class HTTPReplica(Replica):
        def __init__(self, token_required: bool, event_log: Any = None) -> None:
            super().__init__(config, token_required, event_log)

        def __serve_build_asgi_app__(self) -> FastAPI:
            events = (self.events.keep, self.events.forget) if self.events is not None else ()
            return ranking_app(config, self.live, self.respond, *events)

    return HTTPReplica
