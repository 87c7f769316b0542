"""Copies of outputs on this machine: damage, a full disk, copies in use."""

import errno
import os
import random
import uuid
from pathlib import Path

import pytest
from upath import UPath

from llm4msr import storage
from llm4msr.errors import StorageError
from llm4msr.storage import StageOutput, StageResult, cache, local_copy
from llm4msr.storage.local_copy import open_local
from tests.support.data import flipped

FLIPS = 200


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
