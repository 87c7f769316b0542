"""The knowledge store: a user's or scenario's number -> the LLM's vector, its text and its fingerprint.

Shape suffixes: N users with the unknown one as row 0, S scenarios likewise, Z width of the LLM's vector.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from llm4msr import storage
from llm4msr.arrays import Array, Bools, Halves, Ints
from llm4msr.errors import StorageError
from llm4msr.knowledge.index import RowGroup
from llm4msr.knowledge.rows import good_rows, read_rows, row_groups
from llm4msr.model.inputs import KnowledgeStatistics
from llm4msr.storage import StageOutput, cache
from llm4msr.storage.vectors import to_matrix


class Past(NamedTuple):
    """What was known of a user before each row that knowledge has seen: R rows, a user's together, oldest first."""

    vectors_RZ: Halves
    known_R: Bools
    user_R: Ints


class KnowledgeStore:
    """Vectors by number; they are memory-mapped, so workers on a machine share them.

    A user's number is their dense id; with `past`, number N + r is what was known before row r.
    """

    def __init__(self, users_NZ: Halves, known_N: Bools, scenarios_SZ: Halves, past: Past | None = None):
        self.users_NZ, self.known_N, self.scenarios_SZ, self.past = users_NZ, known_N, scenarios_SZ, past
        self.hides_seen = False
        """Whether a row that knowledge has seen is shown as that of an unknown user (`split.history_share`)."""
        self._instead: Ints | None = None

    @classmethod
    def open(cls, output: StageOutput, users: int, scenarios: int) -> "KnowledgeStore":
        """From a finished extraction; `users` and `scenarios` count the unknown one.

        Raises:
            StorageError: a shard is missing, damaged, of another width or model, or knows ids beyond these counts.
        """
        info = output.manifest.info
        width = int(info["width"])
        cached = cache_of(output).with_suffix(f".{users}")

        def build(new: Path) -> None:
            users_NZ = _map_file(new / "users.npy", (users, width))
            np.save(new / "known.npy", _fill(users_NZ, row_groups(output)))
            users_NZ.flush()
            _write_past(output, width, new)

        cache.build_once(cached, build)
        scenarios_SZ = np.zeros((scenarios, int(info.get("scenario_width", width))), np.float16)
        _fill(scenarios_SZ, row_groups(output, "scenarios"))
        past = None
        if (cached / "past.npy").exists():
            known_R, user_R = np.load(cached / "past_known.npy"), np.load(cached / "past_user.npy")
            past = Past(np.load(cached / "past.npy", mmap_mode="r"), known_R, user_R)
        return cls(np.load(cached / "users.npy", mmap_mode="r"), np.load(cached / "known.npy"), scenarios_SZ, past)

    def shown(self, user_B: Tensor, seen_B: Tensor | None) -> Tensor:
        """The number of the vector that each row is shown with: int64 [B]; `seen` as in `schema.INTERACTIONS`."""
        if seen_B is None:
            return user_B
        if self.past is not None:
            there_B = (seen_B > 0) & (seen_B <= len(self.past.known_R))
            return torch.where(there_B, len(self.known_N) - 1 + seen_B, user_B)
        return user_B.masked_fill(seen_B > 0, 0) if self.hides_seen else user_B

    def lookup(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors float16 [B, Z] and whether each is known, bool [B], of numbers int64 [B]."""
        asked = numbers.numpy()
        found = asked if self._instead is None else self._instead[asked]
        past = self.past or Past(self.users_NZ[:0], self.known_N[:0], found[:0])
        known_B = _either(asked, self.known_N, past.known_R) & _either(found, self.known_N, past.known_R)
        return torch.from_numpy(_either(found, self.users_NZ, past.vectors_RZ)), torch.from_numpy(known_B)

    def controlled(self, control: str, seed: int) -> "KnowledgeStore":
        """The same store with wrong vectors: `shuffled` among the known users, or `random` normal numbers.

        What was known of a user in the past becomes what was known of the other user as far into their history, or
        the user's own random numbers.
        """
        if control == "none":
            return self
        rng = np.random.default_rng([seed, 4711])
        users_NZ, scenarios_SZ = self.users_NZ, self.scenarios_SZ.copy()
        instead_N = np.arange(len(self.known_N))
        if control == "random":
            users_NZ = rng.standard_normal(self.users_NZ.shape, np.float32).astype(np.float16)
            scenarios_SZ[1:] = rng.standard_normal(scenarios_SZ[1:].shape).astype(np.float16)
        else:
            scenarios_SZ[1:] = scenarios_SZ[1:][rng.permutation(len(scenarios_SZ) - 1)]
            known = np.flatnonzero(self.known_N)
            instead_N[known] = known[rng.permutation(len(known))]
        wrong = KnowledgeStore(users_NZ, self.known_N, scenarios_SZ, self.past)
        wrong.hides_seen = self.hides_seen
        instead_R = instead_N[:0] if self.past is None else _instead_of_past(self.past, instead_N, control == "random")
        wrong._instead = np.concatenate([instead_N, instead_R])
        return wrong

    def statistics(self) -> KnowledgeStatistics:
        """Mean and deviation over the known users (all of them users of training rows), and the scenarios.

        Raises:
            StorageError: no user is known.
        """
        known = np.flatnonzero(self.known_N)
        if not len(known):
            raise StorageError("the knowledge store knows no user; look at the errors in its shards")
        total, square = np.zeros(self.users_NZ.shape[1]), np.zeros(self.users_NZ.shape[1])
        for chunk in np.array_split(known, -(-len(known) // 65536)):
            block = self.users_NZ[chunk].astype(np.float64)
            total, square = total + block.sum(0), square + (block**2).sum(0)
        mean = total / len(known)
        scale = np.sqrt(np.maximum(square / len(known) - mean**2, 0)) + 1e-6
        as_float = (torch.from_numpy(part.astype(np.float32)) for part in (mean, scale, self.scenarios_SZ))
        return KnowledgeStatistics(*as_float)


def cache_of(output: StageOutput) -> Path:
    """Where this machine keeps the vectors of a version, memory-mapped; the suffix is the number of users."""
    digests = {name: part.digest for name, part in output.manifest.files.items()}
    return cache.root() / "knowledge" / storage.digest_json(digests)


def _either(numbers: Ints, of_users: Array, of_past: Array) -> Array:
    """Rows of the one array, and beyond its end of the other."""
    past = numbers >= len(of_users)
    if not past.any():
        return np.asarray(of_users[numbers])
    rows = np.empty((len(numbers), *of_users.shape[1:]), of_users.dtype)
    rows[~past] = of_users[numbers[~past]]
    rows[past] = of_past[numbers[past] - len(of_users)]
    return rows


def _instead_of_past(past: Past, instead_N: Ints, own: bool) -> Ints:
    """The number that stands for each past: of the user's `own` vector, or of one as far into the other's history."""
    if own:
        return past.user_R
    count_N = np.bincount(past.user_R, minlength=len(instead_N))
    starts = np.flatnonzero(np.diff(past.user_R, prepend=-1))
    first_N = np.zeros(len(instead_N), np.int64)
    first_N[past.user_R[starts]] = starts
    other_R = instead_N[past.user_R]
    place_R = (np.arange(len(other_R)) - first_N[past.user_R]) * count_N[other_R] // count_N[past.user_R]
    return np.asarray(len(instead_N) + first_N[other_R] + place_R)


def _write_past(output: StageOutput, width: int, folder: Path) -> None:
    """`past.npy` and its companions, where the extraction has points in time; one row group in memory at a time."""
    groups = row_groups(output, "past")
    if not groups:
        return
    rows = sum(output.manifest.files[f"pooled/{group.file.name}"].rows for group in groups)
    vectors_RZ = _map_file(folder / "past.npy", (rows, width))
    known_R, user_R, start = np.zeros(rows, bool), np.zeros(rows, np.int64), 0
    for group in groups:
        table = read_rows(group, ["user", "known", "vector"])
        written = slice(start, start + len(table))
        vectors_RZ[written] = to_matrix(table["vector"])
        known_R[written], user_R[written] = table["known"].to_numpy(), table["user"].to_numpy()
        start += len(table)
    vectors_RZ.flush()
    np.save(folder / "past_known.npy", known_R)
    np.save(folder / "past_user.npy", user_R)


def _map_file(file: Path, shape: tuple[int, int]) -> "np.memmap[Any, np.dtype[np.float16]]":
    """A new file of zeros as a matrix, with room on the disk for all of it."""
    matrix_NZ: np.memmap[Any, np.dtype[np.float16]] = np.lib.format.open_memmap(file, "w+", np.float16, shape)
    cache.reserve(file, file.stat().st_size)
    return matrix_NZ


def _fill(matrix_NZ: Halves, groups: list[RowGroup]) -> Bools:
    """Write each good row of the row groups to the row of its id; gives back which rows were written, [N]."""
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
