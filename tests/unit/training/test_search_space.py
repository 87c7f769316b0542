"""What `tune` tries, without Ray running."""

from pathlib import Path
from typing import Any

import pytest

from llm4msr.config import Config, Range
from llm4msr.errors import ConfigError
from llm4msr.training.search_space import domains, draw, own_settings, space_of, values_of, with_settings
from tests.support.data import config_of


def tuned(folder: Path, space: dict[str, Any], **sections: Any) -> Config:
    return config_of(folder, tune={"space": space}, **sections)


def test_settings_differ_begin_with_the_own_and_more_of_them_begin_alike(tmp_path: Path):
    config = config_of(tmp_path)
    space = space_of(config)
    many, few = draw(config, space, 24), draw(config, space, 8)
    assert many[:8] == few
    assert few[0] == own_settings(config, space)
    assert len({str(one) for one in many}) == 24
    assert draw(config.model_copy(update={"seed": config.seed + 1}), space, 8)[1:] != few[1:]


def test_the_own_settings_are_the_config_itself(tmp_path: Path):
    config = config_of(tmp_path, train={"learning_rate": 0.00123456789})
    assert with_settings(config, own_settings(config, space_of(config))) == config


def test_every_draw_makes_a_valid_config_that_differs_in_the_space_alone(tmp_path: Path):
    config = config_of(tmp_path)
    space = space_of(config)
    for settings in draw(config, space, 30)[1:]:
        made = with_settings(config, settings)
        for key, value in values_of(settings).items():
            section, name = key.split(".")
            assert made.model_dump(mode="json")[section][name] == value
        assert with_settings(made, own_settings(config, space)) == config


def test_values_stay_within_the_space(tmp_path: Path):
    space = {
        "model": {"embedding_dim": {"min": 2, "max": 5}, "hidden": [[32, 16], [16]]},
        "train": {"learning_rate": {"min": 1e-4, "max": 1e-1, "log": True}},
    }
    config = tuned(tmp_path, space, model={"embedding_dim": 4, "hidden": [16]})
    drawn = [values_of(settings) for settings in draw(config, space_of(config), 60)]
    assert {one["model.embedding_dim"] for one in drawn} == {2, 3, 4, 5}
    assert {tuple(one["model.hidden"]) for one in drawn} == {(32, 16), (16,)}
    rates = [one["train.learning_rate"] for one in drawn]
    assert all(1e-4 <= rate <= 1e-1 for rate in rates)
    assert sum(rate < 1e-2 for rate in rates) > len(rates) / 3, "not by orders of magnitude"


def test_a_range_has_numbers_of_the_keys_kind_however_its_bounds_are_written(tmp_path: Path):
    space = {"model": {"embedding_dim": {"min": 2.0, "max": 9.0}}, "train": {"weight_decay": {"min": 0, "max": 1}}}
    config = tuned(tmp_path, space)
    drawn = [with_settings(config, settings) for settings in draw(config, space_of(config), 20)]
    assert {type(one.model.embedding_dim) for one in drawn} == {int}
    assert len({one.train.weight_decay for one in drawn}) > 10


def test_a_number_of_few_digits_is_within_its_range_too(tmp_path: Path):
    config = tuned(tmp_path, {"model": {"dropout": {"min": 0.99991, "max": 0.99999}}}, model={"dropout": 0.99995})
    for settings in draw(config, space_of(config), 10):
        assert 0.99991 <= with_settings(config, settings).model.dropout <= 0.99999


def test_the_own_value_widens_the_space(tmp_path: Path):
    space = {"model": {"dropout": [0.3]}, "train": {"learning_rate": {"min": 1e-3, "max": 1e-2}}}
    config = tuned(tmp_path, space, model={"dropout": 0.05}, train={"learning_rate": 0.5})
    assert space_of(config) == {"model.dropout": (0.05, 0.3), "train.learning_rate": Range(min=1e-3, max=0.5)}


def test_a_small_space_ends(tmp_path: Path):
    config = tuned(tmp_path, {"model": {"dropout": [0.1, 0.2, 0.3]}}, model={"dropout": 0.1})
    assert len(draw(config, space_of(config), 16)) == 3


@pytest.mark.parametrize(
    ("model", "has", "lacks"),
    [
        ({"knowledge": "none"}, [], ["code_dim", "meta_rank", "knowledge_dropout"]),
        ({"knowledge": "user"}, ["code_dim", "meta_rank", "knowledge_dropout"], []),
        ({"knowledge": "feature"}, ["code_dim", "knowledge_dropout"], ["meta_rank"]),
        ({"knowledge": "scenario"}, ["code_dim", "meta_rank"], ["knowledge_dropout"]),
    ],
)
def test_a_model_is_tuned_by_the_keys_that_it_has(tmp_path: Path, model: Any, has: list[str], lacks: list[str]):
    keys = space_of(config_of(tmp_path, model=model)).keys()
    assert {f"model.{key}" for key in has} <= keys
    assert not {f"model.{key}" for key in lacks} & keys
    assert {"model.dropout", "model.embedding_dim", "train.learning_rate"} <= keys


def test_a_space_that_does_not_suit_is_told_before_anything_runs(tmp_path: Path):
    only = tuned(tmp_path, {"model": {"code_dim": [8, 16]}}, model={"knowledge": "none"})
    with pytest.raises(ConfigError, match="none of its keys is one of 'none'"):
        space_of(only)
    space = {"train": {"weight_decay": {"min": 1e-5, "max": 1e-1, "log": True}}}
    with pytest.raises(ConfigError, match=r"tune.space.train.weight_decay: a range by orders of magnitude has no 0"):
        space_of(tuned(tmp_path, space, train={"weight_decay": 0}))


def test_the_domains_are_those_of_ray_tune(tmp_path: Path):
    space = {"model": {"embedding_dim": {"min": 2, "max": 8, "log": True}}, "train": {"learning_rate": [1e-3]}}
    found = domains(space_of(tuned(tmp_path, space, model={"embedding_dim": 4})))
    assert {type(domain).__name__ for domain in found.values()} == {"Integer", "Categorical"}
