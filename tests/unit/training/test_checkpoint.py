"""What a training goes on from, after a full disk, a lost file or a crash of the machine."""

import errno
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llm4msr import storage
from llm4msr.errors import StorageError
from llm4msr.training import checkpoint
from llm4msr.training.checkpoint import Checkpoint, Progress
from tests.support.data import flipped


def at(epoch: int, batch: int = 0) -> Checkpoint:
    return Checkpoint(Progress(epoch, batch), *({"w": torch.arange(8.0) + more} for more in range(3)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A training's folder with a checkpoint, and what is left of a later one that was never whole."""
    checkpoint.keep(at(3), storage.path(tmp_path))
    (unfinished,) = kept(tmp_path)
    (unfinished / "digests.json").unlink()
    aside = unfinished.rename(tmp_path / "aside")
    checkpoint.keep(at(2), storage.path(tmp_path))
    aside.rename(unfinished)
    return tmp_path


def kept(folder: Path) -> list[Path]:
    return sorted((folder / checkpoint.FOLDER).glob("*"))


def after(folder: Path) -> int:
    """How many checkpoints are left of those that can be read, of which the last one is the latest."""
    checkpoint.forget_unreadable(storage.path(folder))
    last = checkpoint.newest(storage.path(folder))
    assert last == (kept(folder)[-1] if kept(folder) else None)
    return len(kept(folder))


def test_a_whole_checkpoint_stays_and_what_was_never_whole_goes(folder: Path, capfd: pytest.CaptureFixture[str]):
    assert checkpoint.newest(storage.path(folder)) == kept(folder)[0]
    assert after(folder) == after(folder) == 1
    loaded = Checkpoint.load(storage.path(kept(folder)[0]))
    assert loaded.progress == at(2).progress
    assert torch.equal(loaded.optimizer["w"], at(2).optimizer["w"])
    assert capfd.readouterr().err == ""


def test_the_next_checkpoint_takes_the_place_of_those_before(folder: Path):
    checkpoint.keep(at(3, 1), storage.path(folder))
    (only,) = kept(folder)
    assert Checkpoint.load(storage.path(only)).progress == at(3, 1).progress


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-2] ^= 1
    file.write_bytes(data)


def test_storage_that_fails_for_a_moment_loses_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(file: Path) -> bytes:
        raise OSError(errno.EIO, "not now", str(file))

    with monkeypatch.context() as failing:
        failing.setattr(Path, "read_bytes", fail)
        for look in (checkpoint.forget_unreadable, checkpoint.newest):
            with pytest.raises(StorageError, match="cannot be read"):
                look(storage.path(folder))
    assert len(kept(folder)) == 2
    assert after(folder) == 1


NAMES = ("net.safetensors", "best.safetensors", "optimizer.safetensors", "progress.json", "digests.json")


@pytest.mark.parametrize("harm", [cut, empty, flip, Path.unlink])
@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_that_is_not_whole_counts_as_none(
    folder: Path, name: str, harm: Callable[[Path], None], capfd: pytest.CaptureFixture[str]
):
    one = kept(folder)[0]
    harm(one / name)
    with pytest.raises(StorageError, match="checkpoint"):
        Checkpoint.load(storage.path(one))
    assert after(folder) == 0
    assert f"{folder.name}: no checkpoint that can be read; training begins anew" in capfd.readouterr().err


@pytest.mark.parametrize("name", NAMES)
def test_no_flipped_bit_of_a_checkpoint_is_used(folder: Path, name: str):
    one, rng = kept(folder)[0], random.Random(name)
    whole = (one / name).read_bytes()
    for _ in range(200):
        flipped(one / name, rng)
        with pytest.raises(StorageError, match="checkpoint"):
            Checkpoint.load(storage.path(one))
        (one / name).write_bytes(whole)
    assert Checkpoint.load(storage.path(one)).progress == at(2).progress


def test_a_folder_without_checkpoints_is_left_alone(tmp_path: Path):
    assert after(tmp_path) == 0
    assert not list(tmp_path.iterdir())
