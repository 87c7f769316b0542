"""Where the cache lies, and its folders: built once, damaged, on a full disk."""

import errno
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llm4msr import pipeline
from llm4msr.errors import StorageError
from llm4msr.storage import cache
from tests.support.data import flipped
from tests.unit.conftest import World

FLIPS = 200


def build(new: Path) -> None:
    (new / "sub").mkdir()
    (new / "sub" / "a.bin").write_bytes(bytes(range(64)))
    (new / "b.bin").write_bytes(b"other")


def content(folder: Path) -> dict[str, bytes]:
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != cache.CHECKSUMS]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def test_a_folder_is_built_once_and_again_after_any_flipped_bit(tmp_path: Path) -> None:
    folder, built = tmp_path / "made", []

    def counted(new: Path) -> None:
        built.append(new)
        build(new)

    whole = content(cache.build_once(folder, counted))
    cache.build_once(folder, counted)
    assert len(built) == 1
    rng = random.Random(1)
    files = [folder / "sub" / "a.bin", folder / "b.bin", folder / cache.CHECKSUMS]
    for flip in range(FLIPS):
        flipped(files[flip % 3], rng)
        assert content(cache.build_once(folder, counted)) == whole
        assert len(built) == flip + 2


BUILDS = """
import sys, time
from pathlib import Path
from llm4msr.storage import cache

def build(new):
    with open(sys.argv[2], "a") as log:
        log.write("built")
    time.sleep(0.5)
    (new / "weights").write_text("all")

print("ready", flush=True)
sys.stdin.readline()
assert (cache.build_once(Path(sys.argv[1]), build) / "weights").read_text() == "all"
"""


def test_processes_that_want_a_folder_at_once_build_it_once(tmp_path: Path) -> None:
    """As the actors of a machine that all need the model."""
    command = [sys.executable, "-c", BUILDS, str(tmp_path / "made"), str(tmp_path / "log")]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    assert (tmp_path / "log").read_text() == "built"


@pytest.mark.parametrize("damage", [lambda f: f.unlink(), lambda f: os.truncate(f, 3), lambda f: os.truncate(f, 99)])
def test_missing_and_cut_files_have_the_folder_made_again(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    folder = cache.build_once(tmp_path / "made", build)
    whole = content(folder)
    damage(folder / "sub" / "a.bin")
    assert not cache.has_checksums(folder)
    assert content(cache.build_once(folder, build)) == whole


def test_a_folder_of_an_earlier_release_is_adopted_once(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    folder.mkdir()
    build(folder)

    def never(new: Path) -> None:
        raise AssertionError("built again")

    cache.build_once(folder, never, adopt=True)
    flipped(folder / "b.bin", random.Random(0))
    with pytest.raises(AssertionError, match="built again"):
        cache.build_once(folder, never, adopt=True)


def test_a_full_cache_is_one_message_and_leaves_nothing(tmp_path: Path) -> None:
    def fill(new: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(StorageError, match=r"made: the cache cannot be written \(No space left on device\); make room"):
        cache.build_once(tmp_path / "made", fill)
    assert [file.name for file in tmp_path.iterdir() if file.is_dir()] == []


def test_what_a_killed_process_had_begun_is_no_part_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / ".made.new").mkdir()
    (tmp_path / ".made.new" / "half.bin").write_bytes(b"half")
    assert set(content(cache.build_once(tmp_path / "made", build))) == {"sub/a.bin", "b.bin"}
    assert not (tmp_path / ".made.new").exists()


def test_room_is_taken_before_a_file_is_mapped(tmp_path: Path) -> None:
    file = tmp_path / "a.npy"
    cache.reserve(file, 1 << 17)
    assert file.stat().st_blocks * 512 >= 1 << 17
    with pytest.raises(OSError, match=r"No space left|File too large"):
        cache.reserve(file, 1 << 62)


@pytest.mark.parametrize("variable", [True, False])
def test_the_cache_lies_where_the_variable_says_or_in_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: bool
):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LLM4MSR_CACHE", str(tmp_path / "own") if variable else "")
    expected = tmp_path / "own" if variable else tmp_path / ".cache" / "llm4msr"
    assert cache.root() == expected
    assert expected.is_dir()


@pytest.mark.parametrize("place", ["/proc/nope", "/dev/null", "/dev/null/below", "memory://cache", "~no-such-user/x"])
def test_a_cache_that_cannot_be_written_names_the_variable(place: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LLM4MSR_CACHE", place)
    with pytest.raises(StorageError, match=rf"^{place}: the cache cannot be written .*set LLM4MSR_CACHE to a folder"):
        cache.root()


def test_a_home_that_is_none_names_the_variable(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/proc/nope")
    monkeypatch.delenv("LLM4MSR_CACHE", raising=False)
    with pytest.raises(StorageError, match=r"/proc/nope.*set LLM4MSR_CACHE to a folder that can be written"):
        cache.root()


def test_a_place_in_the_cache_is_closed_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LLM4MSR_CACHE", str(tmp_path / "own"))
    assert cache.root().stat().st_mode & 0o007 == 0


def test_stages_that_need_the_cache_say_so_before_they_work(
    world: World, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("LLM4MSR_CACHE", "/proc/nope")
    with pytest.raises(StorageError, match="set LLM4MSR_CACHE"):
        pipeline.train(world.config)
    with pytest.raises(StorageError, match="set LLM4MSR_CACHE"):
        pipeline.run(world.config.model_copy(update={"name": "elsewhere", "storage": "/proc/nope"}))
    assert not (world.data.folder.parent.parent / "train").exists()
