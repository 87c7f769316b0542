"""Which number format an LLM gets where the config says `auto`; what machines are asked is in tests/ray."""

from pathlib import Path

import pytest

from llm4msr import storage
from llm4msr.config import Config, ExtractConfig
from llm4msr.knowledge import number_format
from llm4msr.storage import StageResult
from tests.support.data import config_of


def publish(config: Config, name: str, version: int, revision: str, dtype: str) -> Path:
    folder = storage.path(config.root) / "extract" / name
    info = {"version": version, "dtype": dtype}
    inputs = {"model": "m", "revision": revision}
    storage.publish(folder, "extract", 1, {}, inputs, lambda _: StageResult(files={}, rows=0, info=info))
    return Path(str(folder))


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return config_of(tmp_path, extract={"dtype": "auto"})


def test_gpus_that_are_still_to_come_get_bfloat16() -> None:
    assert number_format.fastest(ExtractConfig(device="gpu", actors=2), [{"CPU": 8.0}]) == "bfloat16"


def test_the_newest_version_of_the_model_decides_whatever_stands_beside_it(config: Config) -> None:
    assert number_format.held_by(config, ["abc"]) == ""
    publish(config, "v1", 1, "abc", "float32")
    publish(config, "v2", 2, "words-1", "")
    assert number_format.held_by(config, ["abc"]) == "float32"
    publish(config, "v3", 3, "abc + words-1", "bfloat16")
    publish(config, "v4", 4, "other", "float16")
    assert number_format.held_by(config, ["abc"]) == "bfloat16"
    assert number_format.held_by(config, ["unknown"]) == ""
    assert number_format.expected(config, ["abc"]) == "bfloat16"


def test_a_damaged_version_is_passed_over(config: Config) -> None:
    publish(config, "v1", 1, "abc", "float32")
    (publish(config, "v2", 2, "abc", "bfloat16") / storage.MANIFEST).write_text("{")
    assert number_format.held_by(config, ["abc"]) == "float32"
