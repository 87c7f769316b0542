"""Which files make up which table: files of one name but for its numbers, and folders whose files are all alike."""

import os
import posixpath
import re
from collections.abc import Sequence
from typing import NamedTuple

from upath import UPath

from llm4msr import storage
from llm4msr.data.reading.files import SourceFile
from llm4msr.errors import DataError, StorageError
from llm4msr.text import shorten

TEXT_ENDS = (".csv", ".tsv", ".tab", ".psv", ".txt", ".dat", ".data", ".inter", ".item", ".user")
"""Names that a folder's files of text have, `.gz` behind them or not; others in a folder are passed over."""
_VARIES = re.compile(r"[0-9a-f]{8,}(-[0-9a-f]{4,})*|\d+(-\d+)*", re.IGNORECASE)
"""What tells the files of one table apart: numbers, dates, and what Spark adds to its names."""


class TableFiles(NamedTuple):
    """A table as `source.table` would name it, and its files in the order of their names."""

    name: str
    files: list[SourceFile]


class Places(NamedTuple):
    """What the places that were given have in common."""

    path: str
    """The folder of all of them, as the user would write it: `source.path`."""
    folder: UPath
    files: list[SourceFile]
    """Those that may be tables, named relative to `folder`."""
    others: list[str]
    """Names of those that are none."""


def look_into(places: Sequence[str]) -> Places:
    """List the files and folders that were given.

    Raises:
        DataError: there is no CSV or Parquet file.
        StorageError: a place does not exist or cannot be read, or they lie on different storages.
    """
    given = [storage.path(place) for place in places]
    folders = [place if place.is_dir() else place.parent for place in given]
    folder = _common(folders)
    sizes: dict[str, int] = {}
    for place, top in zip(given, folders, strict=True):
        inner = _relative(top, folder)
        if top == place:
            sizes |= {posixpath.join(inner, name): size for name, size in storage.files_below(place).items()}
        else:
            sizes[posixpath.join(inner, place.name)] = _size(place)
    spelled_out = {_relative(place, folder) for place in given}
    for name in sizes:
        if not name.isprintable():
            raise DataError(f"{folder}: the name {name!r} has characters that no config can hold; rename the file")
    outputs = [posixpath.dirname(name) for name in sizes if posixpath.basename(name) == storage.MANIFEST]
    hidden = {name for name in sizes if _is_hidden(name) or _is_below(name, outputs)} - spelled_out
    shown = {name: size for name, size in sorted(sizes.items()) if name not in hidden}
    chosen = {name for name in shown if name in spelled_out or _is_table(name)}
    if not chosen:
        held = shorten(", ".join(shown), 200) or "nothing"
        raise DataError(f"{folder}: no CSV and no Parquet file; it holds {held}")
    files = [SourceFile(folder / name, name, size) for name, size in shown.items() if name in chosen]
    others = [name for name in shown if name not in chosen]
    return Places(_as_written(folder, places), folder, files, others)


def _size(file: UPath) -> int:
    try:
        return int(file.stat().st_size)
    except (OSError, ValueError) as error:
        raise StorageError(f"{file}: cannot be read ({type(error).__name__}); check the path and access") from None


def _common(folders: Sequence[UPath]) -> UPath:
    first = folders[0]
    if any(folder.protocol != first.protocol for folder in folders):
        raise StorageError(f"{first} and {folders[-1]} lie on different storages; bring all files to one")
    common = posixpath.commonpath([folder.path for folder in folders])
    while "=" in posixpath.basename(common):  # a column, which is read from the names below `source.path`
        common = posixpath.dirname(common)
    return storage.path(str(first).removesuffix(first.path) + common)


def _relative(place: UPath, folder: UPath) -> str:
    inner = posixpath.relpath(place.path, folder.path)
    return "" if inner == "." else inner


def _as_written(folder: UPath, places: Sequence[str]) -> str:
    """Relative to where the command runs, if all places were given so and none lies above it."""
    if any("://" in place or place.startswith(("~", "/")) for place in places):
        return str(folder)
    inner = os.path.relpath(str(folder))
    return str(folder) if inner.startswith("..") else inner


def _is_hidden(name: str) -> bool:
    return any(part.startswith(("_", ".")) for part in name.split("/"))


def _is_below(name: str, outputs: Sequence[str]) -> bool:
    """Whether it is a file of one of our own outputs."""
    return any(name.startswith(f"{folder}/" if folder else "") for folder in outputs)


def _is_table(name: str) -> bool:
    plain = name.lower().removesuffix(".gz")
    return plain.endswith((*TEXT_ENDS, ".parquet"))


def group(places: Places) -> list[list[SourceFile]]:
    """The files of each table, as far as names tell."""
    groups: dict[str, list[SourceFile]] = {}
    for file in places.files:
        groups.setdefault(_mask(file.name), []).append(file)
    return list(groups.values())


def _mask(name: str) -> str:
    """The name with `*` for what tells the files of a table apart."""
    *folders, file = name.split("/")
    masked = [f"{part.partition('=')[0]}=*" if "=" in part else _VARIES.sub("*", part) for part in folders]
    return "/".join([*masked, _VARIES.sub("*", file)])


def folder_of(files: Sequence[SourceFile]) -> str:
    """The folder that all of them lie in or below, without folders named `key=value`."""
    parts = [file.name.split("/")[:-1] for file in files]
    common = [*os.path.commonprefix(parts)]
    while any("=" in part for part in common):
        common.pop()
    return "/".join(common)


def name_table(files: list[SourceFile], places: Places) -> TableFiles:
    """The name under which a table of these files is read: a file, a folder, or a pattern."""
    if len(files) == 1:
        return TableFiles(files[0].name, files)
    folder = folder_of(files)
    names = [*(file.name for file in places.files), *places.others]
    inside = [name for name in names if not folder or name.startswith(f"{folder}/")]
    return TableFiles(folder if len(inside) == len(files) else _mask(files[0].name), files)
