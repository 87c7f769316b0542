"""Which trials are given up, and which files count; Ray Tune itself runs in tests/ray/test_tune.py."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llm4msr import storage
from llm4msr.training.search import AUC, Trial, _Halving, _name, _read_all, best
from llm4msr.training.search_space import Settings

EPOCHS = 20


def trial(number: int, aucs: list[float]) -> Trial:
    settings: Settings = {"train.learning_rate": number / 1000}
    return Trial(settings=settings, aucs=aucs, best_epoch=len(aucs), stopped=False, error="", seconds=1.0)


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


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: text.replace("0.001", "0.002"),  # not what its name says
        lambda text: text.replace('"aucs"', '"other"'),
    ],
)
def test_a_damaged_file_of_a_trial_does_not_count(tmp_path: Path, damage: Any):
    whole, other = trial(1, [0.7]), trial(5, [0.6])
    for one, text in ((whole, damage(json.dumps(whole))), (other, json.dumps(other))):
        (tmp_path / f"{_name(one['settings'])}.json").write_text(text)
    assert [*_read_all(storage.path(tmp_path)).values()] == [other]


def test_a_trial_that_failed_at_once_is_worst():
    assert best(trial(1, [])) == 0
    assert best(trial(1, [0.6, 0.7])) == 0.7
