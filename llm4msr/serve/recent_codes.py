"""The codes that an LLM has made of users' events, in a replica's memory, as the log has them."""

import sys
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from llm4msr.arrays import Halves
from llm4msr.serve.event_log import LoggedCode


class RecentCodes:
    """Users' codes.

    Args:
        most: how many are held; those that came longest ago go first.
    """

    def __init__(self, most: int):
        self._most = most
        self._codes: OrderedDict[str, tuple[str, float, bytes]] = OrderedDict()
        """By user: the coder, when the last event arrived, and the code."""
        self.change = 0
        """The last one that was read of the log."""

    def of(self, user_id: str, coder: str) -> Halves | None:
        """A user's, float16 [K], if a bundle with this coder can use it."""
        made_for, _, code = self._codes.get(user_id, ("", 0.0, b""))
        return np.frombuffer(code, np.float16) if code and made_for == coder else None

    def take(self, codes: Sequence[LoggedCode], oldest: float) -> None:
        """Add what the log has after `change`; what is made of events that arrived before `oldest` goes."""
        for one in codes:
            self._codes[one.user_id] = sys.intern(one.coder), one.arrived, one.code
            self._codes.move_to_end(one.user_id)
            self.change = one.change
        while self._codes and (len(self._codes) > self._most or next(iter(self._codes.values()))[1] < oldest):
            self._codes.popitem(last=False)

    def clear(self) -> None:
        """Hold none, to read them again from the beginning."""
        self._codes.clear()
        self.change = 0
