"""The same work on every partition: here where there is one, else as tasks of Ray, each for a few partitions."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from llm4msr import ray_session

PER_TASK = 4
"""Partitions of a task, so that what it opens serves for more than one."""


def run_partitions(
    function: Callable[..., dict[str, Any]],
    total: int,
    todo: Sequence[int] | None = None,
    gpus: int = 0,
    **shared: object,
) -> Iterator[dict[str, Any]]:
    """Yield what the function returns of each few partitions, as it comes, with the number of the `first` of them.

    Args:
        function: takes the numbers of some partitions, and `shared`; returns a few values that Arrow can hold.
        total: how many partitions there are; where there is one, it is worked on in this process.
        todo: their numbers; by default all.
        gpus: that each task has for itself.
        shared: the same arguments for all tasks.
    """
    numbers = list(range(total) if todo is None else todo)
    groups = [numbers[start : start + PER_TASK] for start in range(0, len(numbers), PER_TASK)]
    if total == 1:
        yield from ({"first": 0, **function(group, **shared)} for group in groups)
        return
    items = [{"partitions": group} for group in groups]
    yield from ray_session.run_each(_task, items, gpus, work=function, shared=shared)


def in_order(results: Iterable[dict[str, Any]], numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
    """The results of so many partitions in their order, for sums of floats that are to be the same each time.

    Only those that come early are kept.
    """
    early: dict[int, dict[str, Any]] = {}
    firsts = iter(numbers[::PER_TASK])
    awaited = next(firsts, None)
    for result in results:
        early[int(result["first"])] = result
        while awaited in early:
            yield early.pop(awaited)
            awaited = next(firsts, None)


def _task(batch: pa.Table, work: Callable[..., dict[str, Any]], shared: dict[str, Any]) -> pa.Table:
    numbers: list[int] = batch["partitions"][0].as_py()
    return pa.Table.from_pylist([{"first": numbers[0], **work(numbers, **shared)}])
