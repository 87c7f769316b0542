"""`tune` on real Ray Tune: both models, killed and continued, never a look at the test rows."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

import llm4msr
from llm4msr import pipeline
from llm4msr.data import partitions
from llm4msr.errors import ConfigError, LLM4MSRError
from llm4msr.storage import StageOutput
from tests.support.experiments import ROOT, Experiment, MakeExperiment, command_line, kill_all, own_ray, wait_until
from tests.support.fixtures import Spine

SPACE = {
    "tune.trials": 4,
    "tune.space.model.dropout": [0.0, 0.2],
    "tune.space.train.learning_rate": {"min": 1e-3, "max": 2e-2, "log": True},
    "train.epochs": 5,
    "train.patience": 5,
    "train.precision": "float32",
}


@pytest.fixture
def made(spine: Spine, experiment: MakeExperiment) -> Experiment:
    """Prepared and extracted, with test rows that nothing can read: as many bytes, all zero."""
    ready = {"prepare": spine.folder("prepare"), "extract": spine.folder("extract")}
    made = experiment(SPACE, ready)
    test = made.root / "prepare" / ready["prepare"].name / partitions.file_name("test", 0)
    test.write_bytes(bytes(test.stat().st_size))
    return made


def trials(root: Path) -> dict[str, dict[str, Any]]:
    return {str(file): json.loads(file.read_text()) for file in root.glob("tune/trials/*/[!.]*.json")}


def test_a_killed_search_goes_on_and_its_files_train_to_the_auc_that_it_found(
    made: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (tmp_path / "log").open("w") as log:
        command = command_line("tune", str(made))
        process = subprocess.Popen(command, env=own_ray(), stderr=log, stdout=log, start_new_session=True)
        wait_until(lambda: len(trials(made.root)) >= 2, process)
        kill_all(process)
    before = trials(made.root)
    assert 2 <= len(before) < 8, "it was killed too late to test anything"

    capsys.readouterr()
    output = pipeline.tune(made.config)
    assert trials(made.root).items() >= before.items(), "a trial that had ended ran again"
    assert output.manifest.continued or not output.reused
    by_model = output.json("trials.json")
    assert {name: len(found) for name, found in by_model.items()} == {"none": 4, "both": 4}
    assert output.read("table.md").decode().count("| 4 |") == 2
    for name, found in by_model.items():
        check_model(output, name, found)
    assert pipeline.tune(made.config).reused
    assert "pkl" not in " ".join(map(str, made.root.rglob("*")))


def check_model(output: StageOutput, name: str, found: list[dict[str, Any]]) -> None:
    """That the file of a model can be run, and gives what the search saw."""
    aucs = [max(trial["aucs"]) for trial in found]
    assert found[0]["settings"] == {"model.dropout": 0.1, "train.learning_rate": 5e-3}, "the config's own"
    assert len(found[0]["aucs"]) == 5, "the config's own settings train to their end"
    tuned = llm4msr.load(str(output.folder / f"{name}.toml"))
    assert tuned.model.variant == name
    trained = pipeline.train(tuned).manifest.info
    assert trained["metrics"]["overall"]["auc"] == pytest.approx(max(aucs), abs=1e-6)
    assert output.manifest.info["tuned"][name]["valid_auc"] == max(aucs) >= aucs[0]


def test_settings_that_do_not_train_are_counted_and_more_trials_go_on_from_those_there_are(
    made: Experiment, ray_session: None
) -> None:
    config = made.config
    space = {"train": {"learning_rate": (5e-3, 1e30)}}
    section = config.tune.model_copy(update={"trials": 2, "space": llm4msr.config.SpaceConfig.model_validate(space)})
    output = pipeline.tune(plain := config.using("none", config.seed).model_copy(update={"tune": section}))
    first, bad = output.json("trials.json")["none"]
    assert "not finite" in bad["error"]
    assert not first["error"]
    assert "| 1 |" in output.read("table.md").decode()
    assert llm4msr.load(str(output.folder / "none.toml")).train.learning_rate == 5e-3

    more = plain.model_copy(update={"tune": section.model_copy(update={"trials": 3})})
    before = trials(made.root)
    assert pipeline.tune(more).folder != output.folder
    assert trials(made.root) == before, "the space has no third setting"


def test_a_config_that_does_not_train_is_its_own_error(made: Experiment, ray_session: None) -> None:
    config = made.config.using("none", made.config.seed)
    train = config.train.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(ConfigError, match=r"not finite in epoch 1; lower train.learning_rate"):
        pipeline.tune(config.model_copy(update={"train": train}))


def test_optuna_goes_on_from_the_trials_that_have_ended(made: Experiment, ray_session: None) -> None:
    pytest.importorskip("optuna")
    plain = made.config.using("none", made.config.seed)
    some = plain.model_copy(update={"tune": plain.tune.model_copy(update={"search": "optuna", "trials": 2})})
    first = pipeline.tune(some).json("trials.json")["none"]
    more = some.model_copy(update={"tune": some.tune.model_copy(update={"trials": 4})})
    found = pipeline.tune(more).json("trials.json")["none"]
    assert len(found) == 4
    assert all(trial in found for trial in first)
    assert len({str(trial["settings"]) for trial in found}) == 4


DYING = """
import os, signal
from llm4msr.model import backbones

class Backbone(backbones.find("single")):
    def __init__(self, width, scenarios, config):
        if config.dropout == 0.2 and not os.path.exists("{cured}"):
            os.kill(os.getpid(), signal.SIGKILL)
        super().__init__(width, scenarios, config)
"""
"""As memory that ran out would end it."""


def test_a_trial_whose_process_dies_each_time_is_named_and_all_others_are_kept(
    experiment: MakeExperiment, tmp_path: Path
) -> None:
    (tmp_path / "dying.py").write_text(DYING.format(cured=tmp_path / "cured"))
    model = {"model.knowledge": "none", "model.backbone": "dying:Backbone", "train.epochs": 2}
    made = experiment(model | {"tune.trials": 4, "tune.space.model.dropout": [0.0, 0.2, 0.3]})
    pipeline.prepare(made.config)
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])

    def tune() -> subprocess.CompletedProcess[str]:
        command, env = command_line("tune", str(made)), {**own_ray(), "PYTHONPATH": paths}
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False)

    done = tune()
    assert done.returncode == LLM4MSRError.exit_code, done.stderr
    assert "1 of the trials died 3 times and left no result: those with model.dropout = 0.2 (" in done.stderr
    assert "the same command tries these again" in done.stderr
    assert "Traceback" not in done.stderr
    kept = trials(made.root)
    assert sorted(trial["settings"]["model.dropout"] for trial in kept.values()) == ["0.0", "0.1", "0.3"]

    (tmp_path / "cured").touch()
    done = tune()
    assert done.returncode == 0, done.stderr
    assert trials(made.root).items() > kept.items()
    assert len(trials(made.root)) == 4
