"""Files of outputs on this machine's disks: each appears whole, only the owner and the group can read it, and what a
finished output names has reached the disk."""

import errno
import os
import re
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from llm4msr.errors import FullDiskError, LLM4MSRError

OTHERS = 0o007
"""Permissions that nobody but the owner and the group gets, since outputs hold users' histories."""

MANY = 256
"""More files than this are flushed with all disks at once: 100,000 small files took 150 s one by one, and so 3 s."""

_FULL = re.compile(
    r"os error (28|122)\b"  # as libraries in Rust say it, safetensors among them
    r"|\d+ requested and \d+ written"  # numpy
    r"|No space left on device|Disk quota exceeded"  # as Ray shows what was raised elsewhere
)


@contextmanager
def full_disk_errors(place: object) -> Iterator[None]:
    """Turn a full disk, whichever library noticed it, into one message; it names `place` if the library names no file.

    Raises:
        FullDiskError: no space is left.
    """
    try:
        yield
    except LLM4MSRError:
        raise
    except Exception as error:
        if full := full_disk(error, place):
            raise full from None
        raise


def full_disk(error: Exception, place: object) -> FullDiskError | None:
    """The error to raise instead if `error` means that a disk is full."""
    if getattr(error, "errno", 0) not in (errno.ENOSPC, errno.EDQUOT) and not _FULL.search(str(error)):
        return None
    where = getattr(error, "filename", None) or place
    return FullDiskError(f"{where}: no space left on its disk; free some and run the same command again")


def make_folder(folder: Path) -> None:
    """Create a folder and those above it, unless they exist."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(mode=0o777 & ~OTHERS, exist_ok=True)


@contextmanager
def atomic_write(file: Path, durable: bool = False) -> Iterator[Path]:
    """A place to write to, which gets the file's name when the block ends without error.

    With `durable` the content is on the disk before it has its name, and then the name is.
    """
    make_folder(file.parent)
    aside = file.with_name(f".{file.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        os.close(os.open(aside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666 & ~OTHERS))
        yield aside
        if durable:
            _flush(aside)
        aside.replace(file)
        if durable:
            _flush(file.parent)
    finally:
        aside.unlink(missing_ok=True)


def is_unfinished(name: str) -> bool:
    """Whether a file of this name is one that its writer has not finished."""
    return name.startswith(".") and name.endswith(".tmp")


def sweep(folder: Path) -> None:
    """Delete the files that killed writers had not finished, and let only the owner and the group read the others."""
    for where, folders, files in os.walk(folder):
        for name in files:
            file = Path(where, name)
            if is_unfinished(name):
                file.unlink(missing_ok=True)
            else:
                _restrict(file)
        for name in folders:
            _restrict(Path(where, name))
    _restrict(folder)


def _restrict(place: Path) -> None:
    mode = place.lstat().st_mode
    if mode & OTHERS and not place.is_symlink():
        with suppress(PermissionError):  # another member of the group began this output: only they can
            place.chmod(mode & 0o7777 & ~OTHERS)


def flush(folder: Path, names: Sequence[str]) -> None:
    """Make sure that these files below a folder are on the disk, whatever happens to the machine from now on."""
    if len(names) > MANY:
        os.sync()
        return
    files = [folder / name for name in names]
    for place in (*files, *{file.parent for file in files}):
        _flush(place)


def _flush(place: Path) -> None:
    handle = os.open(place, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
