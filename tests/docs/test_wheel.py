"""The wheel and the source archive: what is built from them is the whole package."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import llm4msr
from tests.support.experiments import ROOT

BUILD = "import sys; from setuptools import build_meta as b; print(getattr(b, sys.argv[1])(sys.argv[2]))"
NAME = f"llm4msr-{llm4msr.__version__}"


def build(hook: str, source: Path, folder: Path) -> Path:
    """What the build backend makes of a source tree, as pip and uv would ask it."""
    done = subprocess.run(
        [sys.executable, "-c", BUILD, hook, str(folder)], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built from the source archive, which was built from a copy of this tree."""
    folder = tmp_path_factory.mktemp("dist")
    copy = folder / "copy"
    shutil.copytree(ROOT / "llm4msr", copy / "llm4msr", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    archive = build("build_sdist", copy, folder)
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")
    return zipfile.ZipFile(build("build_wheel", folder / NAME, folder))


def test_the_wheel_holds_every_file_of_the_package_and_no_other(wheel: zipfile.ZipFile) -> None:
    package = ROOT / "llm4msr"
    files = {str(file.relative_to(ROOT)) for file in package.rglob("*") if file.is_file()}
    wanted = {name for name in files if "__pycache__" not in name}
    own = f"{NAME}.dist-info/"
    assert {name for name in wheel.namelist() if not name.startswith(own)} == wanted
    assert any(not name.endswith(".py") for name in wanted)


def test_the_wheel_brings_the_command_and_the_license(wheel: zipfile.ZipFile) -> None:
    own = f"{NAME}.dist-info"
    assert "llm4msr = llm4msr.cli.main:main" in wheel.read(f"{own}/entry_points.txt").decode()
    assert wheel.read(f"{own}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
