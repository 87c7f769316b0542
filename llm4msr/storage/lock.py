"""One run at a time in an output folder: a second one waits, told who works there, and takes a dead one's place.

The lock is a small file in the folder that says who holds it, and that the holder renews every few seconds. Of several
who want it one gets it: on a disk by the kernel's lock on that file, which ends with its process; on an object store
since the file is written only where there is none, and taken over only as it was read (`If-None-Match`, `If-Match`).
A holder is dead when its process is, which its own machine can tell; another machine's, when it no longer renews.
"""

import fcntl
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ValidationError
from upath import UPath

from llm4msr.errors import StorageError
from llm4msr.progress import SECONDS_BETWEEN_LINES, say
from llm4msr.storage import s3
from llm4msr.storage.local_files import full_disk_errors, make
from llm4msr.storage.s3 import FAULTS
from llm4msr.text import shorten

NAME = ".at-work.json"
BEAT_SECONDS = 10.0
"""How often a holder renews its lock."""
DEAD_SECONDS = 60.0
"""A holder on another machine that has not renewed its lock for so long is dead."""
POLL_SECONDS = 1.0
SETTLE_SECONDS = 2.0
"""Where the last one of several who write stays: so long after writing it is certain who that is."""
_CONTESTED = {"PreconditionFailed", "ConditionalRequestConflict", "412", "409", "NoSuchKey", "404"}
_UNKNOWN = {"NotImplemented", "501"}
_REFUSALS: tuple[type[Exception], ...] = (*FAULTS, NotImplementedError, TypeError, ValueError)
"""What a store raises that cannot be written, or that knows no conditions."""

_mine: dict[str, tuple[int, "Lock"]] = {}
"""Folder -> the thread of this process that holds it, and its lock."""


_over: set[str] = set()
"""Locks of this process that it could not release: nobody holds them."""


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

    @classmethod
    def me(cls) -> "Holder":
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
    def of(cls, data: bytes) -> "Holder | None":
        """Read what a holder wrote; None where it is not whole."""
        with suppress(ValidationError):
            return cls.model_validate_json(data)
        return None

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


class Lock:
    """A folder's lock, whether held or wanted."""

    def __init__(self, folder: UPath):
        self.folder, self.file, self.holder = folder, folder / NAME, Holder.me()
        self.lost = False
        self._seen: tuple[str, int] | None = None
        self._seen_at = 0.0

    def take(self) -> Holder | str | None:
        """None if it is held from now on, else who holds it."""
        raise NotImplementedError

    def renew(self) -> None:
        """Give a sign of life; notice where another run has taken over."""
        raise NotImplementedError

    def release(self) -> None:
        """Let the next one in."""
        raise NotImplementedError

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

    def gone(self, other: Holder) -> bool:
        """Whether a holder is known to be dead."""
        me = self.holder
        if other.id in _over:
            return True
        if (other.boot, other.processes) == (me.boot, me.processes):
            return not other.start or _start(other.pid) != other.start
        if self._seen != (other.id, other.beat):
            self._seen, self._seen_at = (other.id, other.beat), time.monotonic()
            return False
        return time.monotonic() - self._seen_at > DEAD_SECONDS

    @property
    def _next(self) -> bytes:
        self.holder.beat += 1
        return self.holder.model_dump_json().encode()


class DiskLock(Lock):
    """By the kernel's lock on the file; where a file system has none, by what stands in the file alone."""

    def __init__(self, folder: UPath):
        super().__init__(folder)
        self._handle = -1

    def take(self) -> Holder | str | None:
        """As `Lock.take`."""
        make(self.folder)
        handle = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)
        try:
            kernel = _kernel_lock(handle)
            if not _same(handle, self.file):
                return "a run that just ends"
            other = Holder.of(os.pread(handle, 1 << 16, 0))
            if kernel is False or (other is not None and not self.free(other, kernel)):
                return other or "another run"
            self._write(handle)
            if kernel is None:
                time.sleep(SETTLE_SECONDS)
                if Holder.of(os.pread(handle, 1 << 16, 0)) != self.holder:
                    return "another run"
            self._handle, handle = handle, -1
            return None
        finally:
            if handle >= 0:
                os.close(handle)

    def free(self, other: Holder, kernel: bool | None) -> bool:
        """Whether who wrote the file is dead. The kernel's lock tells for all processes of one machine."""
        near = other.boot == self.holder.boot or other.host == self.holder.host
        return (kernel is True and near) or self.gone(other)

    def renew(self) -> None:
        """As `Lock.renew`."""
        there = Holder.of(os.pread(self._handle, 1 << 16, 0))
        self.lost = self.lost or (there is not None and there.id != self.holder.id)
        if not self.lost:
            self._write(self._handle)

    def _write(self, handle: int) -> None:
        data = self._next
        os.pwrite(handle, data, 0)
        os.ftruncate(handle, len(data))

    def release(self) -> None:
        """As `Lock.release`."""
        if not self.lost and _same(self._handle, self.file):
            self.file.unlink()
        os.close(self._handle)


def _kernel_lock(handle: int) -> bool | None:
    """Whether this process has it now; None where the file system knows no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _same(handle: int, file: UPath) -> bool:
    """Whether the file still has its name: who held it before may have deleted it since it was opened."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(file))
    except FileNotFoundError:
        return False


class StoreLock(Lock):
    """By conditional writes of an object; where a store knows none, the last one of several who write stays."""

    def __init__(self, folder: UPath):
        super().__init__(folder)
        protocols = folder.fs.protocol
        self._on_s3 = bool({"s3", "s3a"} & set((protocols,) if isinstance(protocols, str) else protocols))
        self._plain = False

    def take(self) -> Holder | str | None:
        """As `Lock.take`."""
        if not self._plain and self._put(None):
            return None
        try:
            tag, other = self.read()
        except FileNotFoundError:
            return None if self._plain and self._put("") else "a run that just ends"
        if other is not None and not self.gone(other):
            return other
        return None if self._put(tag) else "another run"

    def renew(self) -> None:
        """As `Lock.renew`."""
        try:
            tag, there = self.read()
        except FileNotFoundError:
            tag, there = None, self.holder
        self.lost = self.lost or there is None or there.id != self.holder.id
        if not self.lost and self._on_s3 and not self._plain:
            self.lost = not self._put(tag)
        elif not self.lost:
            self.file.fs.pipe_file(self.file.path, self._next)

    def release(self) -> None:
        """As `Lock.release`."""
        there = self.read()[1]
        if there is not None and there.id == self.holder.id:
            self.file.fs.rm_file(self.file.path)

    def read(self) -> tuple[str, Holder | None]:
        """The object's tag, and then its content: it cannot be older than the tag."""
        self.file.fs.invalidate_cache(self.folder.path)
        tag = str(self.file.fs.info(self.file.path).get("ETag", ""))
        return tag, Holder.of(self.file.fs.cat_file(self.file.path))

    def _put(self, tag: str | None) -> bool:
        """Write it where there is none (None), or as it was read; gives back whether it is this run's now."""
        how = {"mode": "create"} if tag is None else {"IfMatch": tag} if self._on_s3 else {}
        how = {} if self._plain else how
        try:
            self.file.fs.pipe_file(self.file.path, self._next, **how)
        except _REFUSALS as error:
            if how and (not isinstance(error, FAULTS) or s3.code_of(error) in _UNKNOWN):
                self._plain = True
                say(f"  {self.folder}: this store knows no conditional writes: let no two runs begin at one time")
                return False
            if not isinstance(error, FileExistsError) and s3.code_of(error) not in _CONTESTED:
                raise
            return self._is_mine()  # it may be: an answer that was lost on its way is asked for again
        if how:
            return True
        time.sleep(SETTLE_SECONDS)
        return self._is_mine()

    def _is_mine(self) -> bool:
        with suppress(FileNotFoundError):
            there = self.read()[1]
            return there is not None and there.id == self.holder.id
        return False


@contextmanager
def hold(folder: UPath) -> Iterator[Lock]:
    """Wait until nobody else works in the folder, and hold it during the block; the same thread may hold it twice.

    Raises:
        StorageError: the folder cannot be written.
    """
    thread, lock = _mine.get(str(folder), (0, None))
    if lock is not None and thread == threading.get_ident():
        yield lock
        return
    lock = _taken(folder)
    over = threading.Event()
    beats = threading.Thread(target=_beat, args=(lock, over), daemon=True)
    beats.start()
    _mine[str(folder)] = (threading.get_ident(), lock)
    try:
        yield lock
    finally:
        del _mine[str(folder)]
        over.set()
        beats.join()
        try:
            lock.release()
        except FAULTS:
            _over.add(lock.holder.id)


def _taken(folder: UPath) -> Lock:
    lock = DiskLock(folder) if isinstance(folder, Path) else StoreLock(folder)
    told = -SECONDS_BETWEEN_LINES
    try:
        while (other := _tried(lock)) is not None:
            if time.monotonic() - told >= SECONDS_BETWEEN_LINES:
                told = time.monotonic()
                say(f"  {folder}: another run works here ({other}); waiting for its end, or its death")
            time.sleep(POLL_SECONDS)
    except _REFUSALS as error:
        raise StorageError(f"{folder}: cannot be written ({error}); check the path and access") from None
    return lock


def _tried(lock: Lock) -> Holder | str | None:
    with full_disk_errors(lock.folder):
        return lock.take()


def _beat(lock: Lock, over: threading.Event) -> None:
    while not over.wait(BEAT_SECONDS) and not lock.lost:
        with suppress(*FAULTS):  # of a bad minute: the next one may be heard
            lock.renew()


def is_held(folder: UPath) -> bool:
    """Whether a run works in the folder that is not known to be dead."""
    file = folder / NAME
    if not file.exists():
        return False
    if not isinstance(folder, Path):
        there = StoreLock(folder)
        other = there.read()[1]
        return other is not None and not there.gone(other)
    with open(file, "rb") as stream:
        kernel, other = _kernel_lock(stream.fileno()), Holder.of(stream.read(1 << 16))
        return kernel is False or (other is not None and not DiskLock(folder).free(other, kernel))
