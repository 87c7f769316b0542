"""One run at a time in an output folder: a second one says who works there, waits, and takes a dead one's place.

The lock is a small file in the folder that says who holds it, and that the holder renews every few seconds. Of several
who want it one gets it: on a disk by the kernel's lock on that file, which ends with its process; on an object store
since the file is written only where there is none, and taken over only as it was read (`If-None-Match`, `If-Match`).
A holder is dead when its process is, which its own machine can tell; another machine's, when it no longer renews.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from upath import UPath

from llm4msr.errors import StorageError
from llm4msr.progress import SECONDS_BETWEEN_LINES, say
from llm4msr.storage.local_files import full_disk_errors
from llm4msr.storage.lock import base
from llm4msr.storage.lock.base import NAME, Lock
from llm4msr.storage.lock.disk import DiskLock
from llm4msr.storage.lock.object_store import REFUSALS, StoreLock
from llm4msr.storage.s3 import FAULTS

__all__ = ["NAME", "Lock", "hold", "is_held", "lock_for"]

_held: dict[str, tuple[int, Lock]] = {}
"""Folder -> the thread of this process that holds it, and its lock."""


def lock_for(folder: UPath) -> Lock:
    """The folder's lock, not yet taken."""
    return DiskLock(folder) if isinstance(folder, Path) else StoreLock(folder)


def is_held(folder: UPath) -> bool:
    """Whether a run works in the folder that is not known to be dead."""
    return (folder / NAME).exists() and lock_for(folder).is_held()


@contextmanager
def hold(folder: UPath) -> Iterator[Lock]:
    """Wait until nobody else works in the folder, and hold it during the block; the same thread may hold it twice.

    Raises:
        StorageError: the folder cannot be written.
    """
    thread, lock = _held.get(str(folder), (0, None))
    if lock is not None and thread == threading.get_ident():
        yield lock
        return
    lock = _wait_for(folder)
    ended = threading.Event()
    renewal = threading.Thread(target=_keep_renewing, args=(lock, ended), daemon=True)
    renewal.start()
    _held[str(folder)] = (threading.get_ident(), lock)
    try:
        yield lock
    finally:
        del _held[str(folder)]
        ended.set()
        renewal.join()
        try:
            lock.release()
        except FAULTS:
            base.UNRELEASED.add(lock.holder.id)


def _wait_for(folder: UPath) -> Lock:
    lock = lock_for(folder)
    last_line = -SECONDS_BETWEEN_LINES
    try:
        while other := _take(lock):
            if time.monotonic() - last_line >= SECONDS_BETWEEN_LINES:
                last_line = time.monotonic()
                say(f"  {folder}: another run works here ({other}); waiting for its end, or its death")
            time.sleep(base.POLL_SECONDS)
    except REFUSALS as error:
        raise StorageError(f"{folder}: cannot be written ({error}); check the path and access") from None
    return lock


def _take(lock: Lock) -> str:
    with full_disk_errors(lock.folder):
        return lock.take()


def _keep_renewing(lock: Lock, ended: threading.Event) -> None:
    while not ended.wait(base.BEAT_SECONDS) and not lock.lost:
        with suppress(*FAULTS):  # a bad minute: the next renewal may succeed
            lock.renew()
