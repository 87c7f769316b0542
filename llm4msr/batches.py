"""Parquet rows as batches of tensors, straight from Arrow: no per-row Python, memory bounded by a window of rows.

Every worker walks the same seeded order and takes its stride of each global batch, so that one worker and many
see the same global batches.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor
from upath import UPath

from llm4msr import storage
from llm4msr.features import FeatureTables
from llm4msr.knowledge import KnowledgeStore
from llm4msr.ranker import Batch

WINDOW = 1 << 20
"""Rows that are shuffled together and held in memory, four bytes for a number."""


class Rows(NamedTuple):
    """Columns of `schema.INTERACTIONS` as tensors."""

    user_B: Tensor
    item_B: Tensor
    scenario_B: Tensor
    label_B: Tensor
    context_BC: Tensor
    seen_B: Tensor | None = None
    """int64: as the column `seen`; None = nowhere."""

    @classmethod
    def unpacked(cls, packed_BC: Tensor) -> "Rows":
        """From rows as a window holds them."""
        user_B, item_B, scenario_B = (packed_BC[:, i].long() for i in range(3))
        label_B = packed_BC[:, 3].contiguous().view(torch.float32)
        return cls(user_B, item_B, scenario_B, label_B, packed_BC[:, 5:].long(), packed_BC[:, 4].long())


class RowReader:
    """The rows of one Parquet file."""

    def __init__(self, file: UPath, context: Sequence[str]):
        self.file = file
        self.columns = ["user", "item", "scenario", "label", "seen", *(f"c:{name}" for name in context)]
        with storage.open_parquet(file) as parquet:
            self.rows: int = parquet.metadata.num_rows
            sizes = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
        self._sizes = np.array(sizes)
        self._whole: Tensor | None = None

    def batches(
        self, size: int, seed: int | None, rank: int = 0, world: int = 1, skip: int = 0
    ) -> Iterator[tuple[Rows, int]]:
        """This worker's part of each global batch, and the global batch's rows; in file order where seed is None.

        All global batches but the last have `size` rows; a part can be empty in the last. The first `skip` global
        batches are left out; of what is skipped no more is read than the window in which the rest begins.
        """
        rng = None if seed is None else np.random.default_rng(seed)
        skipped = skip * size
        rest_BC = torch.empty((0, len(self.columns)), dtype=torch.int32)
        for groups in self._windows(rng):
            rows = int(self._sizes[groups].sum())
            order = None if rng is None else torch.from_numpy(rng.permutation(rows))
            if skipped >= rows:
                skipped -= rows
                continue
            window_BC = self._read(groups)
            window_BC = window_BC[skipped:] if order is None else window_BC.index_select(0, order[skipped:])
            skipped = 0
            rows_BC = torch.cat([rest_BC, window_BC]) if len(rest_BC) else window_BC
            whole = len(rows_BC) - len(rows_BC) % size
            for start in range(0, whole, size):
                yield Rows.unpacked(rows_BC[start : start + size][rank::world]), size
            rest_BC = rows_BC[whole:].clone()
            del window_BC, rows_BC  # before the next window is read
        if len(rest_BC):
            yield Rows.unpacked(rest_BC[rank::world]), len(rest_BC)

    def _windows(self, rng: np.random.Generator | None) -> Iterator[npt.NDArray[np.int64]]:
        """The row groups of each window."""
        groups = np.arange(len(self._sizes))
        if self.rows <= WINDOW:
            yield groups
            return
        if rng is not None:
            groups = rng.permutation(len(self._sizes))
        window_of = (np.cumsum(self._sizes[groups]) - 1) // WINDOW
        for number in range(int(window_of[-1]) + 1):
            yield groups[window_of == number]

    def _read(self, groups: npt.NDArray[np.int64]) -> Tensor:
        """Rows [B, columns] as int32, a label as its bits: a row lies in one place and takes little room.

        A file that fits into one window is read once and kept.
        """
        if self._whole is not None:
            return self._whole
        rows_BC = self._read_groups(groups)
        if self.rows <= WINDOW:
            self._whole = rows_BC
        return rows_BC

    def _read_groups(self, groups: npt.NDArray[np.int64]) -> Tensor:
        packed = np.empty((self._sizes[groups].sum(), len(self.columns)), np.int32)
        at = 0
        with storage.open_parquet(self.file) as parquet:
            for group in groups.tolist():
                table = parquet.read_row_group(group, self.columns)
                for i, name in enumerate(self.columns):
                    packed[at : at + len(table), i] = _as_int32(table[name])
                at += len(table)
        return torch.from_numpy(packed)


def to_batch(rows: Rows, tables: FeatureTables, knowledge: KnowledgeStore | None) -> Batch:
    """The ranker's input: feature slots looked up, each user's vector once (that of a point in time: once a row)."""
    slots_BS = tables.slots(rows.user_B, rows.item_B, rows.scenario_B, rows.context_BC)
    if knowledge is None:
        nobody = torch.zeros((1, 0), dtype=torch.float16)
        return Batch(slots_BS, rows.scenario_B, torch.zeros_like(rows.user_B), nobody, torch.zeros(1, dtype=torch.bool))
    vectors_N, owner_B = torch.unique(knowledge.shown(rows.user_B, rows.seen_B), return_inverse=True)
    return Batch(slots_BS, rows.scenario_B, owner_B, *knowledge.lookup(vectors_N))


def _as_int32(column: pa.ChunkedArray) -> npt.NDArray[np.int32]:
    if pa.types.is_floating(column.type):
        return np.asarray(column.to_numpy()).view(np.int32)
    return np.asarray(column.cast(pa.int32()).to_numpy())
