"""The JSON schema agrees with what loads, and describes every key."""

import json
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from llm4msr.config import Config, load
from llm4msr.config.json_schema import json_schema, keys
from llm4msr.errors import ConfigError
from tests.support.experiments import ROOT
from tests.unit.config.test_config import MINIMAL

SHIPPED = sorted((ROOT / "jobs" / "configs").glob("*.toml"))
CHECK = jsonschema.Draft202012Validator(json_schema())


def descriptions(schema: dict[str, Any]) -> dict[str, str]:
    """Of every key; that of a key which is a section may stand with the section."""
    sections = {"": schema} | schema["$defs"]
    found = {}
    for name, section in sections.items():
        for key, what in section["properties"].items():
            owner = schema["$defs"].get(what.get("$ref", "").rpartition("/")[2], {})
            found[f"{name}.{key}"] = what.get("description") or owner.get("description", "")
    return found


def test_it_is_a_schema_and_json():
    jsonschema.Draft202012Validator.check_schema(json_schema())
    assert json.loads(json.dumps(json_schema())) == json_schema()


def test_every_key_has_a_description_in_one_line():
    described = descriptions(json_schema())
    assert len(described) > 100
    assert [name for name, text in described.items() if len(text) < 10 or "\n" in text] == []
    assert described["SplitConfig.negatives"].startswith("Where every row is a like: how many items")


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.name)
def test_shipped_configs_are_valid(file: Path):
    CHECK.validate(tomllib.loads(file.read_text()))


@pytest.mark.parametrize(
    "wrong",
    [
        "[train]\nepoch = 3",
        "[train]\nepochs = 0",
        '[train]\nepochs = "many"',
        '[split]\nkind = "latest"',
        "[evaluate]\nseeds = [-1]",
        '[model]\nhidden = ["wide"]',
        "[train]\nworkers = [1, 2, 3]",
    ],
)
def test_what_does_not_load_is_not_valid(wrong: str, tmp_path: Path):
    (tmp_path / "c.toml").write_text(f"{MINIMAL}{wrong}\n")
    with pytest.raises(ConfigError, match=r"c\.toml"):
        load(str(tmp_path / "c.toml"))
    assert not CHECK.is_valid(tomllib.loads(f"{MINIMAL}{wrong}\n"))


@pytest.mark.parametrize(
    "right", ["[train]\nworkers = [2, 4]", "seed = 7", '[source.iceberg]\nproperties = { a = "b" }']
)
def test_what_loads_is_valid(right: str):
    document = tomllib.loads(f"{right}\n{MINIMAL}" if right.startswith("seed") else f"{MINIMAL}{right}\n")
    Config.model_validate(document)
    CHECK.validate(document)


SPACES = ("tune.space.model", "tune.space.train")


def test_keys_are_those_that_set_takes(tmp_path: Path):
    (tmp_path / "c.toml").write_text(MINIMAL)
    named = list(keys())
    assert len(named) == len(set(named)) > 100
    assert {"name", "source.table.user", "train.epochs", "serve.port"} <= {*named}
    document = load(str(tmp_path / "c.toml")).model_dump(mode="json")
    for key in named:
        value = document
        for part in key.split("."):
            value = value[part]
        assert not isinstance(value, dict) or key in (
            "source.iceberg.properties",
            "tune.space.model",
            "tune.space.train",
        )
