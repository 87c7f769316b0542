"""Ctrl-C and SIGTERM in the middle of a stage: one line, the exit code of the signal, and the next run goes on."""

import glob
import signal
import subprocess

import pytest

from llm4msr import pipeline, storage
from llm4msr.storage import StageOutput
from tests.support.experiments import ROOT, MakeExperiment, command_line, own_ray, wait_until

SECONDS_TO_END = 30
"""Far more than the stage may take, since the machine is busy."""


@pytest.mark.parametrize(
    ("stage", "number", "code"), [("train", signal.SIGINT, 130), ("extract", signal.SIGTERM, 143)], ids=str
)
def test_a_signal_ends_a_stage_and_the_next_run_goes_on(
    stage: str, number: signal.Signals, code: int, experiment: MakeExperiment
) -> None:
    slow = {
        "train": {"model.knowledge": "none", "train.epochs": 100_000, "train.patience": 100_000},
        "extract": {"extract.rows_per_shard": 1, "extract.answers": "none"},
    }[stage]
    made = experiment(slow)
    pipeline.prepare(made.config)
    pattern = {"train": "train/*/checkpoints/*/progress.json", "extract": "extract/*/vectors/users-*"}[stage]
    root = made.root
    process = subprocess.Popen(
        command_line(stage, str(made)),
        env=own_ray(),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # tests that run in a shell's background ignore Ctrl-C, and their processes would inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        # pathlib's own glob fails on a folder that is deleted meanwhile
        wait_until(lambda: bool(list(glob.iglob(str(root / pattern)))), process)
        process.send_signal(number)
        out, err = process.communicate(timeout=SECONDS_TO_END)
    finally:
        process.kill()
    assert process.returncode == code
    assert not out
    assert err.splitlines()[-1].startswith(f"error: {stage} was interrupted; run again to continue")
    assert "Traceback" not in err

    if stage == "extract":
        output: StageOutput = pipeline.extract(made.config)
        assert output.manifest.continued
        assert output.manifest.skipped > 0
    else:
        (folder,) = storage.path(str(root / "train")).iterdir()
        assert not (folder / storage.MANIFEST).exists()
