"""Events from clients to the log, and from the log to a replica that ranks by them; no ranking waits for either."""

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any

from fastapi import HTTPException

from llm4msr.arrays import Halves
from llm4msr.bundle.messages import EventsForgotten, EventsKept, NewEvent, RecentEvent
from llm4msr.config import ServeConfig
from llm4msr.serve.event_log import DAY, Page
from llm4msr.serve.live_model import LiveModel
from llm4msr.serve.metrics import ServeMetrics
from llm4msr.serve.recent_codes import RecentCodes
from llm4msr.serve.recent_events import RecentEvents

log = logging.getLogger("ray.serve")

FOLLOW_S = 0.2
"""Between two looks at the log."""
PAGE = 1_000
CATCH_UP_S = 60.0
"""A replica that starts waits so long for what the log has, and then ranks without the rest of it."""
AHEAD_S = 60.0
"""How much a client's clock may be ahead."""


class Events:
    """What a replica does with events.

    Args:
        event_log: a handle of the deployment that has the `EventLog`.
        config: its limits.
        live: the model in service.
        metrics: of the replica.
    """

    def __init__(self, event_log: Any, config: ServeConfig, live: LiveModel, metrics: ServeMetrics):
        self._log, self._live, self._metrics = event_log, live, metrics
        self._config, self._timeout_s = config, config.timeout_s
        self._codes = RecentCodes(config.recent_events)
        self._recent = RecentEvents(max(config.max_history, 1), config.recent_events, config.events_days)
        self._following: asyncio.Task[None] | None = None
        self._caught_up = False

    def of(self, user_id: str) -> Sequence[RecentEvent]:
        """The latest of a user, in the order of time."""
        return self._recent.of(user_id)

    def code_of(self, user_id: str, coder: str) -> Halves | None:
        """What an LLM has made of a user's events, for a model with this coder."""
        return self._codes.of(user_id, coder)

    async def keep(self, events: list[NewEvent]) -> EventsKept:
        """Log events.

        Raises:
            HTTPException: 422, one is in the future; 503, the log does not answer.
        """
        now, ranker = time.time(), self._live.ranker
        for place, event in enumerate(events):
            if event.time > now + AHEAD_S:
                message = "in the future; give seconds since 1970"
                where = ["body", "events", str(place), "time"]
                raise HTTPException(422, [{"loc": where, "msg": message, "type": "invalid"}])
        rows = [(e.event_id, e.user_id, e.item_id, e.scenario, e.liked, e.time) for e in events]
        accepted = await self._ask("append", rows, now)
        unknown = int((ranker.items.find_all([event.item_id for event in events]) < 0).sum())
        self._metrics.kept(ranker.model_version, accepted, len(events) - accepted)
        return EventsKept(
            accepted=accepted,
            duplicates=len(events) - accepted,
            unknown_items=unknown,
            used=ranker.knowledge.reads_history or self._config.nearline,
        )

    async def forget(self, user_ids: list[str]) -> EventsForgotten:
        """Delete all events of these users.

        Raises:
            HTTPException: 503, the log does not answer.
        """
        return EventsForgotten(deleted=await self._ask("forget", user_ids))

    async def _ask(self, method: str, *arguments: object) -> int:
        try:
            async with asyncio.timeout(self._timeout_s):
                answer: int = await getattr(self._log, method).remote(*arguments)
                return answer
        except Exception as error:  # it is being restarted, its disk is full, or its queue is
            log.error(f"the log of events: {type(error).__name__}: {error}"[:1000])
            raise HTTPException(503, "the log of events does not answer; send it again", {"retry-after": "1"}) from None

    async def start(self) -> None:
        """Read what the log has, and follow it from then on."""
        if self._following is not None:
            return
        self._following = asyncio.create_task(self._follow())
        for _ in range(int(CATCH_UP_S / FOLLOW_S)):
            if self._caught_up:
                break
            await asyncio.sleep(FOLLOW_S)

    async def _follow(self) -> None:
        failed = False
        while True:
            try:
                async with asyncio.timeout(self._timeout_s):
                    page: Page = await self._log.since.remote(
                        self._recent.sequence, PAGE, time.time(), self._codes.change
                    )
                has_more, failed = self._take(page), False
                if has_more:
                    continue
            except Exception as error:  # it is asked again until it answers
                if not failed:
                    log.error(f"ranking without newer events: {type(error).__name__}: {error}"[:1000])
                failed = True
            await asyncio.sleep(FOLLOW_S)

    def _take(self, page: Page) -> bool:
        """Says whether the log has more to read at once."""
        now, is_first = time.time(), page.epoch != self._recent.epoch
        dropped = self._recent.take(page, now)
        if is_first:
            self._codes.clear()
        else:
            self._codes.take(page.codes, now - self._config.events_days * DAY)
        self._caught_up &= not is_first  # what is read again arrived long ago: its delays say nothing
        delays = [now - event.arrived for event in page.events] if self._caught_up else []
        of_codes = [now - code.arrived for code in page.codes] if self._caught_up else []
        self._metrics.seen(self._live.ranker.model_version, delays, dropped, of_codes)
        has_more = is_first or PAGE in (len(page.events), len(page.codes))
        self._caught_up |= not has_more
        return has_more
