"""A finished output's files on this machine, checked: where they lie, or a copy that all processes here share.

What lies on an object store is copied once to this machine's cache, since it will be memory-mapped.
"""

import fcntl
import hashlib
import os
import shutil
import weakref
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

from llm4msr import storage
from llm4msr.errors import StorageError
from llm4msr.storage import StageOutput, cache

COPIES_KEPT = 8
"""Outputs that the cache keeps, the latest used; one that is in use stays in any case."""

_DAMAGED = "{}: damaged, its checksum is not the manifest's; {} again"


class LocalOutput(NamedTuple):
    """An output and its files here. A copy stays here as long as somebody has its `hold`."""

    folder: Path
    output: StageOutput
    hold: "_Hold | None"


def open_local(uri: str, stage: str = "export") -> LocalOutput:
    """A finished output's files as local ones, each of the size and checksum that its manifest states.

    Raises:
        StorageError: not a finished output of that stage, or a file is missing, damaged or foreign.
    """
    output = open_finished(uri, stage)
    if not isinstance(output.folder, Path):
        return _open_copy(output)
    folder = Path(output.folder)
    if name := _damaged_file(folder, output):
        raise StorageError(_DAMAGED.format(folder / name, stage))
    return LocalOutput(folder, output, None)


def open_finished(uri: str, stage: str = "export") -> StageOutput:
    """The finished output of that stage at a URI.

    Raises:
        StorageError: there is none.
    """
    folder = storage.path(uri)
    output = storage.open_output(folder)
    if output is None or output.manifest.stage != stage:
        what = {"export": "bundle", "refresh": "set of codes"}[stage]
        raise StorageError(f"{folder}: not a finished {what}; give the uri that `llm4msr {stage}` printed")
    return output


def _damaged_file(folder: Path, output: StageOutput) -> str:
    """Name of a file that is not what the manifest says, or is not there; empty if there is none."""
    for name, part in output.manifest.files.items():
        file = storage.path(folder / name)
        if not file.is_file() or file.stat().st_size != part.bytes or storage.digest_file(file) != part.digest:
            return name
    return ""


def _open_copy(output: StageOutput) -> LocalOutput:
    """A copy in this machine's cache, made once for all its processes, and once more if it is damaged."""
    files = {name: part.digest for name, part in output.manifest.files.items()}
    folder = cache.root() / "bundles" / storage.digest_json(files)
    lock = FileLock(folder.parent / ".lock")
    with cache.write_errors(folder):
        folder.parent.mkdir(mode=0o770, exist_ok=True)  # the cache itself may be open to all
        with lock:  # who evicts cannot do so between the hold's file and its lock
            hold = _Hold(folder)

    def copy(new: Path) -> None:
        _copy_files(output, new)
        if name := _damaged_file(new, output):
            raise StorageError(
                f"{folder / name}: a fresh copy of {output.folder / name} is damaged; check this machine's disk"
            )

    cache.build_once(folder, copy, is_whole=lambda copied: not _damaged_file(copied, output))
    with cache.write_errors(folder), lock:
        os.utime(folder)
        _evict(folder.parent)
    return LocalOutput(folder, output, hold)


def _copy_files(output: StageOutput, folder: Path) -> None:
    for name, part in output.manifest.files.items():
        cache.reserve(folder / name, part.bytes)
        state = hashlib.blake2b(part.bytes.to_bytes(8, "little"), digest_size=16)
        with (output.folder / name).open("rb") as source, (folder / name).open("r+b") as target:
            while chunk := source.read(1 << 22):
                state.update(chunk)
                target.write(chunk)
        if state.hexdigest() != part.digest:
            raise StorageError(_DAMAGED.format(output.folder / name, output.manifest.stage))


class _Hold:
    """A lock beside a copy, which says that it is in use as long as this object or its process lives."""

    def __init__(self, folder: Path, how: int = fcntl.LOCK_SH):
        """Take the lock.

        Raises:
            BlockingIOError: somebody else holds one, and both cannot be.
        """
        self.file = folder.parent / f".{folder.name}.use"
        handle = os.open(self.file, os.O_RDWR | os.O_CREAT, 0o660)
        weakref.finalize(self, os.close, handle)
        fcntl.flock(handle, how | fcntl.LOCK_NB)


def _evict(copies: Path) -> None:
    """Delete the copies that were not used for longest, but none that is in use, whatever the clock has said."""
    folders = [entry for entry in copies.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    for old in sorted(folders, key=lambda folder: folder.stat().st_mtime)[:-COPIES_KEPT]:
        try:
            hold = _Hold(old, fcntl.LOCK_EX)
        except BlockingIOError:
            continue
        shutil.rmtree(old, ignore_errors=True)
        Path(f"{old}.lock").unlink(missing_ok=True)  # nobody can wait for it: that takes a hold
        hold.file.unlink(missing_ok=True)
