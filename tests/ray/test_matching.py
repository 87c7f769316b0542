"""Models that match pasts with candidates, through all stages to a bundle that ranks."""

from pathlib import Path

from llm4msr import Ranker, RankRequest, pipeline
from tests.support.experiments import MakeExperiment

PARTITIONS = 4


def test_a_run_in_partitions_trains_compares_and_exports_matches(experiment: MakeExperiment, ray_session: None) -> None:
    variants, others = ["din", "random"], {"din", "user-match-din-random"}
    made = experiment(
        {
            "extract.reads": "items",
            "extract.item_vectors": "random",
            "extract.pool_dim": 5,
            "extract.answers": "none",
            "extract.point_in_time": True,
            "split.partitions": PARTITIONS,
            "model.knowledge": "user",
            "model.match": ["candidate", "cosines", "attention", "ids"],
            "evaluate.variants": variants,
            "train.epochs": 2,
        }
    )
    outputs = pipeline.run(made.config)
    trainings = ["train"] * (len(variants) + 1)
    assert [output.manifest.stage for output in outputs] == ["prepare", "extract", *trainings, "evaluate", "export"]
    assert set(outputs[-2].json("metrics.json")["runs"]) == others | {"user-match-din"}
    assert "user-match-din" in (Path(str(outputs[-2].folder)) / "table.md").read_text()
    ranker = Ranker.load(str(outputs[-1].folder))
    users = [raw_id.decode() for part in ranker.knowledge.pasts.partitions for raw_id in part.texts["id"]]
    assert len(ranker.knowledge.pasts.partitions) == PARTITIONS
    assert len(users) > 0.9 * len(ranker.users)
    items = [raw_id.decode() for raw_id in ranker.items.texts["id"]][:20]
    scenario = ranker.description.scenarios[1]
    rankings = {
        tuple(item.item_id for item in ranker.rank(RankRequest(user_id=user, scenario=scenario, items=items)).ranked)
        for user in users
    }
    assert len(rankings) > 1
    fresh = ranker.with_codes(str(pipeline.refresh(made.config).folder))
    assert len(fresh.knowledge.pasts) == len(ranker.knowledge.pasts)
    request = RankRequest(user_id=users[0], scenario=scenario, items=items)
    assert fresh.rank(request).knowledge == ranker.rank(request).knowledge == "stored"
