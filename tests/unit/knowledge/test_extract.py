"""Which configs share an extraction."""

from pathlib import Path
from typing import Any

import pytest

from llm4msr import storage
from llm4msr.errors import ConfigError, LLM4MSRError
from llm4msr.knowledge.prompts.render import user_prompts
from llm4msr.pipeline import extracted
from tests.unit.conftest import World


def test_extracted_wants_a_finished_extraction(world: World, tmp_path: Path):
    assert extracted(world.config).manifest == world.knowledge.manifest
    other = world.config.extract.model_copy(update={"titles_per_scenario": 9})
    with pytest.raises(ConfigError, match="no finished extraction for this config; run `llm4msr extract` first"):
        extracted(world.config.model_copy(update={"extract": other}))
    with pytest.raises(LLM4MSRError, match="run `llm4msr prepare` first"):
        extracted(world.config.model_copy(update={"storage": str(tmp_path)}))


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"engine": "vllm"}, True),
        ({"actors": 2}, True),
        ({"max_failed_fraction": 0.5}, True),
        ({"pooling": "mean"}, False),
        ({"max_users": 3}, False),
        ({"model": "another"}, False),
    ],
)
def test_an_extraction_is_shared_by_configs_that_ask_the_same(world: World, change: dict[str, Any], same: bool):
    other = world.config.model_copy(update={"extract": world.config.extract.model_copy(update=change)})
    if same:
        assert extracted(other).folder == world.knowledge.folder
        return
    with pytest.raises(ConfigError):
        extracted(other)


def test_own_templates_get_an_extraction_of_their_own(world: World, tmp_path: Path):
    (tmp_path / "mine.txt").write_text("In short: $history")
    change = {"user_template": str(tmp_path / "mine.txt")}
    config = world.config.model_copy(update={"extract": world.config.extract.model_copy(update=change)})
    with pytest.raises(ConfigError, match="no finished extraction"):
        extracted(config)
    histories = storage.read_table(world.data.folder / "histories/p=00000.parquet")
    prompt = user_prompts(histories, config)["prompt"][0].as_py()
    assert prompt.startswith("In short: home: ")
