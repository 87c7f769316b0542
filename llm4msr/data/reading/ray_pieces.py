"""Pieces of a table read by Ray's tasks, each as a stream of small tables."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from ray.data import DataContext, Datasource, ReadTask
from ray.data.block import BlockMetadata

P = TypeVar("P")

TASK_BYTES = 1 << 28
"""A task reads more than one piece only up to so many bytes, or else as many as Ray asks for."""


class PieceDatasource(Datasource):
    """What `ray.data.read_datasource` wants: pieces, and a function that reads one."""

    def __init__(self, pieces: Sequence[P], size: int, read: Callable[[P], Iterator[pa.Table]]):
        super().__init__()
        self.pieces, self.size, self.read = pieces, size, read

    def get_name(self) -> str:
        """How Ray calls its tasks."""
        return "Source"

    def estimate_inmemory_data_size(self) -> int:
        """Bytes of all pieces."""
        return self.size

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        """Neighbouring pieces in about `parallelism` tasks, or more if these were too large."""
        count = min(len(self.pieces), max(parallelism, self.size // TASK_BYTES))
        tasks = []
        for places in np.array_split(np.arange(len(self.pieces)), count):
            read = functools.partial(_read_all, [self.pieces[place] for place in places], self.read)
            size = BlockMetadata(num_rows=None, size_bytes=self.size // count, input_files=None, exec_stats=None)
            tasks.append(ReadTask(read, size, per_task_row_limit=per_task_row_limit))
        return tasks


def _read_all(pieces: Iterable[Any], read: Callable[[Any], Iterator[pa.Table]]) -> Iterator[pa.Table]:
    for piece in pieces:
        yield from read(piece)
