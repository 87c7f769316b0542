"""The rows of a split in the files of its partitions, read row group by row group."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from llm4msr.arrays import Array, Column, Ints
from llm4msr.data import partitions
from llm4msr.storage import StageOutput

KEPT_ROWS = 1 << 20
"""Rows of a split that is decoded once and kept; a larger one is decoded in every epoch."""
OPEN_FILES = 64
"""Files that stay open, and the parsed footer with them: one for each stream."""

Records: TypeAlias = npt.NDArray[np.void]
"""Rows as bytes, side by side, so that a random one is one access: 28 bytes, 8 for an event, and 4 for each context
field."""


class Rows(NamedTuple):
    """Columns of `schema.INTERACTIONS` as tensors."""

    user_B: Tensor
    item_B: Tensor
    scenario_B: Tensor
    label_B: Tensor
    context_BC: Tensor
    seen_B: Tensor | None = None
    """int64: place in `schema.SEEN`, counted from 1; 0 = not seen; None where it was not read."""
    event_B: Tensor | None = None
    """int64: place in `schema.EVENTS`; None where it was not read."""

    def take(self, mask_B: Tensor) -> "Rows":
        """The rows of the mask, bool [B]."""
        return Rows._make(None if column is None else column[mask_B] for column in self)

    def cut(self, first: int, end: int | None, step: int = 1) -> "Rows":
        """Some of the rows, without a copy."""
        here = slice(first, end, step)
        return Rows._make(None if column is None else column[here] for column in self)


class RowFiles:
    """The files of a split. Users, seen rows and events have numbers that count over all partitions.

    Args:
        prepared: the output of `prepare`.
        split: `train`, `valid` or `test`.
        context: fields whose columns are read too.
        events: whether the column `event` is.
    """

    def __init__(self, prepared: StageOutput, split: str, context: Sequence[str], events: bool = False):
        self.rows_P: list[int] = np.diff(partitions.offsets(prepared, split)).tolist()
        self.rows = sum(self.rows_P)
        self._prepared, self._split, self._context = prepared, split, context
        tables = {"user": "users", "seen": "seen"} | ({"event": "events"} if events else {})
        self._offsets = {column: partitions.offsets(prepared, table) for column, table in tables.items()}
        self._dtype = np.dtype(
            [
                *((name, np.int64) for name in self._offsets),  # numbers that can pass 2^31
                *((name, np.int32) for name in ("item", "scenario")),
                ("label", np.float32),
                ("context", np.int32, (len(context),)),
            ]
        )
        self.record = np.dtype((np.void, self._dtype.itemsize))
        """The type of `Records`: NumPy moves bytes as they are, where it would go through fields one by one."""
        self._parquet = functools.lru_cache(OPEN_FILES)(self._open)
        self.read: Callable[[int, int], Records] = functools.cache(self._read) if self.rows <= KEPT_ROWS else self._read
        """Number of a partition and of a row group in its file -> the group's rows, in the order of the file."""

    def unpack(self, records_B: Records) -> Rows:
        """All numbers as int64, labels as float32."""
        typed_B = records_B.view(self._dtype)

        def column(name: str, dtype: npt.DTypeLike = np.int64) -> Tensor:
            return torch.from_numpy(typed_B[name].astype(dtype))

        user_B, item_B, scenario_B = column("user"), column("item"), column("scenario")
        rest = column("label", np.float32), column("context"), column("seen")
        return Rows(user_B, item_B, scenario_B, *rest, column("event") if "event" in self._offsets else None)

    def group_sizes(self, partition: int) -> Ints:
        """Rows of each row group of a partition's file: int64 [G]."""
        metadata = self._parquet(partition).metadata
        return np.array([metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)], np.int64)

    def label_range(self) -> tuple[float, float] | None:
        """The least and the greatest label, by the files' footers; None where they do not say."""
        ranges = [_label_range(self._parquet(p).metadata) for p, rows in enumerate(self.rows_P) if rows]
        known = [bounds for bounds in ranges if bounds is not None]
        if not known or len(known) < len(ranges):
            return None
        return min(least for least, _ in known), max(greatest for _, greatest in known)

    def _open(self, partition: int) -> pq.ParquetFile:
        return self._prepared.row_groups(partitions.file_name(self._split, partition))

    def _read(self, partition: int, group: int) -> Records:
        columns = [name for name in self._dtype.names or () if name != "context"]
        context = [f"c:{name}" for name in self._context]
        with self._prepared.read_errors(partitions.file_name(self._split, partition)):
            table = self._parquet(partition).read_row_group(group, [*columns, *context], use_threads=False)
            records_B = np.empty(len(table), self._dtype)
            for name in columns:
                records_B[name] = _numbers(table[name], self._dtype[name])
            for i, name in enumerate(context):
                records_B["context"][:, i] = _numbers(table[name], np.dtype(np.int32))
        if partition:
            self._count_on(records_B, partition)
        return records_B.view(self.record)

    def _count_on(self, records_B: Records, partition: int) -> None:
        """Turn places in a partition into numbers that count over all."""
        for column, offset_P in self._offsets.items():
            is_counted_B = records_B["seen"] > 0 if column == "seen" else True  # 0 = not seen
            records_B[column] += is_counted_B * offset_P[partition]


def _numbers(column: Column, dtype: "np.dtype[Any]") -> Array:
    return np.asarray(column.cast(pa.from_numpy_dtype(dtype)).to_numpy())


def _label_range(metadata: pq.FileMetaData) -> tuple[float, float] | None:
    at = metadata.schema.names.index("label")
    groups = (metadata.row_group(i) for i in range(metadata.num_row_groups))
    statistics = [group.column(at).statistics for group in groups if group.num_rows]
    bounds = [(one.min, one.max) for one in statistics if one is not None and one.has_min_max]
    least = [low for low, _ in bounds if low is not None]
    greatest = [high for _, high in bounds if high is not None]
    return (min(least), max(greatest)) if bounds and len(bounds) == len(statistics) else None
