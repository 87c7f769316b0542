"""What each worker runs, alone or beside others under Ray Train: the loop, from the last checkpoint on."""

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, TypedDict

import torch.distributed as dist

from llm4msr import storage
from llm4msr.config import Config
from llm4msr.errors import ConfigError, FullDiskError, LLM4MSRError
from llm4msr.training import checkpoint
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
    output = storage.path(job["output"])
    first = not dist.is_initialized() or dist.get_rank() == 0
    resume = checkpoint.newest(output, Checkpoint.load)
    try:
        with storage.full_disk_errors(output), contextlib.ExitStack() as stack:
            board = stack.enter_context(Board.open(output)) if first else None
            fit(job["config"], _open(job), resume, _keeper(job, board) if board else None)
    except ConfigError as error:  # all workers raise it after the same batch
        return error
    except FullDiskError as error:
        if dist.is_initialized() and dist.get_world_size() > 1:
            raise  # the others wait for this one
        return error
    return None


def _open(job: Job) -> Dataset:
    prepared = storage.open_output(storage.path(job["data"]))
    extracted = storage.open_output(storage.path(job["knowledge"])) if job["knowledge"] else None
    assert prepared is not None
    return Dataset.open(job["config"], prepared, extracted)


def _keeper(job: Job, board: Board) -> Callable[[Checkpoint], None]:
    """Keeps each checkpoint, and tells of each epoch that has ended: the first worker does so for all."""

    def keep(state: Checkpoint) -> None:
        checkpoint.keep(state, storage.path(job["output"]))
        if state.progress.batch == 0:
            board.write(state.progress.history[-1])
            job["epochs"].put(state.progress.history[-1])

    return keep
