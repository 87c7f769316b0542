"""Evaluation of several partitions, as tasks of Ray."""

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from llm4msr import pipeline, storage
from llm4msr.config import Config
from llm4msr.data import partitions
from llm4msr.explain import finished_run
from llm4msr.explain.stage import explain
from llm4msr.pipeline import prepare, trained
from llm4msr.storage import StageOutput
from llm4msr.training import popularity, predictions
from llm4msr.training.dataset import scenario_names
from llm4msr.training.evaluate import compared_runs, evaluate
from llm4msr.training.trained import TrainedModel
from tests.support.data import config_of, hostile_config, publish_trained, write_data
from tests.support.partitioned import in_partitions, model_in_partitions

PARTITIONS = 8
"""More than those of one task."""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = write_data(tmp_path_factory.mktemp("evaluate"))
    config = config_of(folder, split={"by": "user"}, model={"knowledge": "none"}, evaluate={"seeds": [1, 2]})
    prepare(config)
    for _, training in compared_runs(config):
        publish_trained(training)
    return config


@pytest.fixture
def models(config: Config, tmp_path: Path) -> list[TrainedModel]:
    """Trained on one partition; they score several."""
    whole = [trained(training) for _, training in compared_runs(config)]
    config, data = in_partitions(config, whole[0].prepared, PARTITIONS, tmp_path)
    return [
        TrainedModel(config.model_copy(update={"seed": model.config.seed}), data, None, model.output) for model in whole
    ]


def predictions_of(output: StageOutput, total: int) -> pd.DataFrame:
    """All rows by their ids; a logit moves in its last digits with the other rows of its batch."""
    table = pa.concat_tables(output.table(partitions.file_name("predictions", n)) for n in range(total)).to_pandas()
    return table.sort_values(list(table.columns), ignore_index=True)


def test_partitions_scored_by_tasks_give_the_metrics_of_one(
    config: Config, models: list[TrainedModel], ray_session: None
) -> None:
    alone = evaluate(config, [trained(training) for _, training in compared_runs(config)])
    together = evaluate(models[0].config, models)
    assert together.manifest.rows == alone.manifest.rows
    ours, theirs = predictions_of(together, PARTITIONS), predictions_of(alone, 1)
    people = [frame.pop("person") for frame in (ours, theirs)]
    assert len({*zip(*people, strict=True)}) == people[0].nunique() == people[1].nunique()
    pd.testing.assert_frame_equal(ours, theirs, rtol=0, atol=1e-5)
    reports, expected = together.json("metrics.json"), alone.json("metrics.json")
    for name, seeds in expected["runs"].items():
        for one, other in zip(reports["runs"][name], seeds, strict=True):
            assert one["overall"] == pytest.approx(other["overall"], abs=2e-3)
            assert [place["rows"] for place in one["scenarios"]] == [place["rows"] for place in other["scenarios"]]
    for name, (report,) in expected["baselines"].items():
        assert reports["baselines"][name][0]["overall"] == pytest.approx(report["overall"], abs=1e-12)


def test_a_run_that_goes_on_scores_only_the_partitions_that_are_left(
    models: list[TrainedModel], tmp_path: Path, ray_session: None
) -> None:
    folder = models[0].prepared.folder.parent / "evaluation"
    assert sum(predictions.score(models[0], folder)) == PARTITIONS
    file = folder / "scores/none-1/p=00003.npz"
    file.unlink()
    assert list(predictions.score(models[0], folder)) == [PARTITIONS - 1, 1]
    assert file.exists()


def test_partitions_validation_rows_are_counted_as_those_of_the_whole(
    config: Config, models: list[TrainedModel], ray_session: None
) -> None:
    ours, theirs = predictions.count_scores(models[0], "valid"), predictions.count_scores(trained(config), "valid")
    for scenario in range(len(scenario_names(models[0].prepared))):
        one, other = ours.of_scenario(scenario), theirs.of_scenario(scenario)
        assert (one.positives_K.sum(), one.negatives_K.sum()) == (other.positives_K.sum(), other.negatives_K.sum())
    assert ours.of_all().calibration_error() == pytest.approx(theirs.of_all().calibration_error(), abs=1e-3)
    assert ours.positives_K.sum() > 0


def test_popularity_of_partitions_is_that_of_the_whole(config: Config, models: list[TrainedModel], ray_session: None):
    whole, data = trained(config).prepared, models[0].prepared
    names = scenario_names(data)
    ours, theirs = popularity.reports(data, "valid", names), popularity.reports(whole, "valid", names)
    for name in popularity.BASELINES:
        assert ours[name]["overall"] == pytest.approx(theirs[name]["overall"], abs=1e-12)


def test_a_report_on_several_partitions_is_about_a_stated_sample(
    tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = hostile_config(tmp_path / "whole", train={"epochs": 4})
    runs = (config.using("none", config.seed), config)
    for run in runs:
        publish_trained(run)
    models = [model_in_partitions(trained(run), PARTITIONS, tmp_path / "split") for run in runs]
    evaluation, own = evaluate(models[-1].config, models), models[-1]
    whole = explain(own.config, models, evaluation)
    assert whole.manifest.info["sample"] == ""
    assert whole.manifest.rows == partitions.rows(own.prepared, "test")
    alone = pipeline.explain(config).manifest.info
    for metric in ("auc", "gauc", "logloss", "ndcg_at_10"):
        ours, theirs = (info["metrics"]["overall"][metric] for info in (whole.manifest.info, alone))
        assert ours == pytest.approx(theirs, abs=2e-3)
    assert whole.manifest.info["interval"] == pytest.approx(alone["interval"], abs=0.02), (
        "other draws of the same users"
    )
    assert whole.manifest.info["baselines"]["popularity"]["auc"] == alone["baselines"]["popularity"]["auc"]

    monkeypatch.setattr(finished_run, "SAMPLE_ROWS", partitions.rows(own.prepared, "train") // 2)
    storage.remove(whole.folder)
    sampled = explain(own.config, models, evaluation)
    assert 0 < sampled.manifest.rows < whole.manifest.rows
    assert sampled.manifest.info["metrics"] == whole.manifest.info["metrics"], "these are of all rows"
    page = sampled.read("report.html").decode()
    assert f"are of a sample: {sampled.manifest.info['sample']}." in page
