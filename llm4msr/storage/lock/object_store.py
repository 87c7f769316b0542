"""A lock in an object store: conditional writes; where a store knows none, the last one of several who write stays."""

import time
from contextlib import suppress

from upath import UPath

from llm4msr.progress import say
from llm4msr.storage import s3
from llm4msr.storage.lock import base
from llm4msr.storage.lock.base import ANOTHER, ENDING, Lock
from llm4msr.storage.lock.holder import Holder
from llm4msr.storage.s3 import FAULTS

REFUSALS: tuple[type[Exception], ...] = (*FAULTS, NotImplementedError, TypeError, ValueError)
"""What a store raises that cannot be written, or that knows no conditions."""
_CONTESTED = {"PreconditionFailed", "ConditionalRequestConflict", "412", "409", "NoSuchKey", "404"}
_UNKNOWN = {"NotImplemented", "501"}


class StoreLock(Lock):
    """A folder's lock in an object store."""

    def __init__(self, folder: UPath):
        super().__init__(folder)
        protocols = folder.fs.protocol
        self._on_s3 = bool({"s3", "s3a"} & set((protocols,) if isinstance(protocols, str) else protocols))
        self._unconditional = False

    def take(self) -> str:
        """As `Lock.take`."""
        if not self._unconditional and self._put(None):
            return ""
        try:
            tag, other = self._read()
        except FileNotFoundError:
            return "" if self._unconditional and self._put("") else ENDING
        if other is not None and not self.is_dead(other):
            return str(other)
        return "" if self._put(tag) else ANOTHER

    def is_held(self) -> bool:
        """As `Lock.is_held`."""
        other = self._read()[1]
        return other is not None and not self.is_dead(other)

    def renew(self) -> None:
        """As `Lock.renew`."""
        try:
            tag, other = self._read()
        except FileNotFoundError:
            tag, other = None, self.holder
        self.lost = self.lost or other is None or other.id != self.holder.id
        if not self.lost and self._on_s3 and not self._unconditional:
            self.lost = not self._put(tag)
        elif not self.lost:
            self.file.fs.pipe_file(self.file.path, self.next_beat())

    def release(self) -> None:
        """As `Lock.release`."""
        other = self._read()[1]
        if other is not None and other.id == self.holder.id:
            self.file.fs.rm_file(self.file.path)

    def _read(self) -> tuple[str, Holder | None]:
        """The object's tag, and then its content: it cannot be older than the tag."""
        self.file.fs.invalidate_cache(self.folder.path)
        tag = str(self.file.fs.info(self.file.path).get("ETag", ""))
        return tag, Holder.parse(self.file.fs.cat_file(self.file.path))

    def _put(self, tag: str | None) -> bool:
        """Write it where there is none (None), or as it was read; gives back whether it is this run's now."""
        condition = {"mode": "create"} if tag is None else {"IfMatch": tag} if self._on_s3 else {}
        condition = {} if self._unconditional else condition
        try:
            self.file.fs.pipe_file(self.file.path, self.next_beat(), **condition)
        except REFUSALS as error:
            if condition and (not isinstance(error, FAULTS) or s3.code_of(error) in _UNKNOWN):
                self._unconditional = True
                say(f"  {self.folder}: this store knows no conditional writes: let no two runs begin at one time")
                return False
            if not isinstance(error, FileExistsError) and s3.code_of(error) not in _CONTESTED:
                raise
            return self._is_this_run()  # it may be: an answer that was lost on its way is asked for again
        if condition:
            return True
        time.sleep(base.SETTLE_SECONDS)
        return self._is_this_run()

    def _is_this_run(self) -> bool:
        with suppress(FileNotFoundError):
            other = self._read()[1]
            return other is not None and other.id == self.holder.id
        return False
