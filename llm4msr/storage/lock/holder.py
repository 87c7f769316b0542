"""Who holds a lock: a process of some machine, and whether it still lives."""

import os
import socket
import uuid
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ValidationError

from llm4msr.text import shorten


class Holder(BaseModel):
    """Who works in a folder."""

    id: str
    host: str
    boot: str
    """Of which start of which machine."""
    processes: str
    """Name space in which `pid` means something."""
    pid: int
    start: str
    """When the process started, as the kernel counts: another process with this `pid` started at another time."""
    since: str
    beat: int = 0
    """How often it has written its lock."""

    @classmethod
    def this_process(cls) -> Self:
        """This process, for a new lock."""
        boot, host = Path("/proc/sys/kernel/random/boot_id"), socket.gethostname()
        return cls(
            id=uuid.uuid4().hex,
            host=host,
            boot=boot.read_text().strip() if boot.exists() else host,
            processes=os.readlink("/proc/self/ns/pid") if Path("/proc/self/ns/pid").is_symlink() else "",
            pid=os.getpid(),
            start=_start(os.getpid()),
            since=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    @classmethod
    def parse(cls, data: bytes) -> Self | None:
        """Read what a holder wrote; None where it is not whole."""
        with suppress(ValidationError):
            return cls.model_validate_json(data)
        return None

    def shares_processes(self, other: "Holder") -> bool:
        """Whether each can see whether the other's process lives."""
        return (self.boot, self.processes) == (other.boot, other.processes)

    def is_running(self) -> bool:
        """Whether the process lives, as far as this machine can tell."""
        return bool(self.start) and _start(self.pid) == self.start

    def __str__(self) -> str:
        return f"process {self.pid} on {shorten(self.host)}, since {shorten(self.since)}"


def _start(pid: int) -> str:
    """When a living process started; empty for one that is dead, or that waits for its parent to look at its end."""
    if not Path("/proc/self/stat").exists():
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, 0)
            return "unknown"
        return ""
    with suppress(OSError):
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if state in "ZX" else fields[18]
    return ""
