"""Outputs of stages, which their manifest makes visible.

An output folder counts only once its `manifest.json` exists. The manifest is written last and in one piece
(rename on disk, a single PUT on an object store), so that readers never see a half-written output.
"""

import json
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel
from upath import UPath

from llm4msr.errors import StorageError
from llm4msr.storage import files, local_files, lock, parquet, stage_files
from llm4msr.storage.local_files import full_disk_errors
from llm4msr.storage.manifest import MANIFEST, MAX_BYTES, Manifest, git_commit, library_versions, mask_values
from llm4msr.storage.parquet import FileRecord
from llm4msr.text import mask


class StageResult(BaseModel):
    """What the work of a stage says about itself; the rest of the manifest is the same for every stage."""

    files: Mapping[str, int | FileRecord]
    """File name relative to the output -> rows in it, or the record that writing it returned."""
    rows: int
    failed: int = 0
    skipped: int = 0
    info: dict[str, Any] = {}


class StageOutput:
    """A finished output: its place and its manifest."""

    def __init__(self, folder: UPath, manifest: Manifest, reused: bool = False):
        self.folder, self.manifest, self.reused = folder, manifest, reused

    @property
    def content(self) -> str:
        """Hash of all its files, which changes where it was made anew with another result."""
        return files.digest_json({name: file.digest for name, file in self.manifest.files.items()})

    def checksum(self, name: str) -> str:
        """A file's digest, as the manifest has it.

        Raises:
            StorageError: it does not name the file.
        """
        if name not in self.manifest.files:
            raise StorageError(f"{self.folder / MANIFEST}: does not name {name}; {self._advice(name)}")
        return self.manifest.files[name].digest

    def read(self, name: str) -> bytes:
        """A file's content.

        Raises:
            StorageError: it is missing or damaged; so for all methods that read.
        """
        return files.read_bytes(self.folder / name, self.checksum(name), self._advice(name))

    def json(self, name: str) -> Any:
        """The value in a JSON file."""
        return json.loads(self.read(name))

    def table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """A Parquet file's rows."""
        return parquet.read_table(self.folder / name, columns, self._advice(name), self.checksum(name))

    def parquet(self, name: str) -> pq.ParquetFile:
        """Open a Parquet file for reading row groups; close it after use."""
        return parquet.open_parquet(self.folder / name, self._advice(name), self.checksum(name))

    def row_groups(self, name: str) -> pq.ParquetFile:
        """Open a Parquet file that stays open, to read single row groups within `read_errors`."""
        return parquet.open_parquet(self.folder / name, self._advice(name), self.checksum(name), by_group=True)

    def read_errors(self, name: str) -> AbstractContextManager[None]:
        """Within it, what goes wrong in reading rows of a file is a `StorageError`."""
        return parquet.read_errors(self.folder / name, self._advice(name))

    def _advice(self, name: str) -> str:
        return repair_advice(self.folder, self.manifest.stage, self.folder / name)

    def summary(self) -> dict[str, object]:
        """What the line that every verb prints last says."""
        m = self.manifest
        line: dict[str, object] = {
            "stage": m.stage,
            "uri": mask(str(self.folder)),
            "rows": m.rows,
            "failed": m.failed,
            "skipped": m.rows if self.reused else m.skipped,
            "seconds": 0.0 if self.reused else round(m.seconds, 1),
        }
        return line | {k: m.info[k] for k in ("metrics", "baselines", "warnings", "forgotten") if k in m.info}


def open_output(folder: UPath) -> StageOutput | None:
    """The finished output in this folder, or None where there is none.

    Raises:
        StorageError: the manifest is damaged, or a file that it names is gone or has another size.
    """
    file = folder / MANIFEST
    with files.access_errors(file, "read"):
        if not file.exists():
            return None
        size, is_device = file.stat().st_size, isinstance(file, Path) and not file.is_file()
    try:
        if is_device:  # or a pipe, which would be read without end
            raise ValueError("no file")
        if size > MAX_BYTES:
            raise ValueError("too long")
        manifest = Manifest.model_validate_json(files.read_bytes(file))
    except ValueError:  # pydantic's among them
        stage = "extract" if (folder / "vectors").exists() else folder.parent.name
        raise StorageError(f"{file}: damaged manifest; {repair_advice(folder, stage)}") from None
    if problem := stage_files.find_problem(manifest.stage, manifest.files, folder):
        raise StorageError(f"{file}: {problem}; it is damaged or not from this package: do not use this output")
    sizes = files.files_below(folder)
    for name, record in manifest.files.items():
        size = sizes.get(name, -1)
        if size != record.bytes:
            fault = "missing" if size < 0 else f"{size} bytes, not {record.bytes}"
            raise StorageError(f"{folder / name}: {fault}; {repair_advice(folder, manifest.stage, folder / name)}")
    return StageOutput(folder, manifest)


def repair_advice(folder: UPath, stage: str, file: UPath | None = None) -> str:
    """What to do about an output with a damaged file."""
    if stage != "extract":
        return f"delete {folder} and run stage '{'prepare' if stage == 'shuffle' else stage}' again"
    damaged = f"{file} and " if file else ""
    return (
        f"delete {damaged}{folder / MANIFEST}, then run `llm4msr extract` again: "
        "it asks anew for the rows that are lost and keeps all others"
    )


def publish(
    folder: UPath,
    stage: str,
    seed: int,
    config: Mapping[str, object],
    inputs: Mapping[str, str],
    build: Callable[[UPath], StageResult],
    resumable: bool = False,
) -> StageOutput:
    """The finished output of a stage in `folder`: found there, or built and then made visible by its manifest.

    One run at a time works there; others wait for what it publishes. What an interrupted run left is deleted first, or
    left for `build` if the stage is `resumable`.

    Raises:
        StorageError: the folder cannot be written, which is said before any work.
    """
    if finished := open_output(folder):
        finished.reused = True
        return finished
    with lock.hold(folder) as held:
        if finished := open_output(folder):  # by the run that this one waited for
            finished.reused = True
            return finished
        continued = bool(files.files_below(folder))
        clear(folder, keep=resumable)
        begun = time.monotonic()
        with full_disk_errors(folder):
            result = build(folder)
        manifest = Manifest(
            stage=stage,
            fingerprint=folder.name,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            seed=seed,
            config=mask_values(config),
            inputs=mask_values(inputs),
            files=_records(folder, stage, result),
            **result.model_dump(exclude={"files"}),
            continued=continued,
            seconds=time.monotonic() - begun,
            libraries=library_versions(),
            git_commit=git_commit(),
        )
        if isinstance(folder, Path):
            with files.access_errors(folder, "written"):
                local_files.sweep(folder)
        files.flush(folder, list(manifest.files))
        held.check()
        files.write_bytes(folder / MANIFEST, manifest.model_dump_json(indent=2).encode(), durable=True)
        return StageOutput(folder, manifest)


def _records(folder: UPath, stage: str, result: StageResult) -> dict[str, FileRecord]:
    records = {
        name: rows if isinstance(rows, FileRecord) else parquet.record_file(folder / name, rows)
        for name, rows in result.files.items()
    }
    if problem := stage_files.find_problem(stage, records, folder):
        raise ValueError(f"{folder}: {problem}; stage_files.py says which are")
    return records


def clear(folder: UPath, keep: bool = False) -> None:
    """Delete what an interrupted run left, but not the lock; with `keep`, only the files that it had not finished."""
    with files.access_errors(folder, "cleared"):
        if isinstance(folder, Path) and keep:
            local_files.sweep(folder)
        for place in [] if keep else folder.iterdir():
            if place.name != lock.NAME:
                folder.fs.rm(place.path, recursive=True)
