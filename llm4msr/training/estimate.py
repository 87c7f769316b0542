"""How long the trainings of a run would take, before any of them has begun."""

import re
from collections.abc import Sequence
from typing import Any

from llm4msr import storage
from llm4msr.config import Config

MICROSECONDS_A_ROW = 12.0
MICROSECONDS_WITH_MATCH = 33.0
"""Of one worker's core, for a training row in one epoch: measured with MMoE and knowledge at our default sizes."""
SECONDS_TO_START = 4.0
"""Of a process and torch, for each training; several workers, which Ray Train starts, take ten more, not counted."""
SECONDS_AN_EPOCH = 0.2
"""Beside the rows, for validation and checkpoint: of the 0.8 s that an epoch of the quickstart takes."""


def estimate(runs: Sequence[tuple[str, Config]], rows: int) -> dict[str, Any]:
    """Trainings and about their time, as JSON.

    Args:
        runs: name and config of each model to train.
        rows: training rows of one epoch, drawn negatives included.
    """
    train = runs[0][1].train
    rates = [_seconds_a_row(run) for _, run in runs]
    workers = train.workers if isinstance(train.workers, int) else train.workers[0]
    row_seconds = sum(seconds for seconds, _ in rates)
    seconds = len(runs) * SECONDS_TO_START
    seconds += train.epochs * (len(runs) * SECONDS_AN_EPOCH + rows * row_seconds / workers)
    minutes = max(1, round(seconds / 60))
    return {
        "models": [f"{run.model.backbone} {name}, seed {run.seed}" for name, run in runs],
        "rows": rows,
        "estimate": (
            f"about {minutes} min for {len(runs)} training(s) of {train.epochs} epochs, "
            f"{' and '.join(dict.fromkeys(source for _, source in rates))}; most end earlier (train.patience); a run "
            "has small ones side by side where CPUs are free"
        ),
    }


def _seconds_a_row(config: Config) -> tuple[float, str]:
    """Of one worker, for a row in one epoch of this model; and where the number is from."""
    root, model = storage.path(config.root) / "train", config.model
    label = re.compile(re.escape(f"{model.backbone.replace(':', '.')}-{model.variant}-s") + r"\d+-")
    for folder in sorted(root.iterdir()) if root.exists() else []:
        output = storage.open_output(folder) if label.match(folder.name) else None
        if output is None or len(starts := output.manifest.info["starts"]) > 1:
            continue
        m, workers = output.manifest, starts[0]["workers"]
        seconds = max(m.seconds - SECONDS_TO_START, 0) * workers / max(m.rows * m.info["epochs"], 1)
        if m.info["epochs"] * m.rows > 1_000_000:  # of less, most was the start
            return seconds, f"as {folder.name} took"
    usual = MICROSECONDS_WITH_MATCH if model.match else MICROSECONDS_A_ROW
    return usual / 1e6, f"at {usual:g} microseconds a row{' with a match' * bool(model.match)}"
