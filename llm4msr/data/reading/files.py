"""The files of a table: one, all below a folder, or those that a pattern matches. One listing tells their sizes too."""

import glob
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from upath import UPath

from llm4msr import storage
from llm4msr.errors import DataError, StorageError
from llm4msr.storage.s3 import FAULTS

THREADS = 16
"""Files that are hashed, or whose ends are read, at the same time."""
MOST_FILES = 1 << 22
"""Of a table: a row's number begins with that of its file."""
_NULL = "__HIVE_DEFAULT_PARTITION__"
"""What Hive and Spark write for a missing value in the name of a folder."""
_OTHER_KINDS = {"delta": r"(^|/)_delta_log/", "iceberg": r"(^|/)metadata/[^/]+\.metadata\.json$"}


class SourceFile(NamedTuple):
    """A file with what a listing says of it."""

    path: UPath
    name: str
    """Relative to the folder of the source."""
    size: int
    tag: str = ""
    """An object store's mark of the content; empty where there is none."""

    @property
    def is_parquet(self) -> bool:
        """Whether it is read as Parquet; anything else is a CSV."""
        return self.path.suffix.lower() == ".parquet"

    @property
    def keys(self) -> dict[str, str | None]:
        """The columns that folders named `key=value` stand for."""
        pairs = (folder.partition("=") for folder in self.name.split("/")[:-1] if "=" in folder)
        return {unquote(key): None if value == _NULL else unquote(value) for key, _, value in pairs}


def find_files(folder: UPath, name: str) -> list[SourceFile]:
    """The files of the table `name` in `folder`, sorted by name; `name` may be a file, a folder or a pattern.

    Files and folders whose names begin with `_` or `.` are passed over, unless `name` spells theirs out.

    Raises:
        DataError: there is none, they are CSV and Parquet files mixed, or files of a Delta or Iceberg table.
        StorageError: the place cannot be read.
    """
    if name.startswith("/") and isinstance(folder, Path):
        folder, name = storage.path("/"), name.lstrip("/")
    place = folder / name if name else folder
    try:
        entries = _list(folder, place, name)
    except FAULTS as error:
        raise StorageError(f"{place}: cannot be read ({type(error).__name__}); check source.path and access") from None
    files = [file for file in (_as_file(folder, entry) for entry in entries) if not _is_hidden(file, place, name)]
    if not files:
        raise DataError(f"{place}: no files; files and folders whose names begin with '_' or '.' do not count")
    if len(files) > MOST_FILES:
        raise DataError(f"{place}: {len(files)} files, of which a table may have {MOST_FILES}; write larger ones")
    parquet, others = ([file for file in files if file.is_parquet is kind] for kind in (True, False))
    if parquet and others:
        raise DataError(
            f"{place}: Parquet and other files: {parquet[0].name}, {others[0].name}; name those of one kind with a "
            "pattern such as '**/*.parquet'"
        )
    return sorted(files, key=lambda file: file.name)


def _list(folder: UPath, place: UPath, name: str) -> list[dict[str, Any]]:
    """What the file system says of each file."""
    fs = place.fs
    if glob.has_magic(name) and not fs.exists(place.path):
        matches = fs.glob(f"{glob.escape(folder.path.rstrip('/'))}/{name}", detail=True).values()
    else:
        matches = [fs.info(place.path)]
    entries = {}
    for match in matches:
        for entry in _below(fs, match["name"]) if match["type"] == "directory" else [match]:
            entries[entry["name"]] = entry  # a pattern may match a folder and what lies in it
    return list(entries.values())


def _below(fs: Any, folder: str) -> list[dict[str, Any]]:
    """The files below a folder that is no table of another kind."""
    entries = fs.find(folder, detail=True)
    for kind, mark in _OTHER_KINDS.items():
        if any(re.search(mark, path[len(folder) :]) for path in entries):
            raise DataError(f"{folder}: a table of source.kind = '{kind}'; its files alone are not its rows")
    return [entry for path, entry in entries.items() if not path.endswith("/")]


def _is_hidden(file: SourceFile, place: UPath, name: str) -> bool:
    hidden = {part for part in file.name.split("/") if part.startswith(("_", "."))}
    return file.path != place and not hidden <= {*name.split("/")}


def _as_file(folder: UPath, entry: dict[str, Any]) -> SourceFile:
    name = str(entry["name"]).removeprefix(folder.path.rstrip("/")).lstrip("/")
    path = folder / name if name else folder
    return SourceFile(path, name or folder.name, int(entry.get("size") or 0), _tag(entry))


def _tag(entry: dict[str, Any]) -> str:
    return str(entry.get("ETag") or entry.get("etag") or "")


def file_fingerprint(file: UPath) -> str:
    """Hash of a file's name and content; an object store's ETag and size stand for the content where there is one.

    Raises:
        StorageError: it cannot be found or read.
    """
    try:
        info = file.fs.info(file.path)
    except FAULTS as error:
        raise StorageError(f"{file}: cannot be read ({type(error).__name__}); check source.path and access") from None
    return _hash(SourceFile(file, file.name, int(info.get("size") or 0), _tag(info)))


def fingerprint(files: Iterable[SourceFile]) -> str:
    """Hash of the files' names and contents.

    Raises:
        StorageError: one cannot be read.
    """
    return storage.digest(*hash_files(files))


def hash_files(files: Iterable[SourceFile]) -> list[str]:
    """A hash of each file's name and content.

    Raises:
        StorageError: one cannot be read.
    """
    with ThreadPoolExecutor(THREADS) as threads:
        return [*threads.map(_hash, files)]


def _hash(file: SourceFile) -> str:
    return storage.digest(file.name, f"{file.tag} {file.size}" if file.tag else storage.digest_file(file.path))
