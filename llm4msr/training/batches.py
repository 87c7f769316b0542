"""Parquet rows as batches of tensors, straight from Arrow: no per-row Python, memory bounded by a window of rows.

In random order a window is a sample of the whole file, whatever the order and the row groups of the file are: of every
stretch of it, one chunk. Every worker walks the same seeded order and takes its stride of each global batch, so that
one worker and many see the same global batches.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from upath import UPath

from llm4msr import schema, storage
from llm4msr.arrays import Bools, Column, Ints, Ints32
from llm4msr.knowledge.store import KnowledgeStore
from llm4msr.model.inputs import Batch
from llm4msr.training.feature_tables import FeatureTables

WINDOW = 1 << 20
"""Rows that are shuffled together and held in memory, four bytes for a number."""
READ_ROWS = 1 << 16
"""Rows that are decoded at once, however large a row group is."""


class Rows(NamedTuple):
    """Columns of `schema.INTERACTIONS` as tensors."""

    user_B: Tensor
    item_B: Tensor
    scenario_B: Tensor
    label_B: Tensor
    context_BC: Tensor
    seen_B: Tensor | None = None
    """int64: place in `schema.SEEN`, counted from 1; 0 = not seen; None where it was not read."""

    @classmethod
    def unpack(cls, packed_BC: Tensor) -> "Rows":
        """From rows as a window holds them."""
        user_B, item_B, scenario_B = (packed_BC[:, i].long() for i in range(3))
        label_B = packed_BC[:, 3].contiguous().view(torch.float32)
        return cls(user_B, item_B, scenario_B, label_B, packed_BC[:, 5:].long(), packed_BC[:, 4].long())


class RowReader:
    """The rows of one Parquet file.

    Args:
        file: with the columns of `schema.INTERACTIONS`.
        context: fields whose columns are read too.
        window: rows that are shuffled together and held in memory, within a chunk.
        chunk: rows that lie side by side in the file and come in one window. A row group of as many is decoded once an
            epoch, a larger one once for each window that takes a chunk of it.
        checksum: of the file, which is compared with it before it is read.
    """

    def __init__(
        self,
        file: UPath,
        context: Sequence[str],
        window: int = WINDOW,
        chunk: int = schema.TRAIN_GROUP_ROWS,
        checksum: str = "",
    ):
        self.file, self._checksum = file, checksum
        self.columns = ["user", "item", "scenario", "label", "seen", *(f"c:{name}" for name in context)]
        with storage.open_parquet(file, checksum=checksum) as parquet:
            self.rows: int = parquet.metadata.num_rows
            sizes = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
            self.label_range = _least_and_greatest(parquet.metadata, "label")
        self._starts = np.cumsum([0, *sizes])
        self._chunk, self._chunks = chunk, -(-self.rows // chunk)
        self._windows = max(-(-self.rows // window), 1)
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
        for chunks in self._chunks_of_windows(rng):
            rows = self._rows_of(chunks)
            order = None if rng is None else torch.from_numpy(rng.permutation(rows))
            if skipped >= rows:
                skipped -= rows
                continue
            window_BC = self._read(chunks)
            window_BC = window_BC[skipped:] if order is None else window_BC.index_select(0, order[skipped:])
            skipped = 0
            rows_BC = torch.cat([rest_BC, window_BC]) if len(rest_BC) else window_BC
            whole = len(rows_BC) - len(rows_BC) % size
            for start in range(0, whole, size):
                yield Rows.unpack(rows_BC[start : start + size][rank::world]), size
            rest_BC = rows_BC[whole:].clone()
            del window_BC, rows_BC  # before the next window is read
        if len(rest_BC):
            yield Rows.unpack(rest_BC[rank::world]), len(rest_BC)

    def _chunks_of_windows(self, rng: np.random.Generator | None) -> Iterable[Ints]:
        """The chunks of each window: consecutive ones, or one of every stretch of as many chunks as there are windows.

        So the share of a class in a window is that in the file to within a chunk's rows even if the file is sorted by
        label, and chance decides where runs are shorter than a stretch.
        """
        if rng is None:
            return np.array_split(np.arange(self._chunks), self._windows)
        stretches = -(-self._chunks // self._windows)
        mixed = rng.permuted(np.arange(stretches * self._windows).reshape(stretches, self._windows), axis=1)
        return [window[window < self._chunks] for window in mixed.T]

    def _rows_of(self, chunks: Ints) -> int:
        return int((np.minimum((chunks + 1) * self._chunk, self.rows) - chunks * self._chunk).sum())

    def _read(self, chunks: Ints) -> Tensor:
        """Rows [B, columns] as int32, a label as its bits: a row lies in one place and takes little room.

        A file that fits into one window is read once and kept.
        """
        if self._whole is not None:
            return self._whole
        rows_BC = self._read_chunks(chunks)
        if self._windows == 1:
            self._whole = rows_BC
        return rows_BC

    def _read_chunks(self, chunks: Ints) -> Tensor:
        """In the order of the file."""
        packed, at = np.empty((self._rows_of(chunks), len(self.columns)), np.int32), 0
        wanted = np.zeros(self._chunks, bool)
        wanted[chunks] = True
        with storage.open_parquet(self.file, checksum=self._checksum) as parquet:
            for group in self._groups_with(wanted):
                row = int(self._starts[group])
                for part in parquet.iter_batches(READ_ROWS, [group], self.columns):
                    here = wanted[np.arange(row, row + len(part)) // self._chunk]
                    row, end = row + len(part), at + int(here.sum())
                    for i, name in enumerate(self.columns):
                        packed[at:end, i] = _as_int32(part[name])[here]
                    at = end
        return torch.from_numpy(packed)

    def _groups_with(self, wanted: Bools) -> list[int]:
        """The row groups in which a wanted chunk lies, whole or in part."""
        before = np.cumsum([0, *wanted])
        first, end = self._starts[:-1] // self._chunk, -(-self._starts[1:] // self._chunk)
        filled = self._starts[1:] > self._starts[:-1]
        groups: list[int] = np.flatnonzero(filled & (before[end] > before[first])).tolist()
        return groups


def to_batch(rows: Rows, tables: FeatureTables, knowledge: KnowledgeStore | None) -> Batch:
    """The ranker's input: feature slots looked up, each user's vector once (that of a point in time: once a row)."""
    slots_BS = tables.slots(rows.user_B, rows.item_B, rows.scenario_B, rows.context_BC)
    if knowledge is None:
        nobody = torch.zeros((1, 0), dtype=torch.float16)
        return Batch(slots_BS, rows.scenario_B, torch.zeros_like(rows.user_B), nobody, torch.zeros(1, dtype=torch.bool))
    vectors_N, owner_B = torch.unique(knowledge.vector_numbers(rows.user_B, rows.seen_B), return_inverse=True)
    return Batch(slots_BS, rows.scenario_B, owner_B, *knowledge.lookup(vectors_N))


def _least_and_greatest(metadata: pq.FileMetaData, column: str) -> tuple[float, float] | None:
    """By the file's footer; None where it does not say."""
    at = metadata.schema.names.index(column)
    groups = (metadata.row_group(i) for i in range(metadata.num_row_groups))
    statistics = [group.column(at).statistics for group in groups if group.num_rows]
    bounds = [(one.min, one.max) for one in statistics if one is not None and one.has_min_max]
    least = [low for low, _ in bounds if low is not None]
    greatest = [high for _, high in bounds if high is not None]
    return (min(least), max(greatest)) if bounds and len(bounds) == len(statistics) else None


def _as_int32(column: Column) -> Ints32:
    if pa.types.is_floating(column.type):
        return np.asarray(column.to_numpy()).view(np.int32)
    return np.asarray(column.cast(pa.int32()).to_numpy())
