"""How an epoch's rows are dealt to virtual streams, and every global batch to their next rows.

A stream goes through partitions of its own one after the other, or through a stretch of a partition that it shares
with others. A global batch takes the next rows of all streams, in proportion to their lengths. Worker r of W serves the
streams r, r + W and so on: the global batches are the same for every W. (Source: the elastic determinism of MosaicML
Streaming.)

Shape suffixes: P partitions, V streams.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from llm4msr.errors import ConfigError

MOST = 64
"""Streams at most, and so workers."""
LEAST_ROWS = 4
"""Rows of a stream in a global batch, at least: batches that are smaller have fewer streams."""


class Stretch(NamedTuple):
    """Rows of a partition in the order that an epoch has for it: from the `first` to before the `end`."""

    partition: int
    first: int
    end: int


def stream_count(batch_size: int) -> int:
    """How many streams, a power of two, feed a global batch."""
    return 1 << max(min(MOST, batch_size // LEAST_ROWS).bit_length() - 1, 0)


def check_workers(workers: int, batch_size: int) -> None:
    """Refuse more workers than there are streams.

    Raises:
        ConfigError: with what to change.
    """
    if workers > (most := stream_count(batch_size)):
        enough = f", or raise train.batch_size to {LEAST_ROWS << (workers - 1).bit_length()}" if workers <= MOST else ""
        raise ConfigError(
            f"train.workers = {workers}: batches of {batch_size} rows are divided between at most {most} workers; "
            f"lower it to {most}{enough}"
        )


class Streams:
    """The streams of partitions of so many rows.

    Args:
        rows_P: rows of each partition; there are a power of two.
        batch_size: rows of a global batch.
    """

    def __init__(self, rows_P: Sequence[int], batch_size: int):
        self._rows_P, self.count = rows_P, stream_count(batch_size)
        lengths = [sum(end - first for _, first, end in self.stretches(v, 0)) for v in range(self.count)]
        self._levels = [lengths]
        """The lengths of all streams, of pairs of them, of pairs of pairs and so on; the whole comes first."""
        while len(self._levels[0]) > 1:
            halves = self._levels[0]
            self._levels.insert(0, [one + two for one, two in zip(halves[::2], halves[1::2], strict=True)])

    def stretches(self, stream: int, order: int) -> list[Stretch]:
        """What a stream goes through in the epoch whose random `order` this is, one after the other."""
        sharing = self.count // len(self._rows_P)
        if sharing > 1:
            part, partition = divmod(stream, len(self._rows_P))
            rows = self._rows_P[partition]
            return [Stretch(partition, part * rows // sharing, (part + 1) * rows // sharing)]
        own = np.arange(stream, len(self._rows_P), self.count)
        own = np.random.default_rng([order, stream]).permutation(own)
        return [Stretch(partition, 0, self._rows_P[partition]) for partition in own.tolist()]

    def rows_of_each(self, rows: int) -> list[int]:
        """How many of an epoch's first `rows` rows come from each stream.

        They are divided between halves of the streams, halves of these and so on: no count falls as `rows` grows, and
        none is more than log2 V rows off its proportion.
        """
        counts = [rows]
        for wholes, halves in pairwise(self._levels):
            firsts = [n * half // max(whole, 1) for n, whole, half in zip(counts, wholes, halves[::2], strict=True)]
            counts = [n for count, first in zip(counts, firsts, strict=True) for n in (first, count - first)]
        return counts
