"""Which trials are given up, and which files count; Ray Tune itself runs in tests/ray/test_tune.py."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from llm4msr import storage
from llm4msr.storage import StageOutput, lock
from llm4msr.training.search import AUC, _Halving, search
from llm4msr.training.search_space import Settings, draw, space_of
from llm4msr.training.trials import Trial, earliest, name_of, read_all
from llm4msr.training.tune import Tuned
from tests.support.data import config_of

EPOCHS = 20


def trial(number: int, aucs: list[float], error: str = "", settings: Settings | None = None) -> Trial:
    settings = settings or {"train.learning_rate": number / 1000}
    epochs = len(aucs)
    return Trial(
        number=number, settings=settings, aucs=aucs, best_epoch=epochs, stopped=False, error=error, seconds=1.0
    )


def write(folder: Path, *trials: Trial) -> None:
    for one in trials:
        storage.write_bytes(storage.path(folder / f"{name_of(one.settings)}.json"), one.model_dump_json().encode())


def halve(scheduler: _Halving, curves: np.ndarray, rng: np.random.Generator) -> list[int]:
    """Epochs that each trial has, two at a time as on two cores; trial 0 has the config's own settings."""
    waiting, running, epochs = list(range(len(curves))), [], [0] * len(curves)
    while waiting or running:
        while waiting and len(running) < 2:
            number = waiting.pop(0)
            one = SimpleNamespace(trial_id=str(number), config={"train.learning_rate": number / 1000})
            scheduler.on_trial_add(None, one)
            running.append((number, one))
        number, one = running[rng.integers(len(running))]
        epochs[number] += 1
        result = {"epoch": epochs[number], AUC: curves[number, epochs[number] - 1]}
        if scheduler.on_trial_result(None, one, result) == scheduler.STOP or epochs[number] == EPOCHS:
            running.remove((number, one))
    return epochs


@pytest.mark.parametrize("seed", range(20))
def test_neither_the_best_trial_nor_the_own_settings_are_given_up_but_many_others(seed: int):
    rng = np.random.default_rng(seed)
    curves = np.maximum.accumulate(rng.uniform(0.5, 0.9, (16, EPOCHS)), axis=1)
    curves[0] = 0.5  # as configured it is worst
    epochs = halve(_Halving({"train.learning_rate": 0.0}, EPOCHS, []), curves, rng)
    reached = [curves[number, epoch - 1] for number, epoch in enumerate(epochs)]
    assert epochs[0] == EPOCHS
    assert epochs[int(np.argmax(reached))] == EPOCHS
    assert sum(epoch < EPOCHS for epoch in epochs) >= 6


def test_an_interrupted_search_knows_what_is_good():
    ended = [trial(number, [0.8] * EPOCHS) for number in range(1, 7)]
    weak = np.full((3, EPOCHS), 0.6)
    own: Settings = {"train.learning_rate": 0.0}
    assert halve(_Halving(own, EPOCHS, ended), weak, np.random.default_rng(0))[1:] == [2, 2]
    assert halve(_Halving(own, EPOCHS, []), weak, np.random.default_rng(0))[1:] == [EPOCHS, EPOCHS]
    failed = [trial(number, [0.8] * (EPOCHS - 1), "not finite") for number in range(1, 7)]
    assert halve(_Halving(own, EPOCHS, failed), weak, np.random.default_rng(0))[1:] == [EPOCHS, EPOCHS]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: text.replace("0.001", "0.002"),  # not what its name says
        lambda text: text.replace('"aucs"', '"other"'),
        lambda text: text.replace("[0.7]", "[NaN]"),
        lambda text: text.replace("[0.7]", '"0.7"'),
    ],
)
def test_a_damaged_file_of_a_trial_does_not_count(tmp_path: Path, damage: Any):
    whole, other = trial(1, [0.7]), trial(5, [0.6])
    write(tmp_path, other)
    (tmp_path / f"{name_of(whole.settings)}.json").write_text(damage(json.dumps(whole.model_dump())))
    assert [*read_all(storage.path(tmp_path)).values()] == [other]


def test_a_trial_that_failed_is_worst_whatever_it_had_reached(tmp_path: Path):
    own, failed = trial(0, [0.6, 0.7]), trial(1, [0.8, 0.9], "the loss is not finite in epoch 3")
    assert (own.best, failed.best, trial(2, []).best) == (0.7, 0, 0)
    assert Tuned(config_of(tmp_path), [own, failed]).winner == own


def test_of_more_trials_than_are_wanted_the_first_to_end_count_and_the_configs_own():
    ended = {name_of(one.settings): one for one in (trial(3, []), trial(1, []), trial(0, []), trial(2, []))}
    own = name_of(trial(3, []).settings)
    assert [one.number for one in earliest(ended, own, 3).values()] == [3, 0, 1]
    assert [one.number for one in earliest(ended, own, 9).values()] == [3, 0, 1, 2]
    del ended[own]
    assert [one.number for one in earliest(ended, own, 3).values()] == [0, 1], "it still has to run"


def test_two_searches_of_a_model_do_not_train_the_same_trials(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    section = {"trials": 2, "space": {"model": {"dropout": [0.3]}}}
    config, folder = config_of(tmp_path, tune=section), tmp_path / "trials"
    space = space_of(config)
    own, other = draw(config, space, 2)
    write(folder, trial(0, [0.6], settings=own))
    no_data = cast("StageOutput", None)  # which a search that has nothing to train does not look at
    with ThreadPoolExecutor(1) as pool:
        with lock.hold(storage.path(folder)):
            second = pool.submit(search, config, space, no_data, None, storage.path(folder))
            end = time.monotonic() + 60
            while "another run works here" not in capsys.readouterr().err:
                assert not second.done()
                assert time.monotonic() < end, "waited too long"
                time.sleep(0.01)
            write(folder, trial(1, [0.7], settings=other))
        assert [one.settings for one in second.result()] == [own, other]
