"""`[tune]`: what a space may name, and how it is written again."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from llm4msr import config
from llm4msr.config import Config, Range, SpaceConfig
from llm4msr.config.toml import dump
from llm4msr.errors import ConfigError

SPACE = {
    "model": {"dropout": [0.0, 0.3], "hidden": [[32, 16], [64]]},
    "train": {"learning_rate": {"min": 1e-4, "max": 1e-2, "log": True}},
}


@pytest.mark.parametrize(
    ("space", "told"),
    [
        ({"model": {"drpout": [0.1]}}, "model.drpout cannot be tuned; did you mean 'dropout'?"),
        ({"model": {"knowledge": ["user"]}}, "model.knowledge cannot be tuned"),
        ({"model": {"backbone": ["star"]}}, "model.backbone cannot be tuned"),
        ({"train": {"workers": [1, 2]}}, "train.workers cannot be tuned"),
        ({"train": {"patience": [1, 9]}}, "train.patience cannot be tuned"),  # a budget, as epochs are
        ({"train": {"epochs": [1, 2]}}, "train.epochs cannot be tuned"),
        ({"model": {"dropout": [0.1, 1.5]}}, "model.dropout cannot be 1.5"),
        ({"model": {"dropout": {"min": 0.0, "max": 1.5}}}, "model.dropout cannot be 1.5"),
        ({"model": {"embedding_dim": {"min": 0.5, "max": 4}}}, "model.embedding_dim cannot be 0.5"),
        ({"model": {"hidden": [[64, 0]]}}, "model.hidden cannot be (64, 0)"),
        ({"train": {"learning_rate": {"min": 1e-2, "max": 1e-3}}}, "min = 0.01 is not below max = 0.001"),
        ({"train": {"weight_decay": {"min": 0, "max": 1, "log": True}}}, "log = true needs a min above 0"),
        ({"model": {"dropout": []}}, "at least 1 item"),
        ({"source": {"path": ["a"]}}, "source"),
    ],
)
def test_a_bad_space_is_refused_with_its_key(space: dict[str, Any], told: str):
    with pytest.raises(ValidationError) as error:
        SpaceConfig.model_validate(space)
    assert told in str(error.value)


def test_the_command_line_sets_a_space_and_is_told_of_a_bad_one(tmp_path: Path):
    file = tmp_path / "config.toml"
    file.write_text('name = "tiny"\n[source]\nkind = "table"\npath = "nowhere"\n')
    loaded = config.load(str(file), ["tune.space.model.dropout=[0.1,0.2]", "tune.trials=4"])
    assert loaded.tune.space.model == {"dropout": (0.1, 0.2)}
    assert loaded.tune.trials == 4
    with pytest.raises(ConfigError, match=r"'tune.space.train': train.epoch cannot be tuned"):
        config.load(str(file), ["tune.space.train.epoch=[1]"])


@pytest.mark.parametrize("defaults", [True, False])
def test_a_config_with_a_space_loads_as_the_same_from_its_own_toml(defaults: bool):
    document = {"name": "tiny", "source": {"kind": "table", "path": "nowhere"}, "tune": {"space": SPACE}}
    before = Config.model_validate(document)
    text = dump(before, defaults=defaults)
    assert Config.model_validate(tomllib.loads(text)) == before
    assert isinstance(before.tune.space.train["learning_rate"], Range)
    assert ("# default" in text) == defaults
    assert ("[score]" in text) == defaults
