"""A finished output's files on this machine, checked: where they lie, or a copy that all processes here share.

What lies on an object store is copied once to this machine's cache, since it will be memory-mapped.
"""

import fcntl
import hashlib
import os
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

from llm4msr import storage
from llm4msr.errors import StorageError
from llm4msr.storage import StageOutput, cache, wheels

COPIES_KEPT = 8
"""Outputs that the cache keeps, the latest used; one that is in use stays in any case."""

_DAMAGED = "{}: damaged, its checksum is not the manifest's; {} again"


class LocalOutput(NamedTuple):
    """An output and its files here. A copy stays here as long as somebody has its `hold`."""

    folder: Path
    output: StageOutput
    hold: "_Hold | None"


def on_this_machine(uri: str, stage: str = "export") -> LocalOutput:
    """A finished output's files as local ones, each of the size and checksum that its manifest states.

    Raises:
        StorageError: not a finished output of that stage, or a file is missing, damaged or foreign.
    """
    output = opened(uri, stage)
    if not isinstance(output.folder, Path):
        return _copied(output)
    folder = Path(output.folder)
    if name := _damaged(folder, output):
        raise StorageError(_DAMAGED.format(folder / name, stage))
    return LocalOutput(folder, output, None)


def opened(uri: str, stage: str = "export") -> StageOutput:
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


def _damaged(folder: Path, output: StageOutput) -> str:
    """Name of a file that is not what the manifest says, or is not there; empty if there is none."""
    for name, part in output.manifest.files.items():
        file = storage.path(folder / name)
        if not file.is_file() or file.stat().st_size != part.bytes or storage.digest_file(file) != part.digest:
            return name
    return ""


def _copied(output: StageOutput) -> LocalOutput:
    """A copy below this machine's cache, made once for all its processes, and once more if it is damaged."""
    files = {name: part.digest for name, part in output.manifest.files.items()}
    folder = wheels.cache_folder() / "bundles" / storage.digest_of(files)
    for _ in range(2):
        with cache.writes(folder):
            folder.parent.mkdir(mode=0o770, exist_ok=True)  # the cache itself may be open to all
            with FileLock(folder.parent / ".lock"):
                hold = _Hold(folder)
                if not folder.exists():
                    _copy(output, folder)
                os.utime(folder)
                _evict(folder.parent)
        if not (name := _damaged(folder, output)):
            return LocalOutput(folder, output, hold)
        with FileLock(folder.parent / ".lock"):
            shutil.rmtree(folder, ignore_errors=True)  # who has it mapped keeps what is mapped
    raise StorageError(f"{folder / name}: a fresh copy of {output.folder / name} is damaged; check this machine's disk")


def _copy(output: StageOutput, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent) as aside:
        new = Path(aside) / "new"
        new.mkdir()
        for name, part in output.manifest.files.items():
            cache.reserve(new / name, part.bytes)
            state = hashlib.blake2b(part.bytes.to_bytes(8, "little"), digest_size=16)
            with (output.folder / name).open("rb") as there, (new / name).open("r+b") as here:
                while chunk := there.read(1 << 22):
                    state.update(chunk)
                    here.write(chunk)
            if state.hexdigest() != part.digest:
                raise StorageError(_DAMAGED.format(output.folder / name, output.manifest.stage))
        new.rename(folder)


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
    by_age = sorted((f for f in copies.iterdir() if f.is_dir()), key=lambda f: f.stat().st_mtime)
    for old in by_age[:-COPIES_KEPT]:
        try:
            lock = _Hold(old, fcntl.LOCK_EX)
        except BlockingIOError:
            continue
        shutil.rmtree(old, ignore_errors=True)
        lock.file.unlink(missing_ok=True)
