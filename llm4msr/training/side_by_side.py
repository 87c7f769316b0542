"""Small trainings of one run side by side: each works on a core of its own."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import TypeVar

from llm4msr.config import Config

MOST = 4
"""Trainings at once: each is a process of about a gigabyte."""
MOST_ROWS = 1 << 22
"""Training rows above which one goes after the other: each holds memory of its own, and several workers share a large
one (`train.workers`)."""

T = TypeVar("T")
R = TypeVar("R")


def places(config: Config, rows: int) -> int:
    """How many trainings of so many rows the machines have room for at once."""
    import ray

    workers, device = config.train.workers, config.train.device
    if rows > MOST_ROWS or not isinstance(workers, int):
        return 1
    units = ray.cluster_resources().get("GPU" if device == "gpu" else "CPU", 0.0)
    return max(1, min(MOST, int(units) // workers))


def each(work: Callable[[T], R], items: Sequence[T], places: int) -> Iterator[R]:
    """What the work returns of each item, in their order; at most `places` items at once, in threads.

    What it raises for an item is raised in that one's turn. Then no further item begins, nor when the iterator is
    closed; those that have begun go on, in threads that end with the process.
    """
    if places == 1:
        yield from map(work, items)
        return
    outcomes: list[Future[R]] = [Future() for _ in items]
    waiting, is_over = iter([*zip(items, outcomes, strict=True)]), threading.Event()

    def take_turns() -> None:
        while not is_over.is_set() and (turn := next(waiting, None)):  # whoever takes an item brings its outcome
            item, outcome = turn
            try:
                outcome.set_result(work(item))
            except BaseException as error:
                is_over.set()
                outcome.set_exception(error)

    for _ in range(places):
        threading.Thread(target=take_turns, daemon=True).start()
    try:
        for outcome in outcomes:
            yield outcome.result()
    finally:
        is_over.set()
