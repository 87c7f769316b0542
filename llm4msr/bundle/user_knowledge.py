"""What is known of the user of a request: a code and events, from the bundle and from what was told since.

A code is what the trained net made of the user's knowledge. Where it was pooled from items, it is made again from what
an endpoint or the request was told, with no LLM; so a user whom the bundle does not have is known from their first
clicks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from llm4msr.arrays import Array, Ints
from llm4msr.bundle.id_table import IdTable
from llm4msr.bundle.messages import HistoryEvent, KnowledgeSource, RankRequest, RecentEvent
from llm4msr.bundle.pasts import NOTHING, Events
from llm4msr.bundle.pooled_codes import PooledCodes


class Known(NamedTuple):
    """What is known of a user."""

    code_K: Array | None
    """None for who has none, and without user level."""
    events: Events
    source: KnowledgeSource
    left_out: int
    """Events of the request's history that do not count: their item is unknown."""


@dataclass(frozen=True)
class UserKnowledge:
    """Looks users up.

    Args:
        codes: by user id, as `code`.
        pasts: by user id, as `events`.
        has_codes: whether the model reads codes.
        has_match: whether it matches candidates with events.
        pooled: what makes codes from events; None where an LLM has read the users.
        scenarios: number of each known name.
        most: how many of a user's latest events count, for a match as for a code.
        made: when the pasts were published, in seconds since 1970: no later event is among them.
    """

    codes: IdTable
    pasts: IdTable
    has_codes: bool
    has_match: bool
    pooled: PooledCodes | None
    scenarios: Mapping[str, int]
    most: int
    made: float = 0.0

    @property
    def coder(self) -> str:
        """Checksum of what makes codes of vectors: no other coder's codes can be used."""
        return self.codes.metadata["coder"]

    @property
    def reads_history(self) -> bool:
        """Whether the history in a request counts, and what was told before it."""
        return self.has_match or self.pooled is not None

    def look_up(
        self, request: RankRequest, item_E: Ints, recent: Sequence[RecentEvent] = (), fresh_K: Array | None = None
    ) -> Known:
        """What is known of the request's user.

        Args:
            request: its history counts, after all else or alone.
            item_E: rows of the items of `recent` and then of the history, -1 for unknown ones.
            recent: what the user was said to have taken, in the order of time, as far as the request does not hide it.
            fresh_K: what an LLM has made of it, likewise; None for nothing.
        """
        fresh_K = None if request.history_mode == "replace" else fresh_K
        told = self._number(request.history, item_E[len(recent) :])
        stored = self._stored(request)
        newer = self._newer(stored, recent, item_E[: len(recent)])
        events = stored.extend(newer).extend(told).latest(self.most)
        if self.pooled is not None and (len(newer) or len(told) or request.history_mode == "replace"):
            code_K = self.pooled.encode(events)
        else:
            code_K = self._code(request.user_id) if fresh_K is None else fresh_K
        source: KnowledgeSource = "none"
        if len(told) and self.reads_history:
            source = "request"
        elif fresh_K is not None or (len(newer) and self.reads_history):
            source = "events"
        elif code_K is not None or (self.has_match and len(events)):
            source = "stored"
        return Known(code_K, events, source, len(request.history) - len(told))

    def _code(self, user_id: str) -> Array | None:
        place = self.codes.find(user_id) if self.has_codes else None
        return None if place is None else self.codes.numbers("code", place)

    def _stored(self, request: RankRequest) -> Events:
        place = self.pasts.find(request.user_id) if request.history_mode == "extend" else None
        return NOTHING if place is None else Events.unpack(place[0].lists["events"][place[1]])

    def _newer(self, stored: Events, recent: Sequence[RecentEvent], item_E: Ints) -> Events:
        """What the stored events do not have yet.

        They are a user's latest until some moment before they were published: of earlier events, all up to the last
        one that is among them were there already, or too old to be kept.
        """
        events = self._number(recent, item_E)
        if not len(events):
            return NOTHING
        may_be_stored_E = np.array([event.time < self.made for event in recent])[item_E >= 0]
        (is_stored,) = np.nonzero(may_be_stored_E & np.isin(events.pack().view(np.int64), stored.pack().view(np.int64)))
        return events.after(is_stored[-1] + 1) if len(is_stored) else events

    def _number(self, told: Sequence[HistoryEvent | RecentEvent], item_E: Ints) -> Events:
        """Those of known items; `item_E` are the rows of all."""
        if not len(item_E):
            return NOTHING
        scenario_E = np.array([self.scenarios.get(event.scenario, 0) for event in told])
        liked_E, known_E = np.array([event.liked for event in told]), item_E >= 0
        return Events(item_E[known_E], scenario_E[known_E], liked_E[known_E])
