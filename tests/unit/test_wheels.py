import hashlib
import zipfile
from pathlib import Path

import pytest

from llm4msr import wheels
from llm4msr.errors import StorageError
from llm4msr.wheels import Wheel, cache_folder, fetch

NAME = "tiny_data-1.0-py3-none-any.whl"
METADATA = "Metadata-Version: 2.1\nName: tiny-data\nVersion: 1.0\n"
TAGS = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index of one wheel, in a folder: pip looks nowhere else."""
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / NAME, "w") as archive:
        archive.writestr("tiny_data/wanted/a.txt", "hello")
        archive.writestr("tiny_data/other.txt", "no")
        archive.writestr("tiny_data-1.0.dist-info/METADATA", METADATA)
        archive.writestr("tiny_data-1.0.dist-info/WHEEL", TAGS)
        archive.writestr("tiny_data-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("LLM4MSR_CACHE", str(tmp_path / "cache"))
    return folder


def wheel(folder: Path) -> Wheel:
    return Wheel("tiny_data==1.0", hashlib.sha256((folder / NAME).read_bytes()).hexdigest())


def test_wanted_files_are_unpacked_once(index: Path):
    pinned = wheel(index)
    folder = fetch(pinned, "tiny_data/wanted/")
    assert folder == cache_folder() / "tiny_data-1.0" / "tiny_data" / "wanted"
    assert (folder / "a.txt").read_text() == "hello"
    assert not (folder.parent / "other.txt").exists()
    (index / NAME).unlink()
    assert fetch(pinned, "tiny_data/wanted/") == folder


def test_another_file_than_the_pinned_one_is_refused(index: Path):
    with pytest.raises(
        StorageError, match=rf"{NAME}: SHA-256 is [0-9a-f]{{64}}, pinned is 00; the index serves another"
    ):
        fetch(Wheel("tiny_data==1.0", "00"), "tiny_data/")
    assert not (cache_folder() / "tiny_data-1.0").exists()


def test_a_wheel_that_pip_cannot_find_is_named(index: Path):
    with pytest.raises(StorageError, match=r"pip could not fetch tiny_data==2\.0: .*check the package index"):
        fetch(Wheel("tiny_data==2.0", "00"), "tiny_data/")


@pytest.mark.parametrize("variable", [True, False])
def test_the_cache_lies_where_the_variable_says_or_in_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: bool
):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LLM4MSR_CACHE", str(tmp_path / "own") if variable else "")
    expected = tmp_path / "own" if variable else tmp_path / ".cache" / "llm4msr"
    assert wheels.cache_folder() == expected
    assert expected.is_dir()
