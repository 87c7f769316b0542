"""Parquet rows as batches of tensors, straight from Arrow: no per-row Python, memory bounded by a window of rows.

Every worker walks the same seeded order and takes its stride of each global batch, so that one worker and many
see the same global batches.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from upath import UPath

from llm4msr import storage
from llm4msr.features import FeatureTables
from llm4msr.knowledge import KnowledgeStore
from llm4msr.ranker import Batch

WINDOW = 1 << 21
"""Rows that are shuffled together and held in memory."""


class Rows(NamedTuple):
    """Columns of `schema.INTERACTIONS` as tensors."""

    user_B: Tensor
    item_B: Tensor
    scenario_B: Tensor
    label_B: Tensor
    context_BC: Tensor

    def take(self, index: Tensor) -> "Rows":
        """Some of the rows."""
        return Rows(*(column[index] for column in self))


class RowReader:
    """The rows of one Parquet file."""

    def __init__(self, file: UPath, context: Sequence[str]):
        self.file = file
        self.columns = ["user", "item", "scenario", "label", *(f"c:{name}" for name in context)]
        with storage.open_parquet(file) as parquet:
            self.rows: int = parquet.metadata.num_rows
            sizes = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
        self._sizes = np.array(sizes)
        self._whole: Rows | None = None

    def batches(self, size: int, seed: int | None, rank: int = 0, world: int = 1) -> Iterator[tuple[Rows, int]]:
        """This worker's part of each global batch, and the global batch's rows; in file order where seed is None.

        A part can be empty in the last batch of a window.
        """
        rng = None if seed is None else np.random.default_rng(seed)
        for window in self._windows(rng):
            count = len(window.user_B)
            order = torch.arange(count) if rng is None else torch.from_numpy(rng.permutation(count))
            for start in range(0, count, size):
                chosen = order[start : start + size]
                yield window.take(chosen[rank::world]), len(chosen)

    def _windows(self, rng: np.random.Generator | None) -> Iterator[Rows]:
        if self.rows <= WINDOW:
            if self._whole is None:
                self._whole = self._read(np.arange(len(self._sizes)))
            yield self._whole
            return
        groups = np.arange(len(self._sizes)) if rng is None else rng.permutation(len(self._sizes))
        window_of = (np.cumsum(self._sizes[groups]) - 1) // WINDOW
        for number in range(int(window_of[-1]) + 1):
            yield self._read(groups[window_of == number])

    def _read(self, groups: "np.typing.NDArray[np.int64]") -> Rows:
        with storage.open_parquet(self.file) as parquet:
            table = parquet.read_row_groups(groups.tolist(), self.columns)
        user, item, scenario, label, *context = (_tensor(table[name]) for name in self.columns)
        stacked = torch.stack(context, dim=1) if context else torch.zeros((len(user), 0), dtype=torch.int64)
        return Rows(user, item, scenario, label, stacked)


def to_batch(rows: Rows, tables: FeatureTables, knowledge: KnowledgeStore | None) -> Batch:
    """The ranker's input: feature slots looked up, each user's vector once."""
    slots_BS = tables.slots(rows.user_B, rows.item_B, rows.scenario_B, rows.context_BC)
    if knowledge is None:
        nobody = torch.zeros((1, 0), dtype=torch.float16)
        return Batch(slots_BS, rows.scenario_B, torch.zeros_like(rows.user_B), nobody, torch.zeros(1, dtype=torch.bool))
    users_N, owner_B = torch.unique(rows.user_B, return_inverse=True)
    return Batch(slots_BS, rows.scenario_B, owner_B, *knowledge.lookup(users_N))


def _tensor(column: pa.ChunkedArray) -> Tensor:
    return torch.from_numpy(np.array(column.to_numpy()))
