"""One replica of the ranker behind Ray Serve: its model, its limits, and what it counts.

What requests and responses hold is defined in `bundle/messages.py`, for Python and HTTP alike: a new field goes there.
"""

import asyncio
import gc
import time
from collections.abc import Sequence
from typing import Any

import torch
from fastapi import FastAPI, HTTPException
from threadpoolctl import threadpool_limits

from llm4msr.bundle.messages import RankRequest, RankResponse
from llm4msr.bundle.ranker import Ranker, Scored
from llm4msr.config import ServeConfig
from llm4msr.serve import api_token
from llm4msr.serve.events import Events
from llm4msr.serve.live_model import LiveModel
from llm4msr.serve.metrics import ServeMetrics
from llm4msr.serve.request_log import RequestLog
from llm4msr.serve.routes import ranking_app
from llm4msr.serve.second import Second

READS = 8
"""Rounds of the event loop before a request is ranked, in each of which uvloop accepts one connection."""


SECOND_S = 120.0
"""A replica that starts waits so long for its second bundle; until that is there, the first one ranks for all."""


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
        self.second = Second(self.live, self.metrics, config)
        self.events = Events(event_log, config, self.live, self.metrics) if event_log is not None else None
        self.log = RequestLog(config.log, self.metrics) if config.log.folder else None
        self._turn = asyncio.Lock()

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Ray Serve calls this at the start, and when a new `user_config` was deployed."""
        has_changed = await self.live.load(user_config["bundle"])
        self.live.follow(self.config.follow_s)
        second = asyncio.create_task(self.second.configure(user_config.get("second")))
        await asyncio.wait([second], timeout=SECOND_S)  # else the first bundle would wait for a store that hangs
        has_changed |= second.done() and second.result()
        if self.events is not None:
            await self.events.start()
        if self.log is not None:
            self.log.start()
        if has_changed:
            gc.collect()
            gc.freeze()  # what was loaded stays, so no request pauses for a walk through it

    async def respond(self, requests: list[RankRequest], request_id: str) -> list[RankResponse]:
        """Rank the requests of one call, all of the users of one bundle by the same model.

        Raises:
            HTTPException: 413, too many candidates; 422, too long a history.
            ConfigError: a context field that the model was not trained with.
        """
        candidates = sum(len(request.items) for request in requests)
        if candidates > self.config.max_candidates:
            message = f"{candidates} candidates, allowed are {self.config.max_candidates}; send fewer at once"
            raise HTTPException(413, message)
        rankers = [self.second.ranker_for(request.user_id) for request in requests]
        for request, ranker in zip(requests, rankers, strict=True):
            if (events := len(request.history)) > self.config.max_history:
                message = f"history: {events} events, allowed are {self.config.max_history}; send the newest ones"
                raise HTTPException(422, message)
            ranker.check(request)
        async with self._turn:
            for _ in range(READS):
                await asyncio.sleep(0)
            responses: dict[int, RankResponse] = {}
            for ranker in dict.fromkeys(rankers):
                places = [at for at, one in enumerate(rankers) if one is ranker]
                part = [requests[at] for at in places]
                scored: list[Scored] | None = [] if self.log is not None else None
                ranked, seconds = self._rank(ranker, part, request_id, scored)
                if self.log is not None and scored is not None:
                    self.log.add(part, ranked, scored, ranker)
                self.metrics.observe(ranker.model_version, seconds, sum(len(one.items) for one in part), ranked)
                responses.update(zip(places, ranked, strict=True))
        answers = [responses[at] for at in range(len(requests))]
        self.second.compare(requests, answers, self._rank_unseen)
        return answers

    async def _rank_unseen(self, ranker: Ranker, requests: Sequence[RankRequest]) -> tuple[list[RankResponse], float]:
        async with self._turn:
            for _ in range(READS):
                await asyncio.sleep(0)
            return self._rank(ranker, requests, "unseen")

    def _rank(
        self, ranker: Ranker, requests: Sequence[RankRequest], request_id: str, scored: list[Scored] | None = None
    ) -> tuple[list[RankResponse], float]:
        """The lists, and how many seconds they took; `scored` as in `Ranker.rank_many`."""
        begun = time.monotonic()
        recent = codes = None
        if self.events is not None and ranker.knowledge.reads_history:
            recent = [self.events.of(request.user_id) for request in requests]
        if self.events is not None:
            codes = [self.events.code_of(request.user_id, ranker.knowledge.coder) for request in requests]
        responses = ranker.rank_many(requests, [request_id] * len(requests), recent, codes, scored)
        return responses, time.monotonic() - begun


def replica_class(config: ServeConfig) -> Any:
    """The class that Ray Serve makes replicas of."""
    from ray import serve

    @serve.ingress()
    class HTTPReplica(Replica):
        def __init__(self, token_required: bool, event_log: Any = None) -> None:
            super().__init__(config, token_required, event_log)

        def __del__(self) -> None:
            """Ray Serve calls this once when the replica ends in peace."""
            if (log := getattr(self, "log", None)) is not None:
                log.close()

        def __serve_build_asgi_app__(self) -> FastAPI:
            events = (self.events.keep, self.events.forget) if self.events is not None else ()
            return ranking_app(config, self.live, self.respond, self.second, *events)

    return HTTPReplica
