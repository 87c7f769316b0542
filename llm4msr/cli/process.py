"""How the process of a command ends: after a signal or an error of ours, with one message and an exit code."""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TextIO

from llm4msr.errors import InterruptedRunError, LLM4MSRError
from llm4msr.progress import Level, close_bars, level, show

SECONDS_TO_END = 8.0
"""After Ctrl-C or SIGTERM; then the process ends without waiting for what does not let go."""


class Terminated(KeyboardInterrupt):
    """SIGTERM: ends a run as Ctrl-C does, with an exit code of its own."""


def signal_code(interrupt: KeyboardInterrupt) -> int:
    """The exit code of an interrupted run: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + (signal.SIGTERM if isinstance(interrupt, Terminated) else signal.SIGINT)


@contextmanager
def interrupts_as_errors(name: str) -> Iterator[None]:
    """Raise Ctrl-C and SIGTERM in the block as an InterruptedRunError about what has this name."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        message = f"{name} was interrupted; run again to continue: what is finished is kept"
        raise InterruptedRunError(message, signal_code(interrupt)) from None


@contextmanager
def stdout_for_results() -> Iterator[TextIO]:
    """Standard output for the block's own results; what libraries print there goes to standard error.

    Ray prints from a thread of its own, and goes on doing so while an interrupted run ends: so an error leaves it so.
    """
    results = sys.stdout
    sys.stdout = sys.stderr
    yield results
    sys.stdout = results


def run_command(command: Callable[[], None], name: str = "it") -> None:
    """Run a command; an error of ours is one message and an exit code, with a stack trace only if that is wanted."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    try:
        with interrupts_as_errors(name):
            try:
                command()
            finally:
                close_bars()
    except LLM4MSRError as error:
        if level() == Level.VERBOSE:
            show(_trace(error))
        show(f"error: {error}")
        if isinstance(error, InterruptedRunError):
            end = threading.Timer(SECONDS_TO_END, os._exit, [error.exit_code])
            end.daemon = True
            end.start()
            sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (Ray tells of each actor that ends)
        sys.exit(error.exit_code)


def _trace(error: BaseException) -> str:
    """Where the error arose, and those that it stands for, which its message leaves out."""
    cause: BaseException | None = error
    while cause is not None:
        cause.__suppress_context__ = False
        cause = cause.__cause__ or cause.__context__
    return "".join(traceback.format_exception(error)).rstrip()


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated
