"""A lock on a disk: the kernel's lock on the file; where a file system has none, what stands in the file alone."""

import fcntl
import os
import time

from upath import UPath

from llm4msr.storage.local_files import make_folder
from llm4msr.storage.lock import base
from llm4msr.storage.lock.base import ANOTHER, ENDING, Lock
from llm4msr.storage.lock.holder import Holder


class DiskLock(Lock):
    """A folder's lock on a disk of this machine, or on one that machines share."""

    def __init__(self, folder: UPath):
        super().__init__(folder)
        self._handle = -1

    def take(self) -> str:
        """As `Lock.take`."""
        make_folder(self.folder)
        handle = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)
        try:
            kernel = _kernel_lock(handle)
            if not _has_name(handle, self.file):
                return ENDING
            other = _read(handle)
            if self._is_held(kernel, other):
                return str(other or ANOTHER)
            self._write(handle)
            if kernel is None:
                time.sleep(base.SETTLE_SECONDS)
                if _read(handle) != self.holder:
                    return ANOTHER
            self._handle, handle = handle, -1
            return ""
        finally:
            if handle >= 0:
                os.close(handle)

    def is_held(self) -> bool:
        """As `Lock.is_held`."""
        with open(self.file, "rb") as stream:
            return self._is_held(_kernel_lock(stream.fileno()), _read(stream.fileno()))

    def _is_held(self, kernel: bool | None, other: Holder | None) -> bool:
        """Whether who wrote the file may be alive. The kernel's lock tells for all processes of one machine."""
        if kernel is False or other is None:
            return kernel is False
        same_machine = other.boot == self.holder.boot or other.host == self.holder.host
        return not (kernel is True and same_machine) and not self.is_dead(other)

    def renew(self) -> None:
        """As `Lock.renew`."""
        other = _read(self._handle)
        self.lost = self.lost or (other is not None and other.id != self.holder.id)
        if not self.lost:
            self._write(self._handle)

    def _write(self, handle: int) -> None:
        data = self.next_beat()
        os.pwrite(handle, data, 0)
        os.ftruncate(handle, len(data))

    def release(self) -> None:
        """As `Lock.release`."""
        if not self.lost and _has_name(self._handle, self.file):
            self.file.unlink()
        os.close(self._handle)


def _read(handle: int) -> Holder | None:
    return Holder.parse(os.pread(handle, 1 << 16, 0))


def _kernel_lock(handle: int) -> bool | None:
    """Whether this process has it now; None where the file system knows no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _has_name(handle: int, file: UPath) -> bool:
    """Whether the file still has its name: who held it before may have deleted it since it was opened."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(file))
    except FileNotFoundError:
        return False
