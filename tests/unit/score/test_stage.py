from pathlib import Path
from typing import Any

import pytest

from llm4msr import pipeline, storage
from llm4msr.config import Config
from llm4msr.errors import ConfigError
from llm4msr.storage import StageOutput
from tests.unit.conftest import World
from tests.unit.score.conftest import Score


def test_lists_are_found_again_and_every_key_makes_others(score: Score, tmp_path: Path):
    first = score(top_k=2)
    assert score(top_k=2).reused
    (tmp_path / "items.csv").write_text("scenario,item_id\nhome,i1\n")
    keys: list[dict[str, Any]] = [
        {"top_k": 3},
        {"leave_out": "liked"},
        {"scenarios": ["home"]},
        {"candidates": str(tmp_path / "items.csv")},
    ]
    folders = {first.folder, *(score(**{"top_k": 2} | key).folder for key in keys)}
    (tmp_path / "items.csv").write_text("scenario,item_id\nhome,i2\n")
    folders.add(score(top_k=2, candidates=str(tmp_path / "items.csv")).folder)
    assert len(folders) == 6
    assert score(top_k=2, output=str(tmp_path / "elsewhere")).folder.name == first.folder.name


def test_what_an_interrupted_run_has_written_is_not_scored_again(score: Score):
    output = score(top_k=2)
    (output.folder / storage.MANIFEST).unlink()
    file = Path(str(output.folder)) / "lists/p=00000-00000.parquet"
    before = file.stat().st_mtime_ns
    again = score(top_k=2)
    assert (again.reused, again.manifest.continued, file.stat().st_mtime_ns) == (False, True, before)
    assert again.manifest.files == output.manifest.files
    assert again.manifest.rows == output.manifest.rows


def test_the_pipeline_finds_the_bundle_and_puts_lists_below_the_storage(
    world: World, bundle: StageOutput, tmp_path: Path
):
    with pytest.raises(ConfigError, match="is not trained yet"):
        pipeline.score(world.config)
    document = world.config.model_dump(mode="json")
    document["serve"]["bundle"] = str(bundle.folder)
    output = pipeline.score(Config.model_validate(document))
    assert output.folder.parent == storage.path(world.config.root) / "score"
    assert output.manifest.inputs == {
        "prepare": world.data.manifest.fingerprint,
        "export": bundle.manifest.fingerprint,
    }
    assert set(output.manifest.files) == {"candidates.parquet", "lists/p=00000-00000.parquet"}
