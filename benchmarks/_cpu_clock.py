"""CPU-seconds of training workers between their checkpoints: user and system time of each worker's process."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from llm4msr.config import Config
from llm4msr.pipeline import train
from llm4msr.storage import StageOutput


class Mark(NamedTuple):
    """A checkpoint: CPU-seconds of the worker when it began and when it ended; `batch` is 0 at the end of an epoch."""

    begin: float
    end: float
    batch: int
    wall_begin: float
    wall_end: float


def train_with_clock(config: Config) -> tuple[StageOutput, list[list[Mark]]]:
    """`train(config)`, and the checkpoints of each worker in order."""
    with tempfile.TemporaryDirectory() as folder:
        with mock.patch("llm4msr.training.driver.worker_loop", _worker_loop_with_clock(folder)):
            output = train(config)
        workers = [[Mark(*mark) for mark in json.loads(file.read_text())] for file in Path(folder).iterdir()]
    assert len(workers) == config.train.workers
    return output, workers


def _worker_loop_with_clock(folder: str) -> Callable[[Any], Any]:
    """`worker_loop` that leaves its marks as a file. Ray sends it by value, so it imports what it needs."""

    def loop_with_clock(job: Any) -> Any:
        import json
        import os
        import pathlib
        import time
        from unittest import mock

        from llm4msr.training.loop import fit
        from llm4msr.training.worker import worker_loop

        marks: list[tuple[float, float, int, float, float]] = []

        def fit_with_clock(config: Any, data: Any, resume: Any, on_checkpoint: Any) -> Any:
            def record(state: Any) -> None:
                begin, wall_begin = time.process_time(), time.perf_counter()
                if on_checkpoint is not None:  # the first worker keeps them
                    on_checkpoint(state)
                end, wall_end = time.process_time(), time.perf_counter()
                marks.append((begin, end, state.progress.batch, wall_begin, wall_end))

            return fit(config, data, resume, record)

        with mock.patch("llm4msr.training.worker.fit", fit_with_clock):
            error = worker_loop(job)
        pathlib.Path(folder, str(os.getpid())).write_text(json.dumps(marks))
        return error

    return loop_with_clock
