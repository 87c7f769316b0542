"""All stages on real Ray Data and Ray Train, from three CSV files and a tiny LLM to a ranked list."""

import json
import math

import numpy as np
import pytest

import llm4msr
from llm4msr import Ranker, RankRequest, pipeline
from llm4msr.arrays import strings
from llm4msr.bundle import files
from llm4msr.bundle.id_table import IdTable
from llm4msr.export import user_codes
from llm4msr.hashes import hash_ids, numbers_of
from llm4msr.storage.vectors import to_matrix
from tests.support.experiments import ITEMS, SAD_USER, SCENARIOS, USERS, read_store
from tests.support.fixtures import Spine

STAGES = ["prepare", "extract", "train", "train", "evaluate", "export"]


def test_every_stage_publishes_what_its_manifest_says(spine: Spine) -> None:
    assert [output.manifest.stage for output in spine.outputs] == STAGES
    for output in spine.outputs:
        manifest = json.loads((output.folder / "manifest.json").read_text())
        assert manifest["files"]
        for name, part in manifest["files"].items():
            assert (output.folder / name).stat().st_size == part["bytes"]
        assert manifest["seed"] == 3
        assert manifest["libraries"]["ray"]
        assert manifest["seconds"] > 0


def test_counts_in_the_manifests(spine: Spine) -> None:
    prepared, extracted = spine.one("prepare").manifest, spine.one("extract").manifest
    assert prepared.rows == 26 * USERS + ITEMS
    assert sum(prepared.files[f"{part}/p=00000.parquet"].rows for part in ("train", "valid", "test")) == prepared.rows
    assert extracted.rows == USERS + 1 + len(SCENARIOS)
    assert (extracted.failed, extracted.skipped) == (1, 0)
    assert (extracted.info["width"], extracted.info["users_without_likes"]) == (128, 1)
    assert spine.one("train").manifest.rows == prepared.files["train/p=00000.parquet"].rows
    assert spine.one("evaluate").manifest.rows == prepared.files["test/p=00000.parquet"].rows


def test_knowledge_of_every_user_and_scenario(spine: Spine) -> None:
    store = read_store(spine.folder("extract")).to_pylist()
    assert {row["raw_id"] for row in store} == {f"user-{u}" for u in range(USERS)} | {SAD_USER, *SCENARIOS}
    for row in store:
        vector = np.asarray(row["vector"], dtype=np.float32)
        if row["raw_id"] == SAD_USER:
            assert row["error"] == "nothing liked before the cut"
            assert not vector.any()
        else:
            assert row["error"] == ""
            assert np.isfinite(vector).all()
            assert vector.any()
    asked = {row["raw_id"] for row in store if row["answer"]}
    assert asked <= set(SCENARIOS)
    assert asked


def test_the_planted_signal_is_learned(spine: Spine) -> None:
    for output in spine.outputs:
        if output.manifest.stage == "train":
            assert output.manifest.info["metrics"]["overall"]["auc"] > 0.75
    assert spine.one("evaluate").manifest.info["metrics"]["overall"]["auc"] > 0.75


def test_table_shows_every_scenario_and_variant(spine: Spine) -> None:
    table = (spine.folder("evaluate") / "table.md").read_text()
    for scenario in SCENARIOS:
        assert f"| {scenario} |" in table
    assert "| test rows of | rows | constant AUC | popularity AUC | none AUC | both AUC |" in table
    assert "Against the plain model (`none`, same backbone and seeds): `both` AUC " in table
    metrics = json.loads((spine.folder("evaluate") / "metrics.json").read_text())
    assert f"{metrics['summary']['both']['overall']['auc']['mean']:.4f}" in table


def test_history_and_tensorboard_of_every_epoch(spine: Spine) -> None:
    for output in spine.outputs:
        if output.manifest.stage == "train":
            history = json.loads((output.folder / "history.json").read_text())
            assert [epoch["epoch"] for epoch in history] == list(range(1, 13))
            assert history[-1]["loss"] < history[0]["loss"]
            best = max(epoch["valid_auc"] for epoch in history)
            assert output.manifest.info["metrics"]["overall"]["auc"] == best
            (events,) = output.folder.glob("tensorboard/events.out.tfevents.*")
            assert b"valid_auc" in events.read_bytes()
            assert not (output.folder / "checkpoints").exists()


def test_the_bundle_ranks(spine: Spine) -> None:
    ranker = Ranker.load(str(spine.folder("export")))
    items = [f"item-{i}" for i in range(10)]
    request = RankRequest(user_id="user-0", scenario="books", items=items, context={"device": "phone"}, top_k=4)
    answer = ranker.rank(request)
    assert len(answer.ranked) == 4
    scores = [one.score for one in answer.ranked]
    assert scores == sorted(scores, reverse=True)
    assert {one.item_id for one in answer.ranked[:3]} <= set(items[::2]), "user-0 likes even items"
    assert answer.knowledge == "stored"
    assert not answer.unknown.user
    assert not answer.unknown.items


def test_codes_of_many_partitions_are_those_of_one(spine: Spine, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = spine.folder("export")
    coder = files.read_coder(bundle, files.read_description(bundle))
    (exported,) = IdTable(bundle / files.CODES).partitions
    monkeypatch.setattr(user_codes, "PARTITION_ROWS", 10)
    partitions = list(user_codes.encode_all(spine.one("extract"), coder))
    assert len(partitions) == 8
    for number, table in enumerate(partitions):
        ids = strings(table["id"])
        assert (numbers_of(hash_ids(ids), 8) == number).all()
        assert (to_matrix(table["code"]) == exported.numbers["code"][exported.find_all(ids)]).all()
    assert sum(map(len, partitions)) == len(exported) == USERS


def test_a_user_without_knowledge_is_ranked_without(spine: Spine) -> None:
    ranker = Ranker.load(str(spine.folder("export")))
    answer = ranker.rank(RankRequest(user_id=SAD_USER, scenario="books", items=["item-1", "item-2"]))
    assert answer.knowledge == "none"
    assert not answer.unknown.user
    assert all(math.isfinite(one.score) for one in answer.ranked)


def test_running_again_finds_everything_finished(spine: Spine) -> None:
    again = pipeline.run(spine.experiment.config)
    assert all(output.reused for output in again)
    assert [output.folder for output in again] == [output.folder for output in spine.outputs]


def test_a_table_needs_its_models(spine: Spine) -> None:
    changed = spine.experiment.config.model_copy(update={"seed": 99})
    with pytest.raises(llm4msr.LLM4MSRError, match=r"is not trained yet; run `llm4msr train` with .*seed=99"):
        pipeline.evaluate(changed)
