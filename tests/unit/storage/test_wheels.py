import hashlib
import importlib.util
import zipfile
from pathlib import Path

import pytest

from llm4msr.errors import StorageError
from llm4msr.storage import cache
from llm4msr.storage.wheels import Wheel, fetch

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
    assert folder == cache.root() / "tiny_data-1.0" / "tiny_data" / "wanted"
    assert (folder / "a.txt").read_text() == "hello"
    assert not (folder.parent / "other.txt").exists()
    (index / NAME).unlink()
    assert fetch(pinned, "tiny_data/wanted/") == folder


def test_another_file_than_the_pinned_one_is_refused(index: Path):
    with pytest.raises(
        StorageError, match=rf"{NAME}: SHA-256 is [0-9a-f]{{64}}, pinned is 00; the index serves another"
    ):
        fetch(Wheel("tiny_data==1.0", "00"), "tiny_data/")
    assert not (cache.root() / "tiny_data-1.0").exists()


def test_a_wheel_that_pip_cannot_find_is_named(index: Path):
    with pytest.raises(StorageError, match=r"pip could not fetch tiny_data==2\.0: .*check the package index"):
        fetch(Wheel("tiny_data==2.0", "00"), "tiny_data/")


def test_without_a_pip_the_one_that_python_keeps_is_used(index: Path, monkeypatch: pytest.MonkeyPatch):
    absent(monkeypatch, "pip")
    assert (fetch(wheel(index), "tiny_data/wanted/") / "a.txt").read_text() == "hello"


def test_without_any_pip_it_is_said_how_to_get_one(index: Path, monkeypatch: pytest.MonkeyPatch):
    absent(monkeypatch, "pip", "ensurepip")
    with pytest.raises(StorageError, match=r"no pip, .*python -m ensurepip, or uv pip install pip"):
        fetch(wheel(index), "tiny_data/wanted/")


def absent(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in packages else found(name))


def test_an_index_that_does_not_answer_is_told_with_the_cause(index: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://user:hidden@127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(StorageError, match=r"could not fetch tiny_data==2\.0: .*Connection refused.*check the") as told:
        fetch(Wheel("tiny_data==2.0", "00"), "tiny_data/")
    assert "hidden" not in str(told.value)
