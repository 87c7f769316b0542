"""This machine's cache: folders that are built once for all its processes, checked when they are used, else rebuilt.

A disk that loses or changes a bit, or is full, never gives a result: the folder is built again, or a message says why
it cannot be.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from llm4msr.errors import StorageError
from llm4msr.storage import files, uri

CHECKSUMS = ".checksums.json"
"""Beside the files of a folder, where no manifest holds theirs."""
_Stats = tuple[tuple[str, int, int, int], ...]
_CHECKED: dict[Path, _Stats] = {}
"""Folders that this process has read through once, and how their files were then."""


def root() -> Path:
    """The cache: `LLM4MSR_CACHE`, else `~/.cache/llm4msr`. Every process here can write to it.

    Raises:
        StorageError: it is not on this machine, or cannot be written.
    """
    place = os.environ.get("LLM4MSR_CACHE") or "~/.cache/llm4msr"
    try:
        folder = uri.path(place)
        if not isinstance(folder, Path):
            raise StorageError(f"{place}: not a folder of this machine")
        folder.mkdir(mode=0o770, parents=True, exist_ok=True)  # it holds users' vectors: others have no access
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, StorageError) as error:
        raise StorageError(
            f"{place}: the cache cannot be written ({error}); set LLM4MSR_CACHE to a folder that can be written"
        ) from None
    return Path(folder)


def has_checksums(folder: Path) -> bool:
    """Whether the folder is there and its files have the checksums noted beside them; a process reads them once."""
    try:
        stats = tuple((str(file), *_stat(file)) for file in sorted(_files(folder)))
        if _CHECKED.get(folder) == stats:
            return bool(stats)
        whole = bool(json.loads((folder / CHECKSUMS).read_bytes()) == _checksums(folder))
    except (OSError, ValueError, RecursionError, StorageError):
        return False
    if whole:
        _CHECKED[folder] = stats
    return whole


def build_once(
    folder: Path,
    build: Callable[[Path], None],
    is_whole: Callable[[Path], bool] = has_checksums,
    adopt: bool = False,
) -> Path:
    """The folder with what `build` writes, whichever process of this machine was first to build it.

    Args:
        folder: in the cache.
        build: writes into the new folder that it is given, which is then renamed; called where there is no `folder`,
            or one that is not whole.
        is_whole: whether each file of a folder is there and undamaged. The default compares checksums that are noted
            beside what was built.
        adopt: whether a folder that an earlier release built, without checksums, is taken as it is.

    Raises:
        StorageError: the cache is full or cannot be written.
    """
    if is_whole(folder):
        return folder
    with write_errors(folder):
        folder.parent.mkdir(mode=0o770, exist_ok=True)  # the cache itself may be open to all
        with FileLock(f"{folder}.lock"):
            if adopt and folder.is_dir() and not (folder / CHECKSUMS).exists():
                _note_checksums(folder)
            if not is_whole(folder):
                shutil.rmtree(folder, ignore_errors=True)  # who has its files mapped keeps what is mapped
                _build(folder, build, noted=is_whole is has_checksums)
    return folder


def _build(folder: Path, build: Callable[[Path], None], noted: bool) -> None:
    aside = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed: the lock is ours
    try:
        aside.mkdir()
        build(aside)
        if noted:
            _note_checksums(aside)
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def reserve(file: Path, size: int) -> None:
    """Take the room for a file, so that a full disk is an error here and not a signal when the file is mapped.

    Raises:
        OSError: there is no room.
    """
    with file.open("ab") as stream:
        if size:
            os.posix_fallocate(stream.fileno(), 0, size)


@contextmanager
def write_errors(folder: Path) -> Iterator[None]:
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
    names = {str(file.relative_to(folder)): uri.path(file) for file in _files(folder)}
    return {name: files.digest_file(file) for name, file in names.items() if name != CHECKSUMS}


def _note_checksums(folder: Path) -> None:
    (folder / CHECKSUMS).write_text(json.dumps(_checksums(folder)))
