"""What a training goes on from, after a full disk, a lost file or a crash of the machine."""

import json
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

STATE = "checkpoint_manager_snapshot.json"
ONE = Checkpoint(Progress(epoch=2), *({"w": torch.arange(8.0) + at} for at in range(3)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint as Ray Train keeps it, and what is left of one that was never whole."""
    kept = tmp_path / checkpoint.FOLDER
    for name in ("checkpoint_1", "checkpoint_2"):
        (kept / name).mkdir(parents=True)
        ONE.save(kept / name)
    (kept / "checkpoint_2" / "digests.json").unlink()
    one = {"checkpoint_dir_name": "checkpoint_1", "metrics": {}}
    (kept / STATE).write_text(json.dumps({"checkpoint_results": [one], "latest_checkpoint_result": one}))
    return tmp_path


def after(folder: Path) -> set[str]:
    checkpoint.forget_unreadable(storage.path(folder))
    kept = folder / checkpoint.FOLDER
    return {place.name for place in kept.iterdir()} if kept.exists() else set()


def test_a_whole_checkpoint_stays_and_what_was_never_whole_goes(folder: Path, capfd: pytest.CaptureFixture[str]):
    assert after(folder) == after(folder) == {"checkpoint_1", STATE}
    loaded = Checkpoint.load(storage.path(folder / checkpoint.FOLDER / "checkpoint_1"))
    assert loaded.progress == ONE.progress
    assert torch.equal(loaded.optimizer["w"], ONE.optimizer["w"])
    assert capfd.readouterr().err == ""


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-2] ^= 1
    file.write_bytes(data)


NAMES = ("net.safetensors", "best.safetensors", "optimizer.safetensors", "progress.json", "digests.json")


@pytest.mark.parametrize("harm", [cut, empty, flip, Path.unlink])
@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_that_is_not_whole_counts_as_none(
    folder: Path, name: str, harm: Callable[[Path], None], capfd: pytest.CaptureFixture[str]
):
    one = folder / checkpoint.FOLDER / "checkpoint_1"
    harm(one / name)
    with pytest.raises(StorageError, match="checkpoint"):
        Checkpoint.load(storage.path(one))
    assert after(folder) == set()
    assert f"{folder.name}: no checkpoint that can be read; training begins anew" in capfd.readouterr().err


@pytest.mark.parametrize("name", NAMES)
def test_no_flipped_bit_of_a_checkpoint_is_used(folder: Path, name: str):
    one, rng = folder / checkpoint.FOLDER / "checkpoint_1", random.Random(name)
    whole = (one / name).read_bytes()
    for _ in range(200):
        flipped(one / name, rng)
        with pytest.raises(StorageError, match="checkpoint"):
            Checkpoint.load(storage.path(one))
        (one / name).write_bytes(whole)
    assert Checkpoint.load(storage.path(one)).progress == ONE.progress


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"checkpoint_results": [], "latest_checkpoint_result": null}'])
def test_a_state_that_cannot_be_read_counts_as_none(folder: Path, text: str):
    (folder / checkpoint.FOLDER / STATE).write_text(text)
    assert after(folder) == set()


def test_a_state_that_names_a_checkpoint_which_is_gone_counts_as_none(folder: Path):
    (folder / checkpoint.FOLDER / "checkpoint_1").rename(folder / "lost")
    assert after(folder) == set()


def test_a_folder_without_checkpoints_is_left_alone(tmp_path: Path):
    assert after(tmp_path) == set()
    assert not list(tmp_path.iterdir())
