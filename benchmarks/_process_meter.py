"""What a command took: CPU-seconds and memory of all processes that it started, however they end. Linux alone."""

import contextlib
import ctypes
import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

INTERVAL = 0.2
"""Seconds between two looks at the processes' memory."""
PATIENCE = 60
"""Seconds that processes may outlive the one that started them."""
PR_SET_CHILD_SUBREAPER = 36
TICKS = os.sysconf("SC_CLK_TCK")


class Usage(NamedTuple):
    """Bytes and seconds."""

    wall_seconds: float
    cpu_seconds: float
    """User and system time of all processes."""
    peak: int
    """Of all processes at one moment: private memory, and what they share counted once (PSS)."""
    first_peak: int
    """Highest resident memory of the process that was started."""
    largest_other: int
    """Highest resident memory of the largest of all others."""
    largest_own: int
    """The same without what files hold, such as mapped vectors, which the kernel takes back when it needs memory."""
    processes: int
    """At one moment, at most."""


def run(command: Sequence[str], variables: Mapping[str, str] | None = None) -> Usage:
    """Run a command to its end, and until what it started has ended too.

    Raises:
        RuntimeError: it ended with an error; the message is the end of what it printed.
    """
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)  # what outlives its parent becomes a child of this process
    _reap()
    look, before, begun = _Look(), resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with tempfile.TemporaryFile() as printed:
        process = subprocess.Popen(
            command, env=os.environ | (variables or {}), stdout=printed, stderr=subprocess.STDOUT
        )
        while process.poll() is None:
            look.take(process.pid)
            time.sleep(INTERVAL)
        seconds = time.perf_counter() - begun
        printed.seek(0)
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)}: {printed.read().decode(errors='replace')[-4000:]}")
    while not _reap():  # what it left behind
        if time.perf_counter() > begun + seconds + PATIENCE:
            raise RuntimeError(f"{' '.join(command)}: it ended {PATIENCE} seconds ago, but not all that it started")
        look.take(process.pid)
        time.sleep(INTERVAL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    waited_for = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    # a parent that ignores its children's end never learns their time: then what was seen last is more
    cpu_seconds = max(waited_for, sum(look.cpu.values()))
    return Usage(seconds, cpu_seconds, look.peak, look.first_peak, look.largest_other, look.largest_own, look.processes)


class _Look:
    """The highest figures so far."""

    def __init__(self) -> None:
        self.peak = self.first_peak = self.largest_other = self.largest_own = self.processes = 0
        self.cpu: dict[tuple[int, str], float] = {}
        """CPU-seconds by process id and time of start."""

    def take(self, first: int) -> None:
        now, count = 0, 0
        for pid, fields in _descendants(os.getpid()):
            self.cpu[pid, fields[19]] = (int(fields[11]) + int(fields[12])) / TICKS
            with contextlib.suppress(OSError, IndexError):
                now += _kibibytes(f"/proc/{pid}/smaps_rollup", "Pss:")
                highest, count = _kibibytes(f"/proc/{pid}/status", "VmHWM:"), count + 1
                if pid == first:
                    self.first_peak = max(self.first_peak, highest)
                else:
                    self.largest_other = max(self.largest_other, highest)
                    self.largest_own = max(self.largest_own, _kibibytes(f"/proc/{pid}/status", "RssAnon:"))
        self.peak, self.processes = max(self.peak, now), max(self.processes, count)


def _descendants(root: int) -> Iterator[tuple[int, list[str]]]:
    """Process id and the fields of /proc/PID/stat from the state on, of each process below `root`."""
    states: dict[int, list[str]] = {}
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            states[int(name)] = Path("/proc", name, "stat").read_text().rpartition(")")[2].split()
    parents = [root]
    for parent in parents:
        children = [pid for pid, fields in states.items() if int(fields[1]) == parent]
        parents += children
        yield from ((pid, states[pid]) for pid in children)


def _kibibytes(file: str, name: str) -> int:
    """The value of a line `Name:  123 kB`, as bytes."""
    return int(Path(file).read_text().split(name)[1].split()[0]) << 10


def _reap() -> bool:
    """Take leave of children that have ended; whether none is left."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return True
    return False
