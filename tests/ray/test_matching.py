"""Models that match pasts with candidates, through all stages but the last."""

from pathlib import Path

import pytest

from llm4msr import pipeline
from llm4msr.errors import ConfigError
from tests.support.experiments import MakeExperiment


@pytest.mark.parametrize(
    ("total", "variants", "others"),
    [
        (1, ["none", "din", "match", "random"], {"none", "din", "match-din", "user-match-din-random"}),
        (4, ["none"], {"none"}),
    ],
)
def test_a_run_trains_and_compares_matches_and_exports_none(
    experiment: MakeExperiment, ray_session: None, total: int, variants: list[str], others: set[str]
) -> None:
    made = experiment(
        {
            "extract.reads": "items",
            "extract.item_vectors": "random",
            "extract.pool_dim": 5,
            "extract.answers": "none",
            "extract.point_in_time": True,
            "split.partitions": total,
            "model.knowledge": "user",
            "model.match": ["candidate", "cosines", "attention", "ids"],
            "evaluate.variants": variants,
            "train.epochs": 2,
        }
    )
    outputs = pipeline.run(made.config)
    trainings = ["train"] * (len(variants) + 1)
    assert [output.manifest.stage for output in outputs] == ["prepare", "extract", *trainings, "evaluate"]
    assert set(outputs[-1].json("metrics.json")["runs"]) == others | {"user-match-din"}
    assert "user-match-din" in (Path(str(outputs[-1].folder)) / "table.md").read_text()
    with pytest.raises(ConfigError, match="no bundle holds users' pasts yet"):
        pipeline.export(made.config)
