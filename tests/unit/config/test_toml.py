"""A config written as TOML loads as the same config, whatever its texts hold."""

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm4msr.config import Config, load
from llm4msr.config.toml import as_toml, dump
from tests.support.experiments import ROOT
from tests.unit.config.test_config import MINIMAL

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.one_of(TEXTS, st.integers(-(2**63), 2**63 - 1), st.booleans(), st.floats(-1e300, 1e300), st.lists(TEXTS)))
def test_a_value_is_read_as_it_was(value: object):
    assert tomllib.loads(f"value = {as_toml(value)}") == {"value": value}


@given(st.dictionaries(TEXTS, TEXTS))
def test_a_table_of_texts_is_read_as_it_was(table: dict[str, str]):
    assert tomllib.loads(f"value = {as_toml(table)}") == {"value": table}


@pytest.mark.parametrize("file", sorted((ROOT / "jobs" / "configs").glob("*.toml")), ids=lambda file: file.name)
def test_a_shipped_config_is_the_same_when_it_is_written(file: Path):
    config = load(str(file))
    assert Config.model_validate(tomllib.loads(dump(config))) == config


def test_keys_that_were_not_given_are_marked(tmp_path: Path):
    (tmp_path / "c.toml").write_text(MINIMAL)
    lines = dump(load(str(tmp_path / "c.toml"), ["train.epochs=20", "source.table.user=uid"])).splitlines()
    assert {'name = "x"', 'kind = "table"', "epochs = 20", 'user = "uid"'} <= {*lines}
    assert {"seed = 1  # default", "batch_size = 4096  # default", 'item = "item_id"  # default'} <= {*lines}
    assert lines.index("[source]") < lines.index("[source.table]") < lines.index("[split]")
