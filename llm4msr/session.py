"""The connection to Ray: started quietly where none is, and its errors turned back into ours."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from llm4msr.errors import LLM4MSRError

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


@contextmanager
def own_errors() -> Iterator[None]:
    """Raise the error of ours that lies inside one of Ray's, where there is one."""
    try:
        yield
    except LLM4MSRError:
        raise
    except Exception as error:
        inner: BaseException | None = error
        for _ in range(10):
            inner = getattr(inner, "cause", None) or (inner.__cause__ if inner else None)
            if isinstance(inner, LLM4MSRError):
                raise type(inner)(str(inner)) from None
        raise
