"""What is exported scores as the trained net does, holds the codes of who has knowledge, and says what it is."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llm4msr import Ranker, RankRequest, storage
from llm4msr.bundle import files
from llm4msr.bundle.id_table import IdTable
from llm4msr.config import Config
from llm4msr.errors import ConfigError, StorageError
from llm4msr.export.write import Sources, write_bundle
from llm4msr.pipeline import export, exported
from llm4msr.training.batches import RowReader
from llm4msr.training.dataset import Dataset
from tests.support.bundles import publish_bundle, rank_request, read_codes, scores
from tests.support.data import config_of, prepare_and_make_knowledge, prepared_table, publish_trained, write_data
from tests.support.partitioned import in_partitions
from tests.unit.conftest import World


@pytest.mark.parametrize(
    "model",
    [
        *({"knowledge": variant} for variant in ("none", "user", "scenario", "both", "feature")),
        {"meta_rank": 0},
        {"meta_layers": 2, "fusion": "gate"},
        {"meta_residual": False, "fusion": "concat", "backbone": "star"},
        {"knowledge": "scenario", "meta_layers": 2, "meta_rank": 0},
        {"user_embedding": "hashed", "user_embedding_rows": 7},
        {"user_embedding": "none"},
    ],
)
def test_scores_are_those_of_the_net_in_evaluation(world: World, tmp_path: Path, model: dict[str, Any]):
    output, data, net = publish_bundle(world, tmp_path, **model)
    ranker = Ranker.load(str(output.folder))
    rows = next(RowReader(world.data, "test", ["device"]).in_file_order(40))
    with torch.inference_mode():
        expected = torch.sigmoid(net(data.batch(rows, net)))
    raw = {
        side: prepared_table(world.data, f"{side}s")[f"{side}_id"].to_pylist() for side in ("user", "item", "scenario")
    }
    devices = ["", *json.loads(storage.read_bytes(world.data.folder / "fields.json"))["context"]["device"]]
    columns = (rows.user_B, rows.item_B, rows.scenario_B, rows.context_BC[:, 0], expected)
    for user, item, scenario, device, score in zip(*(c.tolist() for c in columns), strict=True):
        request = RankRequest(
            user_id=raw["user"][user],
            scenario=raw["scenario"][scenario],
            items=[raw["item"][item]],
            context={"device": devices[device]} if device else {},
        )
        assert ranker.rank(request).ranked[0].score == pytest.approx(score, abs=1e-5)
    assert expected.std() > 1e-3


def test_users_without_any_feature_are_told_apart_by_knowledge_alone(tmp_path: Path):
    config = config_of(write_data(tmp_path), table={"users": "", "user_features": []})
    world = (config, *prepare_and_make_knowledge(config))
    output, data, net = publish_bundle(world, tmp_path, user_embedding="none")
    assert [field.side for field in data.tables.fields].count("user") == 0
    ranker = Ranker.load(str(output.folder))
    rows = next(data.rows("test").in_file_order(20))
    with torch.inference_mode():
        expected = torch.sigmoid(net(data.batch(rows, net))).tolist()
    ids = [prepared_table(data.prepared, f"{side}s")[f"{side}_id"].to_pylist() for side in ("user", "item", "scenario")]
    devices = ["", *data.prepared.json("fields.json")["context"]["device"]]
    for at, score in enumerate(expected):
        user, item, scenario = (names[int(rows[i][at])] for i, names in enumerate(ids))
        context = {"device": devices[int(rows.context_BC[at, 0])]}
        request = RankRequest(user_id=user, scenario=scenario, items=[item], context=context)
        assert ranker.rank(request).ranked[0].score == pytest.approx(score, abs=1e-5)


def test_codes_are_one_row_per_user_with_knowledge(world: World, tmp_path: Path):
    output, data, net = publish_bundle(world, tmp_path)
    table = read_codes(output.folder)
    ids = storage.read_table(world.data.folder / "users/p=00000.parquet")["user_id"].to_pylist()
    assert data.knowledge is not None
    known = np.flatnonzero(data.knowledge.known(np.arange(len(ids))))
    assert table["id"].to_pylist() == sorted(ids[user] for user in known)
    assert output.manifest.info["users_with_knowledge"] == table.num_rows == 37
    assert output.manifest.rows == len(ids) - 1
    expected_NK = net.user_codes(*data.knowledge.lookup(torch.from_numpy(known)))
    codes = IdTable(Path(str(output.folder)) / files.CODES)
    for user, expected_K in zip(known, expected_NK.tolist(), strict=True):
        code_K = codes.numbers("code", codes.find(ids[user]))
        assert (code_K.dtype, code_K.tolist()) == (np.float16, pytest.approx(expected_K, abs=1e-3))


@pytest.mark.parametrize("knowledge", ["none", "scenario"])
def test_a_model_without_user_level_uses_no_users_knowledge(world: World, tmp_path: Path, knowledge: str):
    output, *_ = publish_bundle(world, tmp_path, knowledge=knowledge)
    ranker = Ranker.load(str(output.folder))
    assert ranker.rank(rank_request()).knowledge == "none"
    assert ranker.info().users_with_knowledge == 0
    with pytest.raises(StorageError, match="no user level"):
        files.read_coder(output.folder, ranker.description)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Config:
    config = config_of(write_data(tmp_path_factory.mktemp("export")), split={"by": "user"})
    prepare_and_make_knowledge(config)
    publish_trained(config.using("none", 1))
    return config


def test_export_finds_what_it_published(trained: Config):
    plain = trained.using("none", 1)
    with pytest.raises(ConfigError, match="no bundle for this config yet; run `llm4msr export` first"):
        exported(plain)
    output = export(plain)
    assert exported(plain).folder == output.folder
    assert export(plain).reused
    card = storage.read_bytes(output.folder / "README.md").decode()
    assert card.startswith("# tiny: a multi-scenario ranker")
    assert "Backbone `mmoe`, knowledge `none`, seed 1" in card
    assert "- Frozen LLM: none." in card


def test_another_list_of_users_to_forget_makes_another_bundle(trained: Config, tmp_path: Path):
    folders = set()
    for listed in ("", "u1\n", "u1\nu2\n"):
        (tmp_path / "forget.txt").write_text(listed)
        extract = trained.extract.model_copy(update={"forget": str(tmp_path / "forget.txt")})
        output = export(trained.model_copy(update={"extract": extract}).using("none", 1))
        assert len(Ranker.load(str(output.folder)).users) == 40 - len(listed.split())
        folders.add(output.folder)
    assert len(folders) == 3
    assert export(trained.using("none", 1)).folder in folders


def test_ids_to_forget_that_are_nobodys_are_told_where_no_extraction_does(
    trained: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    def export_without(listed: str) -> None:
        (tmp_path / "forget.txt").write_text(listed)
        extract = trained.extract.model_copy(update={"forget": str(tmp_path / "forget.txt")})
        export(trained.model_copy(update={"extract": extract}).using("none", 1))

    export_without("u3\nU4\n")
    assert "1 of 2 ids to forget are nobody's: 'U4'" in capsys.readouterr().err
    with pytest.raises(StorageError, match="1 of 1 ids to forget are nobody's: 'U5'"):
        export_without("U5\n")


def test_nobody_serves_a_control(trained: Config):
    with pytest.raises(ConfigError, match="'shuffled': wrong vectors are for measuring, not for serving"):
        export(trained.using("shuffled", 1))


@pytest.mark.parametrize("total", [2, 16])
def test_a_bundle_of_data_in_partitions_ranks_as_that_of_one(world: World, tmp_path: Path, total: int):
    config, data, _ = world
    config = config.using("none", 1)
    parted, divided = in_partitions(config, data, total, tmp_path / "divided")
    net = Dataset.open(config, data, None).new_net(config)
    rankers = []
    for name, prepared in (("whole", data), ("parts", divided)):
        dataset = Dataset.open(parted, prepared, None)

        def build(folder: Any, dataset: Dataset = dataset) -> storage.StageResult:
            return write_bundle(Sources(config, net, dataset), folder, {}, "")

        output = storage.publish(storage.path(tmp_path / name), "export", 1, {}, {}, build)
        rankers.append(Ranker.load(str(output.folder)))
    assert [len(ranker.users.partitions) for ranker in rankers] == [1, total]
    assert [ranker.info().users for ranker in rankers] == [40, 40]
    for user in ("stranger", *(f"u{i}" for i in range(40))):
        one, other = (scores(ranker, user_id=user) for ranker in rankers)
        assert one == other
