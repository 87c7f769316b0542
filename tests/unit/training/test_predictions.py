"""The published predictions, and what an interrupted evaluation leaves."""

import pickle
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
from sklearn.metrics import roc_auc_score

from llm4msr import storage
from llm4msr.arrays import strings
from llm4msr.config import Config
from llm4msr.data import partitions
from llm4msr.errors import StorageError
from llm4msr.pipeline import evaluate, prepare, prepared, trained
from llm4msr.storage import StageOutput
from llm4msr.training import metrics, predictions
from llm4msr.training.evaluate import compared_runs
from llm4msr.training.metrics import Sums
from llm4msr.training.predictions import Scored
from llm4msr.training.scoring import predict
from tests.support.data import config_of, publish_trained, write_data


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = write_data(tmp_path_factory.mktemp("predictions"))
    config = config_of(folder, split={"by": "user"}, model={"knowledge": "none"}, evaluate={"seeds": [1, 2]})
    prepare(config)
    for _, training in compared_runs(config):
        publish_trained(training)
    return config


@pytest.fixture(scope="module")
def output(config: Config) -> StageOutput:
    return evaluate(config)


def test_every_metric_can_be_computed_from_the_predictions(output: StageOutput):
    table = output.table("predictions/p=00000.parquet")
    assert table.column_names == ["user_id", "item_id", "scenario_id", "label", "person", "none-1", "none-2"]
    report = output.json("metrics.json")["runs"]["none"]
    for at in range(2):
        label, logit = table["label"].to_numpy(), table[f"none-{at + 1}"].to_numpy()
        assert metrics.auc(label, logit) == report[at]["overall"]["auc"]
        assert roc_auc_score(label, logit) == pytest.approx(report[at]["overall"]["auc"])
        for place in report[at]["scenarios"]:
            here = pc.equal(table["scenario_id"], place["scenario_id"]).to_numpy()
            assert metrics.auc(label[here], logit[here]) == place["auc"]
        users = table["person"].to_numpy()
        assert len({*users.tolist()}) == len(table["user_id"].unique())
        scenarios = np.unique(strings(table["scenario_id"]), return_inverse=True)[1]
        sums = Sums.of(metrics.Predictions(users, scenarios, label, logit), 2).report(["home", "search"])
        assert sums["overall"] == pytest.approx(report[at]["overall"])


def test_a_row_of_the_predictions_is_a_test_row(config: Config, output: StageOutput):
    data = prepared(config)
    test, items = partitions.read(data, "test", 0), data.table("items.parquet", ["item_id"])
    users = partitions.read(data, "users", 0, ["user_id"])
    table = output.table("predictions/p=00000.parquet")
    assert table["user_id"].equals(users["user_id"].take(test["user"]))
    assert table["item_id"].equals(items["item_id"].take(test["item"]))
    assert table["label"].equals(test["label"])


def test_what_an_interrupted_run_has_scored_is_not_scored_again(config: Config, output: StageOutput):
    folder, model = output.folder, trained(config.model_copy(update={"seed": 2}))
    before = output.json("metrics.json")["runs"]["none"]
    (folder / storage.MANIFEST).unlink()
    assert list(predictions.score(model, folder)) == [1]
    file = folder / "scores/none-2/p=00000.npz"
    scored = Scored.read(file)
    constant = metrics.Predictions(*(np.zeros(4, np.int64),) * 2, np.array([0, 1, 0, 1], np.float32), np.zeros(4))
    scored._replace(sums=Sums.of(constant, 3)).write(file)
    after = evaluate(config).json("metrics.json")["runs"]["none"]
    assert after[0] == before[0]
    assert after[1]["overall"]["auc"] == 0.5, "the scores that were there were taken"
    assert not (folder / "scores").exists()


DAMAGES = {
    "empty": lambda file: file.write_bytes(b""),
    "half": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "pickle": lambda file: file.write_bytes(pickle.dumps({"known": 1})),
    "objects": lambda file: np.savez(file, logit_B=np.array([{}], object), known=1, sums=np.zeros(1, np.uint8)),
    "another": lambda file: np.savez(file, known=1),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_of_an_interrupted_run_is_told_and_goes_when_it_is_deleted(
    config: Config, output: StageOutput, damage: str
):
    model = trained(config.model_copy(update={"seed": 2}))
    (output.folder / storage.MANIFEST).unlink()
    assert list(predictions.score(model, output.folder)) == [1]
    file = Path(output.folder / "scores/none-2/p=00000.npz")
    DAMAGES[damage](file)
    with pytest.raises(StorageError, match=r"p=00000.npz: damaged; delete it and run `llm4msr evaluate` again"):
        evaluate(config)
    file.unlink()
    assert evaluate(config).manifest.files == output.manifest.files


def test_shares_of_a_partition_have_whole_users_and_together_all_rows(config: Config):
    net, data = trained(config).load()
    whole = predict(net, data, data.rows("test"), 64)
    parts = [predict(net, data, data.rows("test"), 64, 0, share, 3) for share in range(3)]
    users = [{*part.user.tolist()} for part in parts]
    assert all(users)
    assert not users[0] & users[1] | users[1] & users[2] | users[0] & users[2]
    scenarios = len(data.scenario_names)
    together = Sums.add(Sums.of(part, scenarios) for part in parts).report(data.scenario_names)
    alone = Sums.of(whole, scenarios).report(data.scenario_names)
    assert together["overall"] == pytest.approx(alone["overall"], abs=1e-6)


def test_each_seeds_rows_have_files_of_their_own(tmp_path: Path):
    config = config_of(
        write_data(tmp_path), split={"kind": "random"}, model={"knowledge": "none"}, evaluate={"seeds": [1, 2]}
    )
    for _, training in compared_runs(config):
        prepare(training)
        publish_trained(training)
    output = evaluate(config)
    for seed in (1, 2):
        table = output.table(f"predictions/seed={seed}/p=00000.parquet")
        assert table.column_names[5:] == [f"none-{seed}"]
        assert len(table) == partitions.rows(prepared(config.model_copy(update={"seed": seed})), "test")
