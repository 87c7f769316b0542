"""What each Ray Train worker runs: the loop, from the last checkpoint on, with every new one reported."""

import contextlib
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from llm4msr import storage
from llm4msr.config import Config
from llm4msr.errors import ConfigError, FullDiskError, LLM4MSRError
from llm4msr.training.checkpoint import Checkpoint
from llm4msr.training.dataset import Dataset
from llm4msr.training.loop import fit
from llm4msr.training.tensorboard import Board

if TYPE_CHECKING:
    from ray.util.queue import Queue


class Job(TypedDict):
    """What every worker is given, as Ray Train wants it: a dict that can be pickled."""

    config: Config
    data: str
    """URI of what `prepare` published."""
    knowledge: str
    """URI of what `extract` published; empty for a model without knowledge."""
    output: str
    """URI of the folder where the weights will lie."""
    epochs: "Queue"
    """Takes each `Epoch` that has ended, for the driver to show."""


def worker_loop(job: Job) -> LLM4MSRError | None:
    """Train; gives back the error that the user has to mend, else None: what is raised would be tried again."""
    from ray import train as ray_train

    logging.getLogger("ray.train").setLevel(logging.ERROR)
    data = _open(job)
    context = ray_train.get_context()
    first = context.get_world_rank() == 0
    resume = None
    if (saved := ray_train.get_checkpoint()) is not None:
        with saved.as_directory() as folder:
            resume = Checkpoint.load(storage.path(folder))
    try:
        with storage.full_disk_errors(job["output"]), contextlib.ExitStack() as stack:
            board = stack.enter_context(Board.open(storage.path(job["output"]))) if first else None
            state = fit(job["config"], data, resume, _reporter(job, board))
    except ConfigError as error:  # all workers raise it after the same batch
        return error
    except FullDiskError as error:
        if context.get_world_size() > 1:
            raise  # the others wait for this one
        return error
    if resume is not None and state.progress == resume.progress:
        ray_train.report({}, checkpoint=saved if first else None)  # it had finished but for the publishing
    return None


def _open(job: Job) -> Dataset:
    prepared = storage.open_output(storage.path(job["data"]))
    extracted = storage.open_output(storage.path(job["knowledge"])) if job["knowledge"] else None
    assert prepared is not None
    return Dataset.open(job["config"], prepared, extracted)


def _reporter(job: Job, board: Board | None) -> Callable[[Checkpoint], None]:
    """Reports checkpoints to Ray Train, which every worker has to do; the first one, which has a board, saves them."""
    from ray import train as ray_train

    def report(state: Checkpoint) -> None:
        progress = state.progress
        latest: dict[str, object] = {"batch": progress.batch}
        if progress.history:
            latest.update(progress.history[-1])
        with tempfile.TemporaryDirectory() as folder:
            if board is None:
                ray_train.report(latest, checkpoint=None)
                return
            state.save(Path(folder))
            if progress.batch == 0:
                board.write(progress.history[-1])
                job["epochs"].put(progress.history[-1])
            ray_train.report(latest, checkpoint=ray_train.Checkpoint.from_directory(folder))

    return report
