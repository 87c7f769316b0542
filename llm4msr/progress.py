"""Lines on standard error, and progress with an estimate of the time left: a bar on a terminal, a line now and then in
a job's log. How much of this is shown is a setting of the process: `--quiet` and `--verbose` of the command line.
"""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from llm4msr.text import sanitize

SECONDS_BETWEEN_LINES = 60.0


class Level(IntEnum):
    """How much this process shows."""

    QUIET = 0
    """Warnings and errors."""
    USUAL = 1
    """Progress too."""
    VERBOSE = 2
    """Also what Ray logs, and where in the code an error arose."""


_level = Level.USUAL


def level() -> Level:
    """How much this process shows."""
    return _level


def set_level(wanted: Level) -> None:
    """Show so much from now on."""
    global _level
    _level = wanted


def show(text: str) -> None:
    """Print a line on standard error, whatever the level: standard output is for results."""
    print(sanitize(text) + "\n", end="", file=sys.stderr, flush=True)  # in one piece: threads may show lines too


def say(text: str) -> None:
    """Show a line about what is going on, unless it shall be quiet."""
    if _level > Level.QUIET:
        show(text)


def warn(text: str) -> None:
    """Show a warning, whatever the level."""
    show(f"warning: {text}")


_shown: Progress | None = None
"""All open bars: two displays would write over each other."""
_lock = threading.Lock()


def _open_bar(name: str, total: int, done: int) -> tuple[Progress, TaskID]:
    global _shown
    with _lock:
        if _shown is None:
            columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
            _shown = Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=Console(stderr=True))
            _shown.start()
        return _shown, _shown.add_task(name, total=total, completed=done)


def _close_bar(bars: Progress, task: TaskID) -> None:
    """The last one stays in sight; of others a line tells what came out."""
    global _shown
    with _lock:
        if len(bars.tasks) > 1:
            bars.remove_task(task)
        else:
            bars.stop()
            _shown = None


def close_bars() -> None:
    """End all bars, before the process ends: threads that do not end before it leave theirs open, and no cursor."""
    global _shown
    with _lock:
        if _shown is not None:
            _shown.stop()
            _shown = None


class Track:
    """Counts what is done of `total`. The rate is measured from the first result, so that start-up does not count."""

    def __init__(self, name: str, total: int, done: int = 0):
        self.name, self.total, self.done = name, total, done
        self._start, self._last_line = time.monotonic(), 0.0
        self._first: tuple[float, int] | None = None
        self._bars: Progress | None = None
        if _level > Level.QUIET and Console(stderr=True).is_terminal:
            self._bars, self._task = _open_bar(name, total, done)

    def advance(self, count: int, note: str = "") -> None:
        """Count so many more as done."""
        self.done += count
        self._first = self._first or (time.monotonic(), self.done)
        if self._bars is not None:
            self._bars.update(self._task, completed=self.done, description=f"{self.name} {note}".strip())
            return
        now = time.monotonic()
        if self.done >= self.total or now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            say(f"  {self.name}: {self.done} of {self.total}, {self._left(now)} {note}".rstrip())

    def close(self) -> None:
        """End the bar."""
        if self._bars is not None:
            _close_bar(self._bars, self._task)

    def _left(self, now: float) -> str:
        first, done_first = self._first or (now, self.done)
        if self.done == done_first or self.done >= self.total:
            return f"{now - self._start:.0f} s"
        return f"about {(self.total - self.done) * (now - first) / (self.done - done_first):.0f} s left"


@contextmanager
def track(name: str, total: int, done: int = 0) -> Iterator[Track]:
    """A `Track` that is closed at the end, whatever happens."""
    progress = Track(name, total, done)
    try:
        yield progress
    finally:
        progress.close()
