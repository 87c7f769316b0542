"""What each worker runs, alone or beside others under Ray Train: the loop, from the last checkpoint on."""

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, TypedDict

import torch.distributed as dist
from upath import UPath

from llm4msr import hardware, storage
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
    resume = _resume(output, first)
    try:
        with storage.full_disk_errors(output), hardware.one_thread(), contextlib.ExitStack() as stack:
            board = stack.enter_context(Board.open(output)) if first else None
            fit(job["config"], _open(job), resume, _keeper(job, board) if board else None)
    except ConfigError as error:  # all workers raise it after the same batch
        return error
    except FullDiskError as error:
        if dist.is_initialized() and dist.get_world_size() > 1:
            raise  # the others wait for this one
        return error
    return None


def _resume(output: UPath, first: bool) -> Checkpoint | None:
    """What all workers go on from: the first one finds it."""
    saved = checkpoint.newest(output) if first else None
    name = [saved.name if saved is not None else ""]
    if dist.is_initialized():
        dist.broadcast_object_list(name, src=0)
    return Checkpoint.load(output / checkpoint.FOLDER / name[0]) if name[0] else None


def _open(job: Job) -> Dataset:
    prepared = storage.open_output(storage.path(job["data"]))
    extracted = storage.open_output(storage.path(job["knowledge"])) if job["knowledge"] else None
    assert prepared is not None
    return Dataset.open(job["config"], prepared, extracted)


def _keeper(job: Job, board: Board) -> Callable[[Checkpoint], None]:
    """Tells of each epoch that has ended, and keeps each checkpoint: the first worker does so for all."""
    from ray.exceptions import RayError

    def keep(state: Checkpoint) -> None:
        if state.progress.batch == 0:  # told before it is kept: after a crash twice rather than never
            board.write(state.progress.history[-1])
            with contextlib.suppress(RayError):  # the queue went with its node: training goes on unseen
                job["epochs"].put(state.progress.history[-1])
        checkpoint.keep(state, storage.path(job["output"]))

    return keep
