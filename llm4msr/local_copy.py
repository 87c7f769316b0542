"""A finished output's files on this machine, checked: where they lie, or a copy that all processes here share.

What lies on an object store is copied once to this machine's cache, since it will be memory-mapped.
"""

import os
import shutil
import tempfile
from pathlib import Path

from filelock import FileLock

from llm4msr import storage, wheels
from llm4msr.errors import StorageError
from llm4msr.storage import StageOutput

COPIES_KEPT = 8
"""Outputs that the cache keeps, the latest used."""


def on_this_machine(uri: str, stage: str = "export") -> tuple[Path, StageOutput]:
    """A finished output's files as local ones, each of the size and checksum that its manifest states.

    Raises:
        StorageError: not a finished output of that stage, or a file is missing, damaged or foreign.
    """
    output = opened(uri, stage)
    folder = output.folder
    local = folder if isinstance(folder, Path) else _cached(output)
    for name, part in output.manifest.files.items():
        if storage.digest_file(storage.path(local / name)) != part.digest:
            if local != folder:
                shutil.rmtree(local)  # so that the next try copies again
            raise StorageError(f"{folder / name}: damaged, its checksum is not the manifest's; {stage} again")
    return Path(local), output


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


def _cached(output: StageOutput) -> Path:
    """A copy below this machine's cache, made once for all its processes."""
    parts = output.manifest.files.items()
    folder = wheels.cache_folder() / "bundles" / storage.digest_of({name: part.digest for name, part in parts})
    folder.parent.mkdir(exist_ok=True)
    with FileLock(folder.parent / ".lock"):
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=folder.parent) as aside:
                new = Path(aside) / "new"
                new.mkdir()
                for name, _ in parts:
                    with (output.folder / name).open("rb") as there, (new / name).open("wb") as here:
                        shutil.copyfileobj(there, here, 1 << 22)
                new.rename(folder)
        os.utime(folder)
        by_age = sorted((f for f in folder.parent.iterdir() if f.is_dir()), key=lambda f: f.stat().st_mtime)
        for old in by_age[:-COPIES_KEPT]:  # who has one mapped keeps it until the process ends
            shutil.rmtree(old, ignore_errors=True)
    return folder
