"""Training on real Ray Train: several workers, and a run that was killed."""

import json
import subprocess
from pathlib import Path

import pytest

import llm4msr
from llm4msr.errors import ConfigError
from llm4msr.extract import extracted
from llm4msr.fit import Data, fit
from llm4msr.prepare import prepared
from llm4msr.train import trained
from tests.conftest import Spine
from tests.helpers import MakeExperiment, command_line, kill_all, own_ray, wait_until


@pytest.fixture(scope="module")
def ready(spine: Spine) -> dict[str, Path]:
    """What training starts from, to be copied into a storage of its own."""
    return {"prepare": spine.folder("prepare"), "extract": spine.folder("extract")}


def test_two_workers_killed_with_sigkill_continue_and_train_the_model_of_one(
    ready: dict[str, Path], experiment: MakeExperiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """That a run which goes on ends in the very same weights is shown without Ray, in unit/test_fit.py."""
    no_chance = {"model.dropout": 0.0, "model.knowledge_dropout": 0.0, "train.id_dropout": 0.0}
    killed = experiment({"train.workers": 2, **no_chance}, ready)
    config = killed.config
    alone = fit(config, Data.open(config, prepared(config), extracted(config)))
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            command_line("train", str(killed)), env=own_ray(), stderr=log, stdout=log, start_new_session=True
        )
        wait_until(lambda: any(killed.root.glob("train/*/checkpoints/checkpoint_manager_snapshot.json")), process)
        kill_all(process)
    (folder,) = killed.root.glob("train/*")
    assert not (folder / "manifest.json").exists(), "it was killed too late to test anything"

    capsys.readouterr()
    output = llm4msr.train(config)
    assert ": 1 of 12" not in capsys.readouterr().err, "it began again with the first epoch"
    history = json.loads((folder / "history.json").read_text())
    assert [epoch["epoch"] for epoch in history] == list(range(1, len(history) + 1))
    assert output.manifest.info["epochs"] == len(history) == len(alone.progress.history)
    for ours, theirs in zip(history, alone.progress.history, strict=True):
        assert ours["valid_auc"] == pytest.approx(theirs["valid_auc"], abs=2e-3)
        assert ours["valid_logloss"] == pytest.approx(theirs["valid_logloss"], abs=1e-3)
    assert not (folder / "checkpoints").exists()


def test_an_untrained_model_says_what_to_run(spine: Spine) -> None:
    config = llm4msr.load(str(spine.experiment), ["model.knowledge=user", "seed=8"])
    with pytest.raises(ConfigError, match="'user' with seed 8 is not trained yet; run `llm4msr train` with") as told:
        trained(config)
    assert "--set model.knowledge=user --set model.control=none --set seed=8" in str(told.value)


def test_training_needs_prepared_data_and_knowledge(spine: Spine, experiment: MakeExperiment) -> None:
    with pytest.raises(ConfigError, match="nothing prepared for this config; run `llm4msr prepare` first"):
        llm4msr.train(experiment().config)
    only_prepared = experiment({}, {"prepare": spine.folder("prepare")})
    with pytest.raises(ConfigError, match="no finished extraction for this config; run `llm4msr extract` first"):
        llm4msr.train(only_prepared.config)
