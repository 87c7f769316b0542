"""The connection to Ray: started quietly where none is, and its errors turned back into ours."""

import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llm4msr import errors
from llm4msr.errors import LLM4MSRError
from llm4msr.progress import say

# A warning of every `ray` command in a virtual environment made by uv, and a prompt for usage statistics.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its notes about our actors' arguments are no errors


def connect() -> None:
    """Join the running cluster (`RAY_ADDRESS`, or inside a job), or start Ray on this machine."""
    import ray

    if not ray.is_initialized():
        ray.init(include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    context = ray.data.DataContext.get_current()  # also sets up the loggers that are turned down next
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name in ("ray.data", "ray.train", "ray.tune", "ray.serve"):
        logging.getLogger(name).setLevel(logging.ERROR)


def each(function: Callable[..., Any], items: list[dict[str, Any]], **settled: Any) -> Iterator[dict[str, Any]]:
    """The rows that `function` gives for each item: a task of Ray Data each, results as they come.

    Args:
        function: takes an item as an Arrow table of one row, and `settled`; gives back a small table.
        items: what the tasks are about.
        settled: the same for all.
    """
    import ray

    if not items:
        return
    connect()
    results = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        function, fn_kwargs=settled, batch_size=1, batch_format="pyarrow"
    )
    for batch in results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield from batch.to_pylist()


def tell_if_busy(needed: int, what: str = "CPU") -> None:
    """Say so if Ray has fewer free CPUs (or GPUs) than a stage asks for: the stage then waits until they come."""
    import ray

    for _ in range(20):  # what an earlier stage held is free a moment after its end
        free = ray.available_resources().get(what, 0.0)
        if free >= needed:
            return
        time.sleep(0.5)
    say(f"  waiting for {needed} {what}s, {free:g} are free: something else runs on this Ray, such as an endpoint")


@contextmanager
def own_errors() -> Iterator[None]:
    """Raise the error of ours that lies inside one of Ray's, where there is one; Ray keeps it as text."""
    try:
        yield
    except LLM4MSRError:
        raise
    except Exception as error:
        found = re.findall(rf"^{errors.__name__}\.(\w+): (.*)", str(error), re.MULTILINE)
        if not found:
            raise
        name, message = found[-1]
        raise getattr(errors, name, LLM4MSRError)(message) from None
