"""The latest events of users in a replica's memory, as the log has them."""

import sys
from collections import OrderedDict
from collections.abc import Sequence

from llm4msr.bundle.messages import RecentEvent
from llm4msr.serve.event_log import DAY, Page


class RecentEvents:
    """Users' latest events.

    Args:
        per_user: how many are held of each.
        most: how many of all.
        days: how long an event counts; a user's are held until the last of them is so old.
    """

    def __init__(self, per_user: int, most: int, days: float):
        self._per_user, self._most, self._days = per_user, most, days
        self._events: OrderedDict[str, list[RecentEvent]] = OrderedDict()
        """By user, each in the order of time; the user whose last event came longest ago stands first."""
        self._count, self._oldest = 0, 0.0
        self.epoch, self.sequence = 0, 0
        """Of the log, and the last event of it that was read."""

    def __len__(self) -> int:
        return self._count

    def of(self, user_id: str) -> Sequence[RecentEvent]:
        """A user's, in the order of time."""
        return [one for one in self._events.get(user_id, ()) if one.arrived >= self._oldest]

    def take(self, page: Page, now: float) -> int:
        """Add what the log has after `sequence`; gives back how many users had to go, since there are too many events.

        Where something was deleted from the log, all is dropped, to be read again from the beginning.
        """
        if page.epoch != self.epoch:
            if self.sequence:
                page = Page(page.epoch, [])
            self._events.clear()
            self._count, self.sequence, self.epoch = 0, 0, page.epoch
        self._oldest = now - self._days * DAY
        for sequence, user_id, item_id, scenario, liked, when, arrived in page.events:
            event = RecentEvent(sys.intern(item_id), sys.intern(scenario), liked, when, arrived)
            self._add(user_id, event)
            self.sequence = sequence
        while self._events and max(one.arrived for one in self._events[next(iter(self._events))]) < self._oldest:
            self._drop_first()
        dropped = 0
        while self._count > self._most:
            self._drop_first()
            dropped += 1
        return dropped

    def _add(self, user_id: str, event: RecentEvent) -> None:
        before = self._events.pop(user_id, [])
        events = [*(one for one in before if one.arrived >= self._oldest), event]
        if len(events) > 1 and event.time < events[-2].time:
            events.sort(key=lambda one: one.time)
        self._events[user_id] = events[-self._per_user :]
        self._count += len(self._events[user_id]) - len(before)

    def _drop_first(self) -> None:
        self._count -= len(self._events.popitem(last=False)[1])
