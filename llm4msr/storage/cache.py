"""Folders of this machine's cache, each made once for all its processes: checked when it is used, and else made anew.

Beside its files a folder holds their checksums. A disk that loses or changes a bit, or is full, never gives a result:
the folder is made again, or a message says why it cannot be.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from llm4msr import storage
from llm4msr.errors import StorageError

CHECKSUMS = ".checksums.json"
_Stats = tuple[tuple[str, int, int, int], ...]
_CHECKED: dict[Path, _Stats] = {}
"""Folders that this process has read through once, and how their files were then."""


def build_once(folder: Path, build: Callable[[Path], None], adopt: bool = False) -> Path:
    """The folder with what `build` writes into the one that it is given.

    Args:
        folder: in the cache; its parent is there.
        build: called where there is no such folder, or one with a file that is missing or damaged.
        adopt: whether a folder that an earlier release made, without checksums, is taken as it is.

    Raises:
        StorageError: the cache is full or cannot be written.
    """
    if is_whole(folder):
        return folder
    with writes(folder), FileLock(f"{folder}.lock"):
        if adopt and folder.is_dir() and not (folder / CHECKSUMS).exists():
            _note(folder)
        if not is_whole(folder):
            shutil.rmtree(folder, ignore_errors=True)
            with tempfile.TemporaryDirectory(dir=folder.parent) as aside:
                new = Path(aside) / "new"
                new.mkdir()
                build(new)
                _note(new)
                new.rename(folder)
    return folder


def is_whole(folder: Path) -> bool:
    """Whether the folder is there and each of its files is as it was written; they are read once in a process."""
    try:
        stats = tuple((str(f), *_stat(f)) for f in sorted(_files(folder)))
        if _CHECKED.get(folder) == stats:
            return bool(stats)
        noted = json.loads((folder / CHECKSUMS).read_bytes())
        whole = bool(noted == _checksums(folder))
    except (OSError, ValueError, RecursionError, StorageError):
        return False
    if whole:
        _CHECKED[folder] = stats
    return whole


def reserve(file: Path, size: int) -> None:
    """Take the room for a file, so that a full disk is an error here and not a signal when the file is mapped.

    Raises:
        OSError: there is no room.
    """
    with file.open("ab") as stream:
        if size:
            os.posix_fallocate(stream.fileno(), 0, size)


@contextmanager
def writes(folder: Path) -> Iterator[None]:
    """What goes wrong when the cache is written, as one message.

    Raises:
        StorageError: it is full or cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{folder}: the cache cannot be written ({error.strerror or error}); make room there, or set LLM4MSR_CACHE "
            "to a folder with room"
        ) from None


def _files(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file()]


def _stat(file: Path) -> tuple[int, int, int]:
    stat = file.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _checksums(folder: Path) -> dict[str, str]:
    names = {str(file.relative_to(folder)): storage.path(file) for file in _files(folder)}
    return {name: storage.digest_file(file) for name, file in names.items() if name != CHECKSUMS}


def _note(folder: Path) -> None:
    (folder / CHECKSUMS).write_text(json.dumps(_checksums(folder)))
