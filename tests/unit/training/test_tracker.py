"""Runs of MLflow and Weights & Biases, each with its real library if that is installed."""

import json
import sys
import time
from pathlib import Path

import pytest

from llm4msr import storage
from llm4msr.config import Config
from llm4msr.errors import ConfigError
from llm4msr.training.checkpoint import Epoch
from llm4msr.training.tracker import open_run, settings
from tests.support.data import config_of

OUTPUT = storage.path("runs/tiny/train/mmoe-user-s1-0123456789ab")
SECRET = "s3://mary:hunter2@bucket/train/earlier"


def epoch(number: int, auc: float) -> Epoch:
    return {
        "epoch": number,
        "loss": 1 / number,
        "valid_auc": auc,
        "valid_gauc": None,  # as where each user has one row
        "valid_logloss": 0.5,
        "valid_rows": 100,
    }


def config(folder: Path, tracker: str) -> Config:
    return config_of(folder, train={"tracker": tracker, "warm_start": SECRET})


def track_and_fail(made: Config) -> None:
    with open_run(made, OUTPUT) as write:
        write(epoch(1, 0.6))
        raise RuntimeError("killed")


def test_nothing_is_tracked_unless_the_config_says_so(tmp_path: Path):
    with open_run(config(tmp_path, "none"), OUTPUT) as write:
        write(epoch(1, 0.6))


def test_what_a_run_says_has_no_secret(tmp_path: Path):
    told = settings(config(tmp_path, "mlflow"))
    assert told["train.warm_start"] == "s3://***@bucket/train/earlier"
    assert told["model.hidden"]
    assert told["seed"] == config(tmp_path, "mlflow").seed


@pytest.mark.parametrize("tracker", ["mlflow", "wandb"])
def test_a_missing_package_is_told_before_training(tmp_path: Path, tracker: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, tracker, None)
    with (
        pytest.raises(ConfigError, match=rf"pip install 'llm4msr\[{tracker}\]'"),
        open_run(config(tmp_path, tracker), OUTPUT),
    ):
        pytest.fail("it is not open")


def test_mlflow_has_a_run_with_settings_and_epochs_and_goes_on_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlruns'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    made = config(tmp_path, "mlflow")
    with pytest.raises(RuntimeError, match="killed"):
        track_and_fail(made)
    client = mlflow.MlflowClient()
    (project,) = [one for one in client.search_experiments() if one.name == made.name]
    (run,) = client.search_runs([project.experiment_id])
    assert (run.info.status, run.info.run_name) == ("FAILED", OUTPUT.name)
    with open_run(made, OUTPUT) as write:
        write(epoch(2, 0.7))
    (run,) = client.search_runs([project.experiment_id])
    assert run.info.status == "FINISHED"
    told = client.get_metric_history(run.info.run_id, "valid_auc")
    assert [(one.step, one.value) for one in told] == [(1, 0.6), (2, 0.7)]
    assert "valid_gauc" not in run.data.metrics
    assert run.data.params["model.backbone"] == made.model.backbone
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and b"hunter2" in file.read_bytes()]


def test_mlflow_that_fails_is_warned_of_once_and_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mary:hunter2@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with open_run(config(tmp_path, "mlflow"), OUTPUT) as write:
        write(epoch(1, 0.6))
        write(epoch(2, 0.7))
    told = capsys.readouterr().err
    assert told.count("warning: train.tracker = 'mlflow'") == 1
    assert "training goes on without it" in told
    assert "hunter2" not in told


def test_wandb_offline_has_a_run_with_settings_and_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("SOME_PASSWORD", "hunter3")
    with open_run(config(tmp_path, "wandb"), OUTPUT) as write:
        write(epoch(1, 0.6))
        write(epoch(2, 0.7))
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    end = time.monotonic() + 60
    while (kept := file.read_bytes()).count(b"valid_auc") < 2:  # a process of its own writes it
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)
    assert OUTPUT.name in file.name
    assert b"valid_gauc" not in kept
    assert json.dumps("mmoe").encode() in kept
    assert b"hunter" not in kept
