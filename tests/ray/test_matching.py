"""Models that match pasts with candidates, through all stages but the last."""

from pathlib import Path

import pytest

from llm4msr import pipeline
from llm4msr.errors import ConfigError
from tests.support.experiments import MakeExperiment


def test_a_run_trains_and_compares_matches_and_exports_none(experiment: MakeExperiment, ray_session: None) -> None:
    made = experiment(
        {
            "extract.reads": "items",
            "extract.item_vectors": "random",
            "extract.pool_dim": 5,
            "extract.answers": "none",
            "model.knowledge": "user",
            "model.match": ["candidate", "cosines", "attention", "ids"],
            "evaluate.variants": ["none", "din", "match", "user", "random"],
            "train.epochs": 2,
        }
    )
    outputs = pipeline.run(made.config)
    assert [output.manifest.stage for output in outputs] == ["prepare", "extract", *["train"] * 5, "evaluate"]
    results = outputs[-1].json("metrics.json")
    assert set(results["runs"]) == {"none", "din", "match-din", "user-match-din", "user-match-din-random"}
    table = (Path(str(outputs[-1].folder)) / "table.md").read_text()
    assert "user-match-din" in table
    with pytest.raises(ConfigError, match="no bundle holds users' pasts yet"):
        pipeline.export(made.config)
