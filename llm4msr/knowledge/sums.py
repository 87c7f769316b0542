"""Sums over the vectors of all users, from which mean and deviation follow: added up once, when a version is sealed.

Each partition is added up by a task of its own, and the partitions in their order, so that the sums are the same in
every run. Shape suffixes: N users, Z width of a vector.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from upath import UPath

from llm4msr import ray_session, storage
from llm4msr.arrays import Floats, Halves
from llm4msr.knowledge.index import RowGroup
from llm4msr.knowledge.rows import good_rows, partition_of, read_vectors
from llm4msr.storage import FileRecord, StageOutput
from llm4msr.storage.vectors import to_matrix

FILE = "sums.parquet"
"""A row for each partition with users: `partition`, `users`, and the lists `total` and `square` of Z numbers."""
_NUMBERS = pa.list_(pa.float64())
LAYOUT = pa.schema({"partition": pa.int64(), "users": pa.int64(), "total": _NUMBERS, "square": _NUMBERS})
_ROWS = 1 << 13


class Sums(NamedTuple):
    """How many users have a vector, the sum of their vectors and that of the squares, float64 [Z]."""

    users: int
    total_Z: Floats
    square_Z: Floats

    @classmethod
    def of(cls, vectors_NZ: Halves) -> "Sums":
        """Of the rows of a matrix, in pieces."""
        pieces = (vectors_NZ[at : at + _ROWS].astype(np.float64) for at in range(0, len(vectors_NZ), _ROWS))
        zero = cls(0, np.zeros(vectors_NZ.shape[1]), np.zeros(vectors_NZ.shape[1]))
        return add([zero, *(cls(len(piece), piece.sum(0), (piece**2).sum(0)) for piece in pieces)])

    @property
    def mean(self) -> Floats:
        """Their mean, [Z]; zero if there are no users."""
        return self.total_Z / max(self.users, 1)

    @property
    def deviation(self) -> Floats:
        """Their standard deviation, [Z]."""
        return np.sqrt(np.maximum(self.square_Z / max(self.users, 1) - self.mean**2, 0))


def add(parts: Iterable[Sums]) -> Sums:
    """The sums of all parts, of which there is at least one."""
    counts, totals, squares = zip(*parts, strict=True)
    return Sums(sum(counts), np.sum(totals, axis=0), np.sum(squares, axis=0))


def write(folder: UPath, groups: Sequence[RowGroup], partitions: int) -> FileRecord:
    """Add up the good vectors of a version in its folder, by Ray's tasks.

    Args:
        folder: of the version.
        groups: all row groups of users.
        partitions: how many there are of users.
    """
    jobs: dict[int, list[dict[str, object]]] = {}
    for group in groups:
        name = "/".join(group.uri.split("/")[-2:])
        jobs.setdefault(partition_of(name, partitions), []).append(group._asdict())
    items = [{"partition": partition, "groups": mine} for partition, mine in sorted(jobs.items())]
    rows = sorted(ray_session.run_each(_add_up, items), key=lambda row: int(row["partition"]))
    return storage.write_table(folder / FILE, pa.Table.from_pylist(rows, LAYOUT))


def _add_up(batch: pa.Table) -> pa.Table:
    """One row of `FILE`."""
    (job,) = batch.to_pylist()
    return as_table(job["partition"], (read_vectors(RowGroup(**group)) for group in job["groups"]))


def as_table(partition: int, tables: Iterable[pa.Table]) -> pa.Table:
    """The row of a partition in `FILE`, out of all its users' rows in tables of `read_vectors`."""
    sums = add(Sums.of(to_matrix(table["vector"])[good_rows(table)]) for table in tables)
    row = {"partition": partition, "users": sums.users}
    row |= {"total": sums.total_Z.tolist(), "square": sums.square_Z.tolist()}
    return pa.Table.from_pylist([row], LAYOUT)


def read(output: StageOutput) -> Sums:
    """The sums over all users of a finished version.

    Raises:
        StorageError: the file is missing or damaged.
    """
    rows = output.table(FILE).to_pylist()
    nobody = Sums(0, np.zeros(int(output.manifest.info["width"])), np.zeros(int(output.manifest.info["width"])))
    parts = [Sums(row["users"], np.array(row["total"]), np.array(row["square"])) for row in rows]
    return add(parts or [nobody])
