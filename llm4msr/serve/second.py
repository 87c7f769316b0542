"""A second bundle beside the first: it ranks for a share of the users, or for nobody, in the shadow of the first.

Whose it is follows from the user's id alone, so a user gets the same bundle from every replica on every day.
"""

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Sequence

from pydantic import ValidationError

from llm4msr.bundle.messages import RankRequest, RankResponse, SecondInfo
from llm4msr.bundle.ranker import Ranker
from llm4msr.config import SecondConfig, ServeConfig
from llm4msr.serve.live_model import LiveModel
from llm4msr.serve.metrics import ServeMetrics

log = logging.getLogger("ray.serve")

WAITING = 4
"""Calls that wait for the second bundle in the shadow; more are dropped, so that an overload gets no worse."""

Pair = tuple[RankRequest, RankResponse]
Rank = Callable[[Ranker, Sequence[RankRequest]], Awaitable[tuple[list[RankResponse], float]]]
"""Ranks when there is time, and says how many seconds that took."""


def is_among(user_id: str, share: float, salt: str) -> bool:
    """Whether a user is among a share of all, the same ones for each salt."""
    hashed = hashlib.blake2b(f"{salt}\0{user_id}".encode(), digest_size=8).digest()
    return int.from_bytes(hashed) < share * 2**64


class Second:
    """What a replica does with a second bundle, if it has one.

    Args:
        first: ranks for all others, and for all until the second one is loaded.
        metrics: of the replica.
        config: what holds where a `user_config` says nothing of a second bundle.
    """

    def __init__(self, first: LiveModel, metrics: ServeMetrics, config: ServeConfig):
        self._first, self._metrics, self._default = first, metrics, config
        self._config, self._refused = SecondConfig(), ""
        self._live: LiveModel | None = None
        self._swap = asyncio.Lock()
        self._comparing: set[asyncio.Task[None]] = set()

    @property
    def problem(self) -> str:
        """Why it is not the one that is wanted, empty where all is well."""
        problem = self._refused or (self._live.problem if self._live is not None else "")
        return f"second bundle: {problem}" if problem else ""

    def info(self) -> SecondInfo | None:
        """What it is; None where there is none."""
        if self._live is None:
            return None
        ranker, split = self._live.ranker, self._config
        is_loaded = ranker is not self._first.ranker
        return SecondInfo(
            model_version=ranker.model_version if is_loaded else "",
            knowledge_version=ranker.knowledge_version if is_loaded else "",
            share=split.share,
            shadow=split.shadow,
            salt=split.salt,
        )

    async def configure(self, given: object) -> bool:
        """Bring it into service as given, the keys of a `SecondConfig`; says whether a model has changed.

        Nothing that is wrong with it stops the first one: what was in service stays, and `problem` tells.
        """
        async with self._swap:
            try:
                wanted = self._default.second if given is None else SecondConfig.model_validate(given)
            except ValidationError as error:
                wrong = error.errors()[0]
                self._refused = f"second.{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}"[:1000]
                self._metrics.refused(self._first.ranker.model_version)
                log.error(self.problem)
                return False
            self._refused = f"{wanted.bundle} is being loaded"
            has_changed = await self._load(wanted.bundle)
            self._config, self._refused = wanted, ""
            return has_changed

    async def _load(self, bundle: str) -> bool:
        if not bundle:
            had_one = self._live is not None
            if self._live is not None:
                self._live.unfollow()
            self._live = None
            return had_one
        if self._live is None:
            self._live = LiveModel(self._metrics.refused, self._default.allow_backbones, otherwise=self._first)
        has_changed = await self._live.load(bundle)
        self._live.follow(self._default.follow_s)
        return has_changed

    def ranker_for(self, user_id: str) -> Ranker:
        """The one whose answer this user gets."""
        if self._live is None or self._config.shadow or not self._has(user_id):
            return self._first.ranker
        return self._live.ranker

    def _has(self, user_id: str) -> bool:
        return is_among(user_id, self._config.share, self._config.salt)

    def compare(self, requests: Sequence[RankRequest], responses: Sequence[RankResponse], rank: Rank) -> None:
        """In the shadow, have it rank for its users too, after this answer; what it says is counted, no more."""
        if self._live is None or not self._config.shadow or (ranker := self._live.ranker) is self._first.ranker:
            return
        pairs = [pair for pair in zip(requests, responses, strict=True) if self._has(pair[0].user_id)]
        if not pairs:
            return
        if len(self._comparing) >= WAITING:
            self._metrics.not_shadowed(ranker.model_version, "dropped", len(pairs))
            return
        task = asyncio.create_task(self._compare(ranker, pairs, rank))
        self._comparing.add(task)
        task.add_done_callback(self._comparing.discard)

    async def _compare(self, ranker: Ranker, pairs: Sequence[Pair], rank: Rank) -> None:
        try:
            others, seconds = await rank(ranker, [request.model_copy(update={"top_k": None}) for request, _ in pairs])
        except Exception as error:  # a backbone of somebody else's
            log.error(f"{ranker.model_version} in the shadow: {type(error).__name__}: {error}"[:1000])
            self._metrics.not_shadowed(ranker.model_version, "failed", len(pairs))
            return
        answers = [answer for _, answer in pairs]
        differences = [difference(one, other) for one, other in zip(answers, others, strict=True)]
        same = sum(one.ranked[0].item_id == other.ranked[0].item_id for one, other in zip(answers, others, strict=True))
        self._metrics.shadowed(ranker.model_version, seconds, differences, same)


def difference(answer: RankResponse, other: RankResponse) -> float:
    """Mean absolute difference of the scores in an answer from those of another, which has all its items."""
    score = {item.item_id: item.score for item in other.ranked}
    return sum(abs(score[item.item_id] - item.score) for item in answer.ranked) / len(answer.ranked)
