"""What is known of the user of a request: a code and events, from the bundle and from the history in the request.

A code is what the trained net made of the user's knowledge. Where it was pooled from items, it is made again from what
the request tells, with no LLM; so a user whom the bundle does not have is known from their first clicks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from llm4msr.arrays import Array, Ints
from llm4msr.bundle.id_table import IdTable
from llm4msr.bundle.messages import KnowledgeSource, RankRequest
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
    """

    codes: IdTable
    pasts: IdTable
    has_codes: bool
    has_match: bool
    pooled: PooledCodes | None
    scenarios: Mapping[str, int]
    most: int

    @property
    def reads_history(self) -> bool:
        """Whether the history in a request counts."""
        return self.has_match or self.pooled is not None

    def look_up(self, request: RankRequest, item_E: Ints) -> Known:
        """What is known of the request's user; `item_E` are rows of the items in its history, -1 for unknown ones."""
        told = self._told(request, item_E)
        events = self._stored(request).extend(told).latest(self.most)
        if self.pooled is not None and (len(told) or request.history_mode == "replace"):
            code_K = self.pooled.encode(events)
        else:
            code_K = self._code(request.user_id)
        source: KnowledgeSource = "none"
        if len(told) and self.reads_history:
            source = "request"
        elif code_K is not None or (self.has_match and len(events)):
            source = "stored"
        return Known(code_K, events, source, len(item_E) - len(told))

    def _code(self, user_id: str) -> Array | None:
        place = self.codes.find(user_id) if self.has_codes else None
        return None if place is None else self.codes.numbers("code", place)

    def _stored(self, request: RankRequest) -> Events:
        place = self.pasts.find(request.user_id) if request.history_mode == "extend" else None
        return NOTHING if place is None else Events.unpack(place[0].lists["events"][place[1]])

    def _told(self, request: RankRequest, item_E: Ints) -> Events:
        if not len(item_E):
            return NOTHING
        scenario_E = np.array([self.scenarios.get(event.scenario, 0) for event in request.history])
        liked_E, known_E = np.array([event.liked for event in request.history]), item_E >= 0
        return Events(item_E[known_E], scenario_E[known_E], liked_E[known_E])
