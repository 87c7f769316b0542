"""The loop on several workers: processes joined by gloo, without Ray."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from llm4msr import storage
from llm4msr.config import Config
from llm4msr.training.checkpoint import Checkpoint
from llm4msr.training.dataset import Dataset
from llm4msr.training.loop import fit
from tests.unit.conftest import World

NO_CHANCE = {"dropout": 0.0, "knowledge_dropout": 0.0}


def work(rank: int, workers: int, folder: Path, config: Config, world: World) -> None:
    """One of several workers: goes on from the checkpoint in `folder/begun`, if any; leaves one in `folder/ended`."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder / 'store'}", rank=rank, world_size=workers)
    begun = folder / "begun"
    resume = Checkpoint.load(storage.path(begun)) if begun.exists() else None
    state = fit(config, Dataset.open(config, world.data, world.knowledge), resume)
    if rank == 0:
        state.save(folder / "ended")
    dist.destroy_process_group()


@pytest.mark.parametrize("sparse", [False, True])
def test_more_workers_go_on_with_the_next_batch_of_one(world: World, tmp_path: Path, sparse: bool):
    """Without dropout they then train the same model but for the order in which floats are added; a batch that is
    left out or done twice would show."""
    train = {"epochs": 2, "checkpoint_batches": 3, "id_dropout": 0.0, "sparse": sparse, "precision": "float32"}
    config = world.config.model_copy(
        update={
            "model": world.config.model.model_copy(update=NO_CHANCE),
            "train": world.config.train.model_copy(update=train),
        }
    )

    def save(state: Checkpoint) -> None:
        if (state.progress.epoch, state.progress.batch) == (0, 3):
            (tmp_path / "begun").mkdir()
            state.save(tmp_path / "begun")

    alone = fit(config, Dataset.open(config, world.data, world.knowledge), on_checkpoint=save)
    (tmp_path / "ended").mkdir()
    torch.multiprocessing.spawn(work, (2, tmp_path, config, world), nprocs=2)
    found = Checkpoint.load(storage.path(tmp_path / "ended"))

    assert found.progress.starts == [*alone.progress.starts, {"epoch": 0, "batch": 3, "workers": 2}]
    assert found.net.keys() == alone.net.keys()
    for name, tensor in alone.net.items():
        np.testing.assert_allclose(found.net[name], tensor, atol=1e-3, err_msg=name)
    for ours, theirs in zip(found.progress.history, alone.progress.history, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-3)


def work_with_its_own_wish(rank: int, workers: int, folder: Path, config: Config, world: World) -> None:
    """The first worker wants bfloat16, as on a machine that multiplies it fast, the other float32."""
    train = config.train.model_copy(update={"precision": "float32" if rank else "bfloat16"})
    work(rank, workers, folder, config.model_copy(update={"train": train}), world)


def test_the_first_worker_decides_the_precision_for_all(world: World, tmp_path: Path):
    """They would otherwise average gradients of two kinds, and their weights would part."""
    config = world.config.model_copy(update={"train": world.config.train.model_copy(update={"epochs": 1})})
    (tmp_path / "ended").mkdir()
    torch.multiprocessing.spawn(work_with_its_own_wish, (2, tmp_path, config, world), nprocs=2)
    mixed = Checkpoint.load(storage.path(tmp_path / "ended"))
    assert mixed.progress.precision == "bfloat16"

    wanted = config.model_copy(update={"train": config.train.model_copy(update={"precision": "bfloat16"})})
    (tmp_path / "same" / "ended").mkdir(parents=True)
    torch.multiprocessing.spawn(work, (2, tmp_path / "same", wanted, world), nprocs=2)
    agreed = Checkpoint.load(storage.path(tmp_path / "same" / "ended"))
    assert all(torch.equal(mixed.net[name], tensor) for name, tensor in agreed.net.items())
