"""Training on real Ray: several workers, runs that were killed, and one that lost a node."""

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import llm4msr
from llm4msr import pipeline
from llm4msr.errors import ConfigError
from llm4msr.pipeline import extracted, prepared, trained
from llm4msr.training.dataset import Dataset
from llm4msr.training.loop import fit
from tests.support.experiments import MakeExperiment, command_line, kill_all, own_ray, wait_until
from tests.support.fixtures import Spine

NO_CHANCE = {
    "model.dropout": 0.0,
    "model.knowledge_dropout": 0.0,
    "train.id_dropout": 0.0,
    "train.precision": "float32",  # what is rounded to bfloat16 tells batches that were cut in two from whole ones
}
SOON = {
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "3",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """What a worker has: with more, sums are taken in another order, which shows after some epochs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def ready(spine: Spine) -> dict[str, Path]:
    """What training starts from, to be copied into a storage of its own."""
    return {"prepare": spine.folder("prepare"), "extract": spine.folder("extract")}


def kept_a_checkpoint(root: Path) -> bool:
    """Whether one is whole, unless a later one has taken its place at this very moment."""
    return any(root.glob("train/*/checkpoints/epoch-*/digests.json"))


def test_two_workers_killed_with_sigkill_continue_and_train_the_model_of_one(
    ready: dict[str, Path], experiment: MakeExperiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """That a run which goes on ends in the very same weights is shown without Ray, in unit/training/test_loop.py."""
    killed = experiment({"train.workers": 2, "train.sparse": True, **NO_CHANCE}, ready)  # rows have owners
    config = killed.config
    alone = fit(config, Dataset.open(config, prepared(config), extracted(config)))
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            command_line("train", str(killed)), env=own_ray(), stderr=log, stdout=log, start_new_session=True
        )
        wait_until(lambda: kept_a_checkpoint(killed.root), process)
        kill_all(process)
    (folder,) = killed.root.glob("train/*")
    assert not (folder / "manifest.json").exists(), "it was killed too late to test anything"

    capsys.readouterr()
    output = pipeline.train(config)
    assert ": 1 of 12" not in capsys.readouterr().err, "it began again with the first epoch"
    history = json.loads((folder / "history.json").read_text())
    assert [epoch["epoch"] for epoch in history] == list(range(1, len(history) + 1))
    assert output.manifest.info["epochs"] == len(history) == len(alone.progress.history)
    for ours, theirs in zip(history, alone.progress.history, strict=True):
        assert ours["valid_auc"] == pytest.approx(theirs["valid_auc"], abs=2e-3)
        assert ours["valid_logloss"] == pytest.approx(theirs["valid_logloss"], abs=1e-3)
    assert not (folder / "checkpoints").exists()


def test_where_the_only_worker_dies_another_goes_on_from_its_last_checkpoint(
    ready: dict[str, Path], experiment: MakeExperiment, capsys: pytest.CaptureFixture[str]
) -> None:
    run = experiment({"train.epochs": 30, "train.patience": 30}, ready)
    killed: list[int] = []

    def kill() -> None:
        wait_until(lambda: kept_a_checkpoint(run.root))
        for process in psutil.Process().children(recursive=True):  # the Ray of this test
            if "ray::worker_loop" in "".join(process.cmdline()):
                process.kill()
                killed.append(process.pid)

    killer = threading.Thread(target=kill)
    killer.start()
    output = pipeline.train(run.config)
    killer.join()
    assert len(killed) == 1
    assert "the worker died (WorkerCrashedError: " in capsys.readouterr().err
    first, second = output.manifest.info["starts"]
    assert first["epoch"] == 0 < second["epoch"]
    history = json.loads((Path(str(output.folder)) / "history.json").read_text())
    assert [epoch["epoch"] for epoch in history] == list(range(1, 31))


def test_a_loss_that_is_not_finite_ends_training_at_the_first_try(
    ready: dict[str, Path], experiment: MakeExperiment
) -> None:
    run = experiment({"train.workers": 2, "train.learning_rate": 1e30}, ready)
    with pytest.raises(ConfigError, match=r"not finite in epoch 1; lower train.learning_rate \(it is 1e\+30\)$"):
        pipeline.train(run.config)
    (folder,) = run.root.glob("train/*")
    assert not (folder / "manifest.json").exists()
    assert not kept_a_checkpoint(run.root)
    assert len(list((folder / "tensorboard").iterdir())) == 1, "every try leaves one file"


def test_a_tracker_is_told_that_training_failed(
    ready: dict[str, Path], experiment: MakeExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlruns'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    run = experiment({"train.tracker": "mlflow", "train.learning_rate": 1e30}, ready)
    with pytest.raises(ConfigError, match="not finite in epoch 1"):
        pipeline.train(run.config)
    client = mlflow.MlflowClient()
    projects = [one.experiment_id for one in client.search_experiments()]
    assert [one.info.status for one in client.search_runs(projects)] == ["FAILED"]


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head and a node, one CPU each, apart from the Ray that the other tests use."""
    from ray.cluster_utils import Cluster

    soon = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 3}
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "_system_config": soon})
    try:
        yield made
    finally:
        made.shutdown()


def test_a_run_that_loses_a_node_goes_on_with_fewer_workers(
    ready: dict[str, Path], experiment: MakeExperiment, cluster: Any, tmp_path: Path
) -> None:
    changes = {"train.workers": [1, 2], "train.epochs": 20, "train.patience": 20, "train.checkpoint_batches": 7}
    run = experiment({"train.sparse": True, **NO_CHANCE, **changes}, ready)
    config = run.config
    lost = cluster.add_node(num_cpus=1)
    environment = os.environ | SOON | {"RAY_ADDRESS": cluster.address}
    with (tmp_path / "log").open("w") as log:
        driver = subprocess.Popen(command_line("train", str(run)), env=environment, stdout=log, stderr=log)
        try:
            wait_until(lambda: kept_a_checkpoint(run.root), driver)
            cluster.remove_node(lost, allow_graceful=False)
            assert driver.wait(timeout=180) == 0, (tmp_path / "log").read_text()
        finally:
            if driver.poll() is None:
                kill_all(driver)

    output = trained(config).output
    starts = output.manifest.info["starts"]
    assert [start["workers"] for start in starts] == [2, 1], (tmp_path / "log").read_text()
    assert (starts[1]["epoch"], starts[1]["batch"]) > (0, 0)
    alone = fit(config, Dataset.open(config, prepared(config), extracted(config)))
    history = json.loads((Path(str(output.folder)) / "history.json").read_text())
    assert [epoch["epoch"] for epoch in history] == list(range(1, 21))
    for ours, theirs in zip(history, alone.progress.history, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=0.01)


def test_an_untrained_model_says_what_to_run(spine: Spine) -> None:
    config = llm4msr.load(str(spine.experiment), ["model.knowledge=user", "seed=8"])
    with pytest.raises(ConfigError, match="'user' with seed 8 is not trained yet; run `llm4msr train` with") as told:
        trained(config)
    assert "--set model.knowledge=user --set model.control=none --set seed=8" in str(told.value)


def test_training_needs_prepared_data_and_knowledge(spine: Spine, experiment: MakeExperiment) -> None:
    with pytest.raises(ConfigError, match="nothing prepared for this config; run `llm4msr prepare` first"):
        pipeline.train(experiment().config)
    only_prepared = experiment({}, {"prepare": spine.folder("prepare")})
    with pytest.raises(ConfigError, match="no finished extraction for this config; run `llm4msr extract` first"):
        pipeline.train(only_prepared.config)
