from typing import Any

import pytest
import torch

from llm4msr.hardware import multiplies_bfloat16
from llm4msr.training import precision
from llm4msr.training.checkpoint import Checkpoint
from llm4msr.training.dataset import Dataset
from llm4msr.training.loop import fit, predict
from tests.unit.conftest import World

CPU = torch.device("cpu")


def run(world: World, wanted: str, epochs: int = 2, resume: Checkpoint | None = None) -> Checkpoint:
    """Without any dropout."""
    changes = {"precision": wanted, "epochs": epochs, "patience": 9, "id_dropout": 0.0}
    update = {
        "train": world.config.train.model_copy(update=changes),
        "model": world.config.model.model_copy(update={"dropout": 0.0, "knowledge_dropout": 0.0}),
    }
    config = world.config.model_copy(update=update)
    return fit(config, Dataset.open(config, world.data, world.knowledge), resume)


def test_auto_takes_bfloat16_where_the_machine_and_the_backbone_suit(world: World):
    def choice(wanted: str, **model: Any) -> str:
        update = {
            "train": world.config.train.model_copy(update={"precision": wanted}),
            "model": world.config.model.model_copy(update={"hidden": (64, 32)} | model),
        }
        return precision.choose(world.config.model_copy(update=update), CPU)

    assert choice("auto") == ("bfloat16" if multiplies_bfloat16() else "float32")
    unsuited = ({"backbone": "my.package:Net"}, {"hidden": (16, 8)})
    for model in ({}, *unsuited):
        assert [choice(wanted, **model) for wanted in ("float32", "bfloat16")] == ["float32", "bfloat16"]
    assert {choice("auto", **model) for model in unsuited} == {"float32"}


def test_linux_tells_what_the_cpu_multiplies_as_torch_does():
    capabilities = torch.cpu.get_capabilities()
    assert multiplies_bfloat16() == any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))


def test_products_in_bfloat16_train_another_model_of_the_same_quality(world: World):
    one, other = run(world, "float32"), run(world, "bfloat16")
    assert (one.progress.precision, other.progress.precision) == ("float32", "bfloat16")
    assert not torch.equal(one.net["embedding.table.weight"], other.net["embedding.table.weight"])
    for ours, theirs in zip(one.progress.history, other.progress.history, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=0.01)
        assert ours["valid_auc"] == pytest.approx(theirs["valid_auc"], abs=0.02)


def test_weights_and_their_averages_stay_float32(world: World):
    state = run(world, "bfloat16")
    assert {tensor.dtype for tensor in (*state.net.values(), *state.optimizer.values())} == {torch.float32}


def test_validation_scores_are_those_that_the_saved_weights_give_in_float32(world: World):
    state = run(world, "bfloat16", epochs=1)
    data = Dataset.open(world.config, world.data, world.knowledge)
    net = data.new_net(world.config)
    net.load_state_dict(state.best)
    scored = predict(net, data, data.rows("valid"), world.config.train.batch_size)
    assert state.progress.best_report is not None
    loss = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.from_numpy(scored.logit).double(), torch.from_numpy(scored.label).double()
    )
    assert state.progress.best_report["overall"]["logloss"] == pytest.approx(float(loss), abs=1e-7)


@pytest.mark.parametrize("begun", ["float32", "bfloat16"])
def test_a_run_goes_on_with_the_precision_that_it_began_with(world: World, begun: str):
    """Also on a machine on which `auto` would choose the other one."""
    whole, first = run(world, begun), run(world, begun, epochs=1)
    resumed = run(world, "auto", resume=first)
    assert resumed.progress.precision == begun
    assert all(torch.equal(resumed.net[name], tensor) for name, tensor in whole.net.items())
