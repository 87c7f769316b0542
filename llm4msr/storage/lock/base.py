"""What the locks on disks and on object stores have in common."""

import time
from abc import ABC, abstractmethod
from contextlib import suppress

from upath import UPath

from llm4msr.errors import StorageError
from llm4msr.storage.lock.holder import Holder
from llm4msr.storage.s3 import FAULTS

NAME = ".at-work.json"
BEAT_SECONDS = 10.0
"""How often a holder renews its lock."""
DEAD_SECONDS = 60.0
"""A holder on another machine that has not renewed its lock for so long is dead."""
POLL_SECONDS = 1.0
"""How often a waiting run looks whether the lock is free."""
SETTLE_SECONDS = 2.0
"""Where the last one of several who write stays: so long after writing it is certain who that is."""

UNRELEASED: set[str] = set()
"""Ids of locks that this process could not release: nobody holds them."""
ANOTHER, ENDING = "another run", "a run that just ends"
"""Who holds a lock that does not say so."""


class Lock(ABC):
    """A folder's lock, which this process holds or wants."""

    def __init__(self, folder: UPath):
        self.folder, self.file, self.holder = folder, folder / NAME, Holder.this_process()
        self.lost = False
        """Whether another run has taken it over."""
        self._last_beat: tuple[str, int] | None = None
        self._last_beat_at = 0.0

    @abstractmethod
    def take(self) -> str:
        """Try to take it: empty if it is held from now on, else who holds it."""

    @abstractmethod
    def is_held(self) -> bool:
        """Whether a run that is not known to be dead holds it, whose file is there."""

    @abstractmethod
    def renew(self) -> None:
        """Give a sign of life; notice where another run has taken over."""

    @abstractmethod
    def release(self) -> None:
        """Let the next one in."""

    def check(self) -> None:
        """Be sure that it is still held, before the result is made visible.

        Raises:
            StorageError: another run has taken over, since this one gave no sign of life.
        """
        with suppress(*FAULTS):
            self.renew()
        if self.lost:
            raise StorageError(
                f"{self.folder}: another run took this output over, since this one did not reach the storage for over "
                f"{DEAD_SECONDS:g} s; run the same command again: it waits for the other and takes its result"
            )

    def is_dead(self, other: Holder) -> bool:
        """Whether a holder is known to be dead."""
        if other.id in UNRELEASED:
            return True
        if self.holder.shares_processes(other):
            return not other.is_running()
        if self._last_beat != (other.id, other.beat):
            self._last_beat, self._last_beat_at = (other.id, other.beat), time.monotonic()
            return False
        return time.monotonic() - self._last_beat_at > DEAD_SECONDS

    def next_beat(self) -> bytes:
        """What to write as the next sign of life."""
        self.holder.beat += 1
        return self.holder.model_dump_json().encode()
