"""The raw rows of a partition, from all segments that hold some."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import pyarrow as pa

from llm4msr import storage
from llm4msr.arrays import Ints
from llm4msr.data import partitions
from llm4msr.data.interactions import Interactions, sort_places
from llm4msr.data.reading.file_rows import move_rows
from llm4msr.data.shuffle import ROWS
from llm4msr.errors import StorageError
from llm4msr.storage import StageOutput


class Segment(NamedTuple):
    """A finished segment, and what today's numbers of its rows are."""

    uri: str
    created: str
    """When: another run may have deleted it and made it anew, of the same name."""
    moved: dict[int, int]
    """Place that a file had among the source's files -> place that it has now, where that is another."""
    orders_are_numbers: bool
    """Whether `order` repeats the rows' numbers."""


class RawRows(NamedTuple):
    """Where the raw rows of all partitions lie."""

    interactions: Sequence[Segment]
    users: Sequence[Segment]

    def read_interactions(self, partition: int) -> Interactions:
        """A partition's interactions in the order of their numbers.

        Raises:
            StorageError: a file is missing or damaged; so for all methods.
        """
        rows = Interactions.as_they_come(pa.concat_tables(self._interactions(partition)))
        return rows.take(sort_places(rows.row_R))

    def read_orders(self, partition: int) -> tuple[Ints, Ints]:
        """Only what orders them, and their numbers: [R] each, in no order."""
        rows = pa.concat_tables(self._interactions(partition, ["order", "row"]))
        return rows["order"].to_numpy(), rows["row"].to_numpy()

    def read_users(self, partition: int) -> pa.Table:
        """A partition's users as the source describes them."""
        return pa.concat_tables(_read(segment, partition) for segment in self.users)

    def _interactions(self, partition: int, columns: list[str] | None = None) -> Iterator[pa.Table]:
        for segment in self.interactions:
            rows = _read(segment, partition, columns)
            if segment.moved:
                number = pa.array(move_rows(rows["row"].to_numpy(), segment.moved))
                for name in ("row", "order") if segment.orders_are_numbers else ("row",):
                    rows = rows.set_column(rows.column_names.index(name), name, number)
            yield rows


def _read(segment: Segment, partition: int, columns: list[str] | None = None) -> pa.Table:
    return _open(segment.uri, segment.created).table(partitions.file_name(ROWS, partition), columns)


@lru_cache(256)
def _open(uri: str, created: str) -> StageOutput:
    output = storage.open_output(storage.path(uri))
    if output is None or output.manifest.created != created:
        raise StorageError(f"{uri}: deleted while it was read; run stage 'prepare' again")
    return output
