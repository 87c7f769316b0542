"""A version's vectors by place, partition by partition: copied once into this machine's cache, and mapped from it."""

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from llm4msr import storage
from llm4msr.arrays import Array, Bools, Halves, Ints
from llm4msr.data import partitions
from llm4msr.errors import StorageError
from llm4msr.knowledge import controls, snapshots
from llm4msr.knowledge.index import RowGroup, read_index
from llm4msr.knowledge.rows import good_rows, list_row_groups, partition_of, read_rows
from llm4msr.knowledge.snapshots import CUT, KIND, NOTHING
from llm4msr.storage import FileRecord, StageOutput, cache
from llm4msr.storage.vectors import to_matrix

LAYOUT = 2
"""Of the files in the cache."""


class MappedVectors:
    """The arrays of a version's partitions, in files of the cache.

    Args:
        output: the version.
        prepared: the data whose users and events are looked up.
    """

    def __init__(self, output: StageOutput, prepared: StageOutput):
        self.output, self.prepared = output, prepared
        self.offset_P = offset_P = partitions.offsets(prepared, "users")
        self._prefix, self._width = cache_path(output), int(output.manifest.info["width"])
        self._files: dict[tuple[str, int], dict[str, FileRecord]] = defaultdict(dict)
        files = output.manifest.files
        of_users = "index" if any(name.startswith("index/users-") for name in files) else "vectors"
        for name, record in files.items():
            folder, _, file = name.partition("/")
            kind = file.partition("-")[0]
            if folder in (of_users, "pooled") and kind in ("users", "past", KIND):
                self._files[kind, partition_of(name, len(offset_P) - 1)][name] = record

    @property
    def has_past(self) -> bool:
        """Whether there is what was known of users at earlier times."""
        return any(kind != "users" for kind, _ in self._files)

    def reader(self, name: str) -> Callable[[int], Array]:
        """What opens an array of a partition: `users`, `known`, or where there is a past `past`, `past_known` ..."""
        return partial(self._open, name)

    def noise(self, seed: int, partition: int) -> Halves:
        """Random numbers instead of a partition's vectors: float16 [N, Z]."""
        folder = self._folder(partition, f"-random-{seed}")

        def build(new: Path) -> None:
            noise_NZ = map_zeros(new / "users.npy", (self._users(partition), self._width))
            controls.fill_with_noise(noise_NZ, seed, partition)
            noise_NZ.flush()

        mapped: Halves = np.load(cache.build_once(folder, build) / "users.npy", mmap_mode="r")
        return mapped

    def _open(self, name: str, partition: int) -> Array:
        folder = cache.build_once(self._folder(partition, self._shown_to(partition)), partial(self._build, partition))
        mapped: Array = np.load(folder / f"{name}.npy", mmap_mode="r")
        return mapped

    def _shown_to(self, partition: int) -> str:
        """Of which events the folder tells what they are shown: other data may have the same vectors."""
        if not self.has_past:
            return ""
        return f"-{self.prepared.manifest.files[partitions.file_name('events', partition)].digest}"

    def _folder(self, partition: int, what: str = "") -> Path:
        total = len(self.offset_P) - 1
        rest = f"{partition:05d}-of-{total:05d}-{self._users(partition)}{what}"
        return self._prefix.with_name(f"{self._prefix.name}.{rest}")

    def _users(self, partition: int) -> int:
        return int(self.offset_P[partition + 1] - self.offset_P[partition])

    def _groups(self, kind: str, partition: int) -> list[RowGroup]:
        return list_row_groups(self.output.folder, self._files.get((kind, partition), {}), kind)

    def _build(self, partition: int, folder: Path) -> None:
        users_NZ = map_zeros(folder / "users.npy", (self._users(partition), self._width))
        np.save(folder / "known.npy", fill(users_NZ, self._groups("users", partition)))
        users_NZ.flush()
        if self.has_past:
            build_past = self._build_snapshots if self.output.manifest.info.get(KIND) else self._build_past
            for name, rows in zip(("known", "user", "shown"), build_past(partition, folder), strict=True):
                np.save(folder / f"past_{name}.npy", rows)

    def _build_past(self, partition: int, folder: Path) -> tuple[Bools, Ints, Ints]:
        """A row for each event of users with knowledge; whether it is known, whose it is, and what events are shown."""
        rows = sum(record.rows for record in self._files.get(("past", partition), {}).values())
        past_RZ = map_zeros(folder / "past.npy", (rows, self._width))
        known_R, user_R, start = np.zeros(rows, bool), np.zeros(rows, np.int64), 0
        for group in self._groups("past", partition):
            table = read_rows(group, ["user", "known", "vector"])
            written = slice(start, start + len(table))
            past_RZ[written] = to_matrix(table["vector"])
            known_R[written], user_R[written] = table["known"].to_numpy(), table["user"].to_numpy()
            start += len(table)
        past_RZ.flush()
        place_E = np.arange(self.prepared.manifest.files[partitions.file_name("events", partition)].rows)
        return known_R, user_R, np.where(place_E < rows, place_E, CUT)

    def _build_snapshots(self, partition: int, folder: Path) -> tuple[Bools, Ints, Ints]:
        """The same with a row for each snapshot."""
        columns = ["user", "label", "split", "earlier", "before"]
        events = self.prepared.table(partitions.file_name("events", partition), columns)
        users = self.prepared.manifest.files[partitions.file_name("histories", partition)].rows
        found = snapshots.find(events, users, int(self.output.manifest.info[KIND]))
        groups = self._groups(KIND, partition)
        ids = [read_index(group, ["id"])["id"].to_numpy() for group in groups]
        rows = 1 + int(np.concatenate([[-1], *ids]).max())
        past_RZ = map_zeros(folder / "past.npy", (rows, self._width))
        known_R = fill(past_RZ, groups)
        past_RZ.flush()
        user_R = events["user"].to_numpy()[found.first_M[:rows]]
        return known_R, user_R, np.where(found.shown_E < rows, found.shown_E, NOTHING)


def cache_path(output: StageOutput) -> Path:
    """Where this machine keeps the vectors of a version, memory-mapped; a suffix tells the partition."""
    digests = {name: part.digest for name, part in output.manifest.files.items()}
    return cache.root() / "knowledge" / storage.digest_json([LAYOUT, digests])


def map_zeros(file: Path, shape: tuple[int, int]) -> "np.memmap[Any, np.dtype[np.float16]]":
    """A new file of zeros as a matrix, with room on the disk for all of it."""
    matrix_NZ: np.memmap[Any, np.dtype[np.float16]] = np.lib.format.open_memmap(file, "w+", np.float16, shape)
    cache.reserve(file, file.stat().st_size)
    return matrix_NZ


def fill(matrix_NZ: Halves, groups: list[RowGroup]) -> Bools:
    """Write each good row of the row groups to the row of its id; gives back which rows were written, [N].

    Raises:
        StorageError: a row group has vectors of another width, or ids beyond the matrix.
    """
    known_N = np.zeros(len(matrix_NZ), bool)
    for group in groups:
        table = read_rows(group, ["id", "error", "vector"])
        width = table["vector"].type.list_size
        if width != matrix_NZ.shape[1]:
            raise StorageError(
                f"{group.file}: vectors of width {width}, expected {matrix_NZ.shape[1]}; it is another model's: "
                "delete it and its version's manifest.json, then run `llm4msr extract` again"
            )
        ids = table["id"].to_numpy()
        if len(ids) and ids.max() >= len(matrix_NZ):
            raise StorageError(
                f"{group.file}: id {ids.max()} is beyond the {len(matrix_NZ) - 1} prepared ones; extract again"
            )
        good = good_rows(table)
        matrix_NZ[ids[good]] = to_matrix(table["vector"])[good]
        known_N[ids[good]] = True
    return known_N
