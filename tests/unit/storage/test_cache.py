"""Folders of the local cache: damage, a full disk, copies in use."""

import errno
import os
import random
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from upath import UPath

from llm4msr import storage
from llm4msr.errors import StorageError
from llm4msr.knowledge import store
from llm4msr.knowledge.store import KnowledgeStore
from llm4msr.storage import StageOutput, StageResult, cache, local_copy
from llm4msr.storage.local_copy import open_local
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
    matrix = store.map_zeros(file, (1000, 64))
    assert file.stat().st_blocks * 512 >= matrix.nbytes
    with pytest.raises(OSError, match=r"No space left|File too large"):
        cache.reserve(file, 1 << 62)


# --- the knowledge store --------------------------------------------------------------------------------------------


def test_no_flipped_bit_of_the_mapped_vectors_is_used(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = KnowledgeStore.open(world.knowledge, 41, 3)
    users_NZ, known_N = np.array(opened.users_NZ), opened.known_N
    (folder,) = store.cache_path(world.knowledge).parent.glob(f"{store.cache_path(world.knowledge).name}.41")
    rng = random.Random(2)
    for flip in range(FLIPS):
        flipped(folder / ("users.npy", "known.npy")[flip % 2], rng)
        again = KnowledgeStore.open(world.knowledge, 41, 3)
        np.testing.assert_array_equal(again.users_NZ, users_NZ)
        np.testing.assert_array_equal(again.known_N, known_N)


# --- copies of outputs ----------------------------------------------------------------------------------------------


def remote(number: int = 0) -> StageOutput:
    """Codes on a store that is not of this machine."""

    def made(at: UPath) -> StageResult:
        storage.write_bytes(at / "codes.arrow", b"codes of %d " % number * 20)
        return StageResult(files={"codes.arrow": 1}, rows=1)

    return storage.publish(storage.path(f"memory://{uuid.uuid4()}/codes"), "refresh", 1, {}, {}, made)


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLM4MSR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "bundles"


def test_a_copy_with_a_flipped_bit_is_made_again(copies: Path) -> None:
    output = remote()
    file = open_local(str(output.folder), "refresh").folder / "codes.arrow"
    whole, rng = file.read_bytes(), random.Random(3)
    for _ in range(FLIPS):
        flipped(file, rng)
        assert (open_local(str(output.folder), "refresh").folder / "codes.arrow").read_bytes() == whole


def test_a_damaged_original_is_named_and_never_copied(copies: Path) -> None:
    output, rng = remote(), random.Random(4)
    whole = storage.read_bytes(output.folder / "codes.arrow")
    for _ in range(FLIPS):
        at = rng.randrange(8 * len(whole))
        changed = bytearray(whole)
        changed[at // 8] ^= 1 << at % 8
        storage.write_bytes(output.folder / "codes.arrow", bytes(changed))
        with pytest.raises(StorageError, match=r"codes/codes\.arrow: damaged, its checksum is not the manifest's"):
            open_local(str(output.folder), "refresh")
    assert not [folder for folder in copies.iterdir() if folder.is_dir()]


def test_a_disk_that_damages_a_fresh_copy_is_named(copies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "digest_file", lambda file: "0" * 32)
    with pytest.raises(StorageError, match=r"codes\.arrow: a fresh copy of .* is damaged; check this machine's disk"):
        open_local(str(remote().folder), "refresh")
    assert not [folder for folder in copies.iterdir() if folder.is_dir()]


def test_copies_in_use_stay_whatever_their_age(copies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_copy, "COPIES_KEPT", 1)
    first = open_local(str(remote(0).folder), "refresh")
    os.utime(first.folder, (0, 0))  # a clock that jumped
    second = open_local(str(remote(1).folder), "refresh").folder
    assert first.folder.is_dir()
    folder = first.folder
    del first
    os.utime(second, (0, 0))
    third = open_local(str(remote(2).folder), "refresh")
    assert [kept.is_dir() for kept in (folder, second, third.folder)] == [False, False, True]


def test_a_full_disk_under_a_copy_is_one_message(copies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: Path, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cache, "reserve", full)
    with pytest.raises(StorageError, match=r"the cache cannot be written \(No space left on device\); make room there"):
        open_local(str(remote().folder), "refresh")
    assert not [folder for folder in copies.iterdir() if folder.is_dir()]
