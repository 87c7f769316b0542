"""Prepared rows as batches of tensors, straight from Arrow: no per-row Python, memory bounded by the streams.

In random order each virtual stream holds one row group at a time, whose rows it gives in random order, so that a global
batch is made of random rows of as many row groups as there are streams. `prepare` writes rows in random order: what
lies in one row group is a sample of its partition already.
"""

import functools
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from llm4msr.arrays import Ints
from llm4msr.knowledge.store import KnowledgeStore
from llm4msr.model.inputs import Batch, Past
from llm4msr.storage import StageOutput
from llm4msr.training.ahead import ahead
from llm4msr.training.feature_tables import FeatureTables
from llm4msr.training.pasts import PastEvents, Pasts
from llm4msr.training.row_files import Records, RowFiles, Rows
from llm4msr.training.streams import Streams, Stretch, check_workers

BLOCK_ROWS = 1 << 16
"""Rows of the global batches that are put together at once."""


class RowReader:
    """The rows of a split, batch by batch.

    Args:
        prepared: the output of `prepare`.
        split: `train`, `valid` or `test`.
        context: fields whose columns are read too.
        events: whether the column `event` is.
    """

    def __init__(self, prepared: StageOutput, split: str, context: Sequence[str] = (), events: bool = False):
        self.files = RowFiles(prepared, split, context, events)
        self.rows = self.files.rows

    def in_file_order(self, size: int, partition: int | None = None) -> Iterator[Rows]:
        """All rows of one partition or of all of them, at most `size` at a time."""
        for number in range(len(self.files.rows_P)) if partition is None else [partition]:
            for group in range(len(self.files.group_sizes(number))):
                rows = self.files.unpack(self.files.read(number, group))
                for start in range(0, len(rows.user_B), size):
                    yield rows.cut(start, start + size)

    def batches(self, size: int, seed: int, rank: int = 0, world: int = 1, skip: int = 0) -> Iterator[tuple[Rows, int]]:
        """This worker's part of each global batch of an epoch in random order, and the global batch's rows.

        All global batches but the last have `size` rows, and they are the same for every `world`; a part can be empty
        in the last. They are read ahead, in a thread that ends with the iterator.

        Args:
            size: rows of a global batch.
            seed: of the order.
            rank: of this worker.
            world: workers.
            skip: global batches that are left out at the front. What they alone need is not read.

        Raises:
            ConfigError: there are more workers than streams.
            StorageError: a file is missing or damaged.
        """
        for block in ahead(self._blocks(size, seed, rank, world, skip)):
            end = 0
            for count, global_rows in zip(block.counts, block.global_rows, strict=True):
                start, end = end, end + count
                yield block.rows.cut(start, end), global_rows

    def _blocks(self, size: int, order: int, rank: int, world: int, skip: int) -> Iterator["_Block"]:
        streams = Streams(self.files.rows_P, size)
        check_workers(world, size)
        begin = min(skip * size, self.rows)
        begun_V = streams.rows_of_each(begin)
        sources = [
            _Source(self._groups(streams.stretches(stream, order), order, begun_V[stream]), self.files.record)
            for stream in range(rank, streams.count, world)
        ]
        while begin < self.rows:
            end = min(begin + max(BLOCK_ROWS // size, 1) * size, self.rows)
            bounds = [*range(begin, end, size), end]
            count_TV = np.diff([streams.rows_of_each(bound)[rank::world] for bound in bounds], axis=0)
            rows = self.files.unpack(_next_rows(sources, count_TV))
            yield _Block(rows, count_TV.sum(axis=1).tolist(), np.diff(bounds).tolist())
            begin = end

    def _groups(self, stretches: list[Stretch], order: int, skip: int) -> Iterator[Records]:
        """The rows of a stream after the first `skip`, a row group or a part of one at a time."""
        for partition, first, end in stretches:
            if skip < end - first:
                yield from self._mixed_groups(partition, first + skip, end, order)
            skip = max(skip - (end - first), 0)

    def _mixed_groups(self, partition: int, first: int, end: int, order: int) -> Iterator[Records]:
        """The rows from `first` to before `end` of a partition whose row groups, and the rows in each, are mixed."""
        size_G = self.files.group_sizes(partition)
        order_G = np.random.default_rng([order, partition]).permutation(len(size_G))
        end_G = np.cumsum(size_G[order_G])
        for group, group_end in zip(order_G.tolist(), end_G.tolist(), strict=True):
            start = group_end - int(size_G[group])
            if first < group_end and start < end:
                rows = _mixed(order, partition, group, group_end - start)[max(first - start, 0) : end - start]
                yield self.files.read(partition, group).take(rows)


@functools.lru_cache(64)  # two streams share a row group where one's stretch ends and the other's begins
def _mixed(order: int, partition: int, group: int, rows: int) -> Ints:
    return np.random.default_rng([order, partition, group]).permutation(rows)


class _Block(NamedTuple):
    """Several global batches, as far as one worker has their rows."""

    rows: Rows
    counts: list[int]
    """How many of the rows are of each global batch, which lie one after the other."""
    global_rows: list[int]
    """Rows of each global batch on all workers."""


class _Source:
    """Where the next rows of a stream come from."""

    def __init__(self, groups: Iterator[Records], dtype: "np.dtype[np.void]"):
        self._groups, self._rest = groups, np.empty(0, dtype)

    def take(self, count: int) -> list[Records]:
        """The next `count` rows, in pieces."""
        pieces = [self._rest[:0]]
        while count:
            if not len(self._rest):
                self._rest = next(self._groups)
            pieces.append(self._rest[:count])
            self._rest = self._rest[count:]
            count -= len(pieces[-1])
        return pieces


def _next_rows(sources: Sequence[_Source], count_TV: Ints) -> Records:
    """The rows of T global batches, one batch after the other; in each the streams one after the other."""
    pieces = [source.take(count) for source, count in zip(sources, count_TV.sum(axis=0).tolist(), strict=True)]
    records_B = np.concatenate(list(chain.from_iterable(pieces)))
    batch_B = np.repeat(np.tile(np.arange(len(count_TV), dtype=np.uint16), len(sources)), count_TV.T.reshape(-1))
    return records_B.take(np.argsort(batch_B, kind="stable"))


def to_batch(rows: Rows, tables: FeatureTables, knowledge: KnowledgeStore | None, pasts: Pasts | None = None) -> Batch:
    """The ranker's input: feature slots looked up, each user's vector once (that of a point in time: once a row)."""
    slots_BS = tables.slots(rows.user_B, rows.item_B, rows.scenario_B, rows.context_BC)
    past = None
    if pasts is not None:
        assert rows.event_B is not None
        past = to_past(rows.item_B, pasts.before(rows.event_B.numpy()), tables)
    if knowledge is None:
        nobody, unknown = torch.zeros((1, 0), dtype=torch.float16), torch.zeros(1, dtype=torch.bool)
        return Batch(slots_BS, rows.scenario_B, torch.zeros_like(rows.user_B), nobody, unknown, past)
    numbers_B = knowledge.vector_numbers(rows.user_B, rows.seen_B, rows.event_B)
    vectors_N, owner_B = torch.unique(numbers_B, return_inverse=True)
    return Batch(slots_BS, rows.scenario_B, owner_B, *knowledge.lookup(vectors_N), past)


def to_past(candidate_B: Tensor, events: PastEvents, tables: FeatureTables) -> Past:
    """What a match reads: the rows' candidates, and the events before each row."""
    item_BN, scenario_BN, liked_BN = (torch.from_numpy(column).long() for column in events)
    return Past(candidate_B, item_BN, tables.item_places(item_BN), scenario_BN, liked_BN > 0)
