"""Files of a folder or an object store: read, written in one piece, listed and digested, with errors in one message."""

import codecs
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow.fs as pafs
from upath import UPath

from llm4msr.errors import StorageError
from llm4msr.storage import local_files, lock
from llm4msr.storage.local_files import full_disk_errors
from llm4msr.storage.s3 import FAULTS


@contextmanager
def access_errors(file: UPath, action: str) -> Iterator[None]:
    """Turn whatever storage raises in the block into one message; `action` is "read", "written" or the like."""
    try:
        with full_disk_errors(file):
            yield
    except FAULTS as error:
        why = type(error).__name__ if action == "read" else error
        raise StorageError(f"{file}: cannot be {action} ({why}); check the path and access") from None


RERUN = "delete it and run its stage again"
"""What to do about a damaged file where nothing better is known."""


def read_bytes(file: UPath, checksum: str = "", advice: str = RERUN) -> bytes:
    """The whole file, compared with its `checksum` where one is given; an error then ends with the `advice`.

    Raises:
        StorageError: it does not exist, cannot be read, or has another content.
    """
    with access_errors(file, "read"):
        data = file.read_bytes() if isinstance(file, Path) else bytes(file.fs.cat_file(file.path))  # one request
    if checksum:
        compare(file, digest(data), checksum, advice)
    return data


def read_text(file: UPath) -> str:
    """The whole file as text: UTF-8 with or without a byte order mark, any line end (returned as a line feed).

    Every text that a user provides is read here: configs, templates, lists of ids.

    Raises:
        StorageError: it does not exist, cannot be read, or is in another encoding.
    """
    data = read_bytes(file)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        encoding = "UTF-16" if utf16 else f"not UTF-8 (byte {error.start + 1} is 0x{data[error.start]:02x})"
        raise StorageError(f"{file}: the encoding is {encoding}; save it as UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def write_bytes(file: UPath, data: bytes, durable: bool = False) -> None:
    """Write in one piece: a reader sees the old file or the new one, never a part.

    `durable` is for what makes other files visible: it is on the disk before it has its name.

    Raises:
        StorageError: the place cannot be written.
    """
    with access_errors(file, "written"):
        if isinstance(file, Path):
            with local_files.atomic_write(file, durable) as aside:
                aside.write_bytes(data)
        else:
            file.fs.pipe_file(file.path, data)


@contextmanager
def create(file: UPath) -> Iterator[BinaryIO]:
    """A stream for a file too large for memory; the file appears in one piece when the block ends without error.

    Raises:
        StorageError: the place cannot be written.
    """
    with access_errors(file, "written"):
        if isinstance(file, Path):
            with local_files.atomic_write(file) as aside, aside.open("wb") as stream:
                yield stream
        else:
            with file.fs.transaction, file.fs.open(file.path, "wb") as stream:
                yield stream


def compare(file: UPath, actual: str, checksum: str, advice: str) -> None:
    """Refuse content whose `actual` digest is not its checksum.

    Raises:
        StorageError: it is another one.
    """
    if actual != checksum:
        raise StorageError(f"{file}: damaged, its content is not what its checksum says; {advice}")


def arrow_filesystem(file: UPath) -> tuple[pafs.FileSystem, str]:
    """The same place as pyarrow names it: its file system, and the path in it."""
    if isinstance(file, Path):
        return pafs.LocalFileSystem(), str(file)
    handler = cast("Callable[..., pafs.FileSystemHandler]", pafs.FSSpecHandler)  # pyarrow's stubs call it abstract
    return pafs.PyFileSystem(handler(file.fs)), file.path


def flush(folder: UPath, names: Sequence[str]) -> None:
    """Make sure that these files below the folder survive a crash of the machine, if they lie on a disk."""
    if isinstance(folder, Path):
        with access_errors(folder, "written"):
            local_files.flush(folder, names)


def remove(folder: UPath) -> None:
    """Delete a folder and all that is in it, if it exists."""
    with access_errors(folder, "deleted"), suppress(FileNotFoundError):  # another run may delete it at the same time
        folder.fs.rm(folder.path, recursive=True)


def digest(*parts: bytes | str) -> str:
    """A short content hash (128 bits, hexadecimal) of the parts in order, with their boundaries."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        state.update(len(data).to_bytes(8, "little"))
        state.update(data)
    return state.hexdigest()


def digest_file(file: UPath) -> str:
    """`digest` of a file's content, in bounded memory.

    Raises:
        StorageError: it does not exist or cannot be read.
    """
    state = hashlib.blake2b(digest_size=16)
    with access_errors(file, "read"):
        state.update(int(file.stat().st_size).to_bytes(8, "little"))
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 22):
                state.update(chunk)
    return state.hexdigest()


def digest_json(value: object) -> str:
    """Content hash of anything that is plain JSON."""
    return digest(json.dumps(value, sort_keys=True, default=str))


def files_below(folder: UPath, temporary: bool = False) -> dict[str, int]:
    """Name relative to `folder` -> bytes of each file in it, from one listing.

    Locks, and what killed writers left, are not files of an output; they are listed only with `temporary`.
    """
    root = folder.path.rstrip("/") + "/"
    with access_errors(folder, "read"):
        folder.fs.invalidate_cache(folder.path)
        entries = folder.fs.find(folder.path, detail=True)
    sizes = {str(name).removeprefix(root): int(entry["size"]) for name, entry in entries.items()}
    return {name: size for name, size in sizes.items() if temporary or not _is_temporary(name.rpartition("/")[2])}


def _is_temporary(name: str) -> bool:
    return name == lock.NAME or local_files.is_unfinished(name)
