import copy
import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import safetensors.torch
import torch

from llm4msr import storage
from llm4msr.config import BACKBONES, Config
from llm4msr.errors import ConfigError, StorageError
from llm4msr.model.net import RankerNet
from llm4msr.training import metrics
from llm4msr.training.checkpoint import Checkpoint, Progress, Tensors, count_numbers, read_best
from llm4msr.training.dataset import Dataset
from llm4msr.training.loop import fit
from llm4msr.training.scoring import predict
from tests.unit.conftest import World


def config(world: World, **changes: Any) -> Config:
    model, train = changes.pop("model", {}), changes.pop("train", {})
    update = {
        "model": world.config.model.model_copy(update=model),
        "train": world.config.train.model_copy(update=train),
    }
    return world.config.model_copy(update=update | changes)


def data(world: World, wanted: Config) -> Dataset:
    return Dataset.open(wanted, world.data, world.knowledge)


def run(world: World, wanted: Config, **options: Any) -> Checkpoint:
    return fit(wanted, data(world, wanted), **options)


def same(one: Tensors, two: Tensors) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture
def saved(tmp_path: Path) -> Any:
    """Saves every checkpoint; `saved.load(k)` is that after epoch k, `saved.load(k, b)` that after b batches more."""

    class Saved:
        def __call__(self, state: Checkpoint) -> None:
            folder = self.folder(state.progress.epoch, state.progress.batch)
            folder.mkdir()
            state.save(folder)

        def folder(self, epoch: int, batch: int) -> Path:
            return tmp_path / f"{epoch}-{batch}"

        def all(self) -> list[Checkpoint]:
            return [Checkpoint.load(folder) for folder in sorted(tmp_path.glob("*-*"))]

        def load(self, epoch: int, batch: int = 0) -> Checkpoint:
            return Checkpoint.load(storage.path(self.folder(epoch, batch)))

    return Saved()


@pytest.mark.parametrize("knowledge", ["none", "both"])
def test_the_same_seed_trains_the_same_model(world: World, knowledge: str):
    wanted = config(world, model={"knowledge": knowledge}, train={"epochs": 2})
    one, two = run(world, wanted), run(world, wanted)
    assert one.progress == two.progress
    assert same(one.net, two.net)
    assert same(one.best, two.best)
    other = run(world, wanted.model_copy(update={"seed": 2}))
    assert one.progress.history != other.progress.history


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("knowledge", ["none", "both"])
@pytest.mark.parametrize("stop", [(1, 0), (0, 3), (2, 6)])
def test_a_resumed_run_ends_where_an_undisturbed_one_does(
    world: World, saved: Any, knowledge: str, stop: tuple[int, int], sparse: bool
):
    """To the last bit, with all dropouts on, after an epoch or within one, the first included."""
    train = {"epochs": 4, "patience": 4, "checkpoint_batches": 3, "sparse": sparse}
    wanted = config(world, model={"knowledge": knowledge}, train=train)
    whole = run(world, wanted, on_checkpoint=saved)
    state = saved.load(*stop)
    assert (state.progress.epoch, state.progress.batch) == stop
    resumed = run(world, wanted, resume=state)
    starts = [{"epoch": 0, "batch": 0, "workers": 1}, {"epoch": stop[0], "batch": stop[1], "workers": 1}]
    assert resumed.progress == replace(whole.progress, starts=starts)
    assert same(resumed.net, whole.net)
    assert same(resumed.best, whole.best)
    assert same(resumed.optimizer, whole.optimizer)


def test_checkpoints_within_an_epoch_change_nothing(world: World):
    with_them, without = (run(world, config(world, train={"checkpoint_batches": every})) for every in (2, 0))
    assert same(with_them.net, without.net)
    losses = [[epoch.pop("loss") for epoch in state.progress.history] for state in (with_them, without)]
    np.testing.assert_allclose(*losses, rtol=1e-6)  # summed in parts
    assert with_them.progress == without.progress


def test_the_loss_is_the_mean_over_all_rows_of_the_epoch(world: World):
    """With a step too small to move anything, and no dropout, that is the loss of the untrained model."""
    wanted = config(world, model={"dropout": 0.0, "knowledge_dropout": 0.0}, train={"epochs": 1, "id_dropout": 0.0})
    wanted = config(world, model=wanted.model.model_dump(), train=wanted.train.model_dump() | {"learning_rate": 1e-12})
    opened = data(world, wanted)
    scored = predict(opened.new_net(wanted), opened, opened.rows("train"), 64)
    found = run(world, wanted).progress.history[0]["loss"]
    assert found == pytest.approx(metrics.report(scored, opened.scenario_names)["overall"]["logloss"], abs=1e-5)


@pytest.mark.parametrize("first", [False, True])
def test_steps_on_touched_rows_alone_train_the_same_model(world: World, saved: Any, first: bool):
    """But for rounding; and a run can go on with the other kind of steps."""
    one, other = (
        config(world, train={"sparse": sparse, "epochs": 3, "checkpoint_batches": 3, "precision": "float32"})
        for sparse in (first, not first)
    )
    whole = run(world, one, on_checkpoint=saved)
    for state in (run(world, other), run(world, other, resume=saved.load(1, 3))):
        assert state.optimizer.keys() == whole.optimizer.keys()
        for name, tensor in whole.net.items():
            np.testing.assert_allclose(state.net[name], tensor, atol=1e-4, err_msg=name)
        for ours, theirs in zip(state.progress.history, whole.progress.history, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-4)


def test_a_finished_run_that_is_resumed_does_nothing(world: World, saved: Any):
    wanted = config(world, train={"epochs": 2})
    whole = run(world, wanted, on_checkpoint=saved)
    told: list[int] = []
    again = run(world, wanted, resume=saved.load(2), on_checkpoint=lambda state: told.append(state.progress.epoch))
    assert told == []
    assert again.progress == whole.progress
    assert same(again.best, whole.best)


def test_best_holds_the_weights_of_the_best_epoch(world: World, saved: Any):
    wanted = config(world, train={"epochs": 8, "patience": 8, "learning_rate": 0.05})
    last = run(world, wanted, on_checkpoint=saved)
    aucs = [epoch["valid_auc"] for epoch in last.progress.history]
    assert last.progress.best_auc == max(aucs)
    assert last.progress.best_epoch == 1 + aucs.index(max(aucs)) < 8  # else the test says nothing
    assert same(last.best, saved.load(last.progress.best_epoch).net)
    assert not same(last.best, last.net)
    opened = data(world, wanted)
    net = opened.new_net(wanted)
    net.load_state_dict(last.best)
    scored = predict(net, opened, opened.rows("valid"), 128)
    assert metrics.report(scored, opened.scenario_names) == last.progress.best_report


class Overflow(Dataset):
    """Gradients overflow in one batch, counted from 1."""

    at = 0

    def new_net(self, config: Config) -> RankerNet:
        net, calls = super().new_net(config), itertools.count(1)
        net.embedding.table.weight.register_hook(lambda grad: grad * (np.inf if next(calls) == self.at else 1))
        return net


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(
    ("batch", "every", "message", "kept"),
    [
        (1, 0, "the loss is not finite in epoch 1", 0),
        (5, 2, "the loss is not finite in epoch 1", 2),
        (4, 2, "a weight or its average is not finite in epoch 1", 1),
        (7, 0, "the validation loss is not finite in epoch 1", 0),
        (12, 0, "the loss is not finite in epoch 2", 1),
    ],
)
def test_training_ends_where_numbers_are_not_finite_and_keeps_what_was_sound(
    world: World, saved: Any, batch: int, every: int, message: str, kept: int, sparse: bool
):
    """Seven batches an epoch: the gradient of one of them overflows, whose own loss is finite."""
    wanted = config(world, train={"epochs": 3, "checkpoint_batches": every, "learning_rate": 0.01, "sparse": sparse})
    overflow = Overflow(**vars(data(world, wanted)))
    overflow.at = batch
    with pytest.raises(ConfigError, match=rf"^{message}; lower train.learning_rate \(it is 0.01\)$"):
        fit(wanted, overflow, on_checkpoint=saved)
    states = saved.all()
    assert len(states) == kept
    for state in states:
        assert all(tensor.isfinite().all() for tensor in (*state.net.values(), *state.optimizer.values()))
        assert fit(wanted, data(world, wanted), state).progress.epoch == 3


def test_a_weight_decay_that_no_step_survives_is_the_key_to_change(world: World):
    wanted = config(world, train={"weight_decay": 1e30})
    with pytest.raises(ConfigError, match=r"is not finite in epoch 1; lower train.weight_decay \(it is 1e\+30\)$"):
        run(world, wanted)


@pytest.mark.parametrize("rate", [1e30, 1e38])
def test_a_learning_rate_that_is_far_too_high_is_told(world: World, rate: float):
    with pytest.raises(ConfigError, match=r"loss is not finite in epoch 1; lower train\.learning_rate"):
        run(world, config(world, train={"learning_rate": rate}))


def test_the_author_of_an_own_backbone_is_pointed_to_it(world: World):
    wanted = config(world, model={"backbone": "llm4msr.model.backbones.mmoe:MMoE"}, train={"learning_rate": 1e30})
    with pytest.raises(ConfigError, match=r"\(it is 1e\+30\), or mend llm4msr.model.backbones.mmoe:MMoE$"):
        run(world, wanted)


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_validation_rows_of_one_class_choose_the_epoch_by_logloss(
    world: World, saved: Any, label: float, tmp_path: Path
):
    wanted = config(world, train={"epochs": 8, "patience": 8, "learning_rate": 0.05})
    folder = tmp_path / "one class"
    shutil.copytree(world.data.folder, folder)
    valid = storage.read_table(folder / "valid/p=00000.parquet")
    ones = pa.array([label] * valid.num_rows, pa.float32())
    valid = valid.set_column(valid.column_names.index("label"), "label", ones)
    name = "valid/p=00000.parquet"
    files = world.data.manifest.files | {name: storage.write_table(folder / name, valid)}
    prepared = storage.StageOutput(folder, world.data.manifest.model_copy(update={"files": files}))
    last = fit(wanted, Dataset(**vars(data(world, wanted)) | {"prepared": prepared}), on_checkpoint=saved)
    losses = [epoch["valid_logloss"] for epoch in last.progress.history]
    assert last.progress.best_auc is None
    assert [epoch["valid_auc"] for epoch in last.progress.history] == [None] * 8
    assert last.progress.best_report["overall"]["logloss"] == min(losses)
    assert last.progress.best_epoch == 1 + losses.index(min(losses)) < 8  # else the test says nothing
    assert same(last.best, saved.load(last.progress.best_epoch).net)


@pytest.mark.parametrize("patience", [1, 2])
def test_training_stops_early(world: World, patience: int):
    wanted = config(world, train={"epochs": 60, "patience": patience, "learning_rate": 0.1})
    progress = run(world, wanted).progress
    assert progress.epoch == progress.best_epoch + patience < 60
    assert [epoch["epoch"] for epoch in progress.history] == list(range(1, progress.epoch + 1))


@pytest.mark.parametrize("backbone", sorted(BACKBONES))
def test_every_backbone_learns_a_planted_signal(world: World, backbone: str):
    wanted = config(world, model={"backbone": backbone}, train={"epochs": 6, "patience": 6, "learning_rate": 0.02})
    last = run(world, wanted)
    assert last.progress.best_auc > 0.7
    opened = data(world, wanted)
    net = opened.new_net(wanted)
    net.load_state_dict(last.best)
    scored = predict(net, opened, opened.rows("test"), 128)
    test_auc = metrics.auc(scored.label, scored.logit)
    assert test_auc is not None
    assert test_auc > 0.7
    assert last.progress.history[-1]["loss"] < last.progress.history[0]["loss"]


@pytest.mark.parametrize("backbone", sorted(BACKBONES))
@pytest.mark.parametrize("knowledge", ["user", "scenario", "both"])
def test_with_knowledge_training_starts_at_the_plain_model(world: World, backbone: str, knowledge: str):
    scores = []
    for level in ("none", knowledge):
        wanted = config(world, model={"backbone": backbone, "knowledge": level})
        opened = data(world, wanted)
        scores.append(predict(opened.new_net(wanted), opened, opened.rows("test"), 64).logit)
    np.testing.assert_array_equal(*scores)


@pytest.mark.parametrize("hidden", [0.0, 0.3])
def test_rows_whose_scenario_is_hidden_train_the_unknown_scenarios_tower(world: World, hidden: float):
    train = {"id_dropout": hidden, "weight_decay": 0.0, "epochs": 1}
    wanted = config(world, model={"backbone": "shared_bottom", "knowledge": "none"}, train=train)
    before, after = data(world, wanted).new_net(wanted).state_dict(), run(world, wanted).net
    tower = [name for name in after if name.startswith("backbone.towers.0.")]
    assert tower
    assert all(torch.equal(before[name], after[name]) == (hidden == 0) for name in tower)


def test_predict_does_not_depend_on_batches(world: World):
    opened = data(world, world.config)
    net = opened.new_net(world.config)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1)
    one, other = (predict(net, opened, opened.rows("test"), size) for size in (1000, 7))
    np.testing.assert_allclose(one.logit, other.logit, atol=1e-6)
    np.testing.assert_array_equal(one.user, other.user)
    assert len(one.label) == world.data.manifest.info["test"]
    assert not net.training


def test_a_control_trains_on_wrong_vectors(world: World):
    right, wrong = (config(world, model={"control": control}) for control in ("none", "shuffled"))
    one, two = (data(world, c).knowledge for c in (right, wrong))
    assert one is not None
    assert two is not None
    ids = torch.from_numpy(np.flatnonzero(one.known(np.arange(len(one.users.known)))))
    assert not torch.equal(one.lookup(ids)[0], two.lookup(ids)[0])


def test_a_model_without_knowledge_reads_none(world: World):
    wanted = config(world, model={"knowledge": "none"})
    assert Dataset.open(wanted, world.data, None).knowledge is None


def test_checkpoint_survives_saving_without_pickle(world: World, tmp_path: Path):
    state = run(world, config(world, train={"epochs": 1}))
    state.save(tmp_path)
    loaded = Checkpoint.load(storage.path(tmp_path))
    assert loaded.progress == state.progress
    for name in ("net", "best", "optimizer"):
        assert same(getattr(loaded, name), getattr(state, name))
    names = {"net.safetensors", "best.safetensors", "optimizer.safetensors", "progress.json", "digests.json"}
    assert {file.name for file in tmp_path.iterdir()} == names
    for file in tmp_path.glob("*.safetensors"):
        assert safetensors.torch.load_file(file).keys() == getattr(state, file.stem).keys()
    assert json.loads((tmp_path / "progress.json").read_text())["epoch"] == 1


def test_the_best_weights_are_copies(world: World):
    """What an earlier epoch gave is not changed by later ones."""
    kept: list[tuple[Tensors, Tensors]] = []
    wanted = config(world, train={"epochs": 2})
    last = run(world, wanted, on_checkpoint=lambda s: kept.append((s.best, copy.deepcopy(s.best))))
    assert same(*kept[0])
    assert not same(kept[0][0], last.net)


def test_progress_starts_before_the_first_epoch():
    assert (Progress().epoch, Progress().best_epoch, Progress().history) == (0, 0, [])


def test_the_best_weights_are_read_without_the_rest(world: World, tmp_path: Path):
    state = run(world, config(world, train={"epochs": 1}))
    state.save(tmp_path)
    weights = read_best(storage.path(tmp_path))
    assert same(safetensors.torch.load(weights), state.best)
    assert count_numbers(weights) == sum(tensor.numel() for tensor in state.best.values())
    (tmp_path / "best.safetensors").write_bytes(weights[:-1])
    with pytest.raises(StorageError, match="a damaged checkpoint"):
        read_best(storage.path(tmp_path))
