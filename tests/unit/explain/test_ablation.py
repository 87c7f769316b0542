"""A level's part of a logit is exact, and comes from the user's or scenario's own vector."""

from typing import Any

import numpy as np
import pytest
import torch

from llm4msr.explain.ablation import Levels, score_levels
from llm4msr.model.inputs import Batch, Strengths
from llm4msr.model.net import RankerNet
from tests.support.data import FIELDS, model_config, random_batch, statistics

MODELS: list[dict[str, Any]] = [
    {"knowledge": "both"},
    {"knowledge": "both", "fusion": "gate", "meta_layers": 2},
    {"knowledge": "both", "fusion": "concat", "backbone": "star"},
    {"knowledge": "both", "meta_residual": False},
    {"knowledge": "user"},
    {"knowledge": "user", "meta_rank": 0},
    {"knowledge": "scenario"},
    {"knowledge": "feature"},
    {"knowledge": "none"},
]


def net_with_all_weights(config: Any) -> RankerNet:
    """A net whose every weight is away from zero, so that each level does something."""
    torch.manual_seed(1)
    net = RankerNet(FIELDS, 4, config, statistics() if config.knowledge != "none" else None)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return net.eval()


def logits(net: RankerNet, batch: Batch) -> np.ndarray:
    with torch.inference_mode():
        return net(batch).double().numpy()


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_parts_add_up_to_the_logit(model: dict[str, Any]):
    net, batch = net_with_all_weights(model_config(**model)), random_batch()
    levels = score_levels(net, batch)
    np.testing.assert_array_equal(levels.both, logits(net, batch))
    np.testing.assert_allclose(levels.none + levels.user_part + levels.scenario_part, levels.both, rtol=0, atol=1e-12)
    assert (np.abs(levels.user_part).max() > 1e-3) == net.uses_users
    assert (np.abs(levels.scenario_part).max() > 1e-3) == net.has_scenario_level
    assert net.kind == model["knowledge"], "the net is as it was"


@pytest.mark.parametrize("fusion", ["add", "gate", "concat"])
def test_without_both_levels_it_is_the_plain_net_with_the_same_weights(fusion: str):
    net, batch = net_with_all_weights(model_config(knowledge="both", fusion=fusion)), random_batch()
    plain = net_with_all_weights(model_config(knowledge="none"))
    plain.load_state_dict({name: value for name, value in net.state_dict().items() if name in plain.state_dict()})
    np.testing.assert_array_equal(score_levels(net, batch).none, logits(plain, batch))


def test_one_level_alone_is_the_net_of_that_kind_with_the_same_weights():
    net, batch = net_with_all_weights(model_config(knowledge="both")), random_batch()
    for kind in ("user", "scenario"):
        alone = net_with_all_weights(model_config(knowledge=kind))
        alone.load_state_dict({name: value for name, value in net.state_dict().items() if name in alone.state_dict()})
        np.testing.assert_array_equal(getattr(score_levels(net, batch), kind), logits(alone, batch))


def test_what_meets_in_the_net_is_shared_equally():
    one = np.ones(1)
    levels = Levels(0 * one, user=1 * one, scenario=2 * one, both=5 * one, default=0.5 * one, default_both=3 * one)
    assert (levels.user_part, levels.scenario_part) == (2, 3)
    assert levels.own_part == (0.5 + 2) / 2


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_a_users_own_part_is_the_difference_to_a_user_without_knowledge(model: dict[str, Any]):
    net, batch = net_with_all_weights(model_config(**model)), random_batch()
    levels = score_levels(net, batch)
    nobody = score_levels(net, batch._replace(known_N=torch.zeros_like(batch.known_N)))
    np.testing.assert_array_equal(levels.default_both, nobody.both)
    np.testing.assert_array_equal(nobody.own_part, np.zeros_like(nobody.own_part))
    unknown = (batch.owner_B == 0).numpy()  # the one user of this batch without a vector
    assert (levels.own_part[unknown] == 0).all()
    assert (np.abs(levels.own_part[~unknown]) > 0).all() == net.uses_users
    if not net.user_level_is_added:
        np.testing.assert_array_equal(levels.own_part, levels.user_part)


def test_the_default_code_stands_for_a_user_level_that_cannot_be_taken_out():
    batch = random_batch()
    nobody = batch._replace(known_N=torch.zeros_like(batch.known_N))
    net = net_with_all_weights(model_config(knowledge="feature"))
    np.testing.assert_array_equal(score_levels(net, batch).none, logits(net, nobody))


def test_a_users_parts_change_when_and_only_when_their_vector_does():
    net, batch = net_with_all_weights(model_config(knowledge="both")), random_batch()
    before = score_levels(net, batch)
    vectors = batch.z_NZ.clone()
    vectors[2] += 1
    after = score_levels(net, batch._replace(z_NZ=vectors))
    own = (batch.owner_B == 2).numpy()
    for old, new in ((before.user_part, after.user_part), (before.both, after.both)):
        assert (old[own] != new[own]).all()
        np.testing.assert_array_equal(old[~own], new[~own])
    np.testing.assert_array_equal(before.none, after.none)


def test_a_scenarios_parts_change_when_and_only_when_its_vector_does():
    net, batch = net_with_all_weights(model_config(knowledge="both")), random_batch()
    before = score_levels(net, batch)
    net.scenarios_SZ[3] += 1
    after = score_levels(net, batch)
    mask = (batch.scenario_B == 3).numpy()
    assert (before.scenario_part[mask] != after.scenario_part[mask]).all()
    np.testing.assert_array_equal(before.scenario_part[~mask], after.scenario_part[~mask])
    np.testing.assert_array_equal((before.none, before.user), (after.none, after.user))


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_strengths_go_from_without_to_what_was_trained_and_beyond(model: dict[str, Any]):
    net, batch = net_with_all_weights(model_config(**model)), random_batch()
    levels = score_levels(net, batch)
    with torch.inference_mode():
        at = {s: net(batch, Strengths(s, s)).double().numpy() for s in (0.0, 1e-4, 1 - 1e-4, 1.0, 1.5)}
    np.testing.assert_array_equal(at[0.0], levels.none)
    np.testing.assert_array_equal(at[1.0], levels.both)
    np.testing.assert_allclose(at[1e-4], at[0.0], atol=0.05)
    np.testing.assert_allclose(at[1 - 1e-4], at[1.0], atol=0.05)
    assert (np.abs(at[1.5] - at[1.0]).max() > 1e-3) == (net.kind != "none")
