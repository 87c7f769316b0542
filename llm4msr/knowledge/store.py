"""The knowledge store: a user's or scenario's number -> the LLM's vector, memory-mapped from this machine's cache.

Shape suffixes: N users with the unknown one as row 0, S scenarios likewise, Z width of the LLM's vector, R rows that
knowledge has seen, B rows of a batch.
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
    """What was known of a user before each row that knowledge has seen: each user's rows together, oldest first."""

    vectors_RZ: Halves
    known_R: Bools
    """Whether anything was known."""
    user_R: Ints
    """Whose row it is."""


class KnowledgeStore:
    """Vectors by number; they are memory-mapped, so workers on a machine share them.

    A user's number is their dense id; with `past`, number N + r is what was known before row r.

    Args:
        users_NZ: float16, zero where a user is not known.
        known_N: bool, whether a user is known.
        scenarios_SZ: float16.
        past: where the extraction has points in time.
    """

    def __init__(self, users_NZ: Halves, known_N: Bools, scenarios_SZ: Halves, past: Past | None = None):
        self.users_NZ, self.known_N, self.scenarios_SZ, self.past = users_NZ, known_N, scenarios_SZ, past
        self.hides_seen = False
        """Whether a row that knowledge has seen is shown as that of an unknown user (`split.history_share`)."""
        self._stand_ins: Ints | None = None
        """Whose vector stands in for that of each number, where it is another's: [N], or [N + R] with a past."""

    @classmethod
    def open(cls, output: StageOutput, users: int, scenarios: int) -> "KnowledgeStore":
        """From a finished extraction; `users` and `scenarios` count the unknown one.

        Raises:
            StorageError: a shard is missing, damaged, of another width or model, or knows ids beyond these counts.
        """
        info = output.manifest.info
        width = int(info["width"])
        cached = cache_path(output).with_suffix(f".{users}")

        def build(new: Path) -> None:
            users_NZ = map_zeros(new / "users.npy", (users, width))
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

    def vector_numbers(self, user_B: Tensor, seen_B: Tensor | None) -> Tensor:
        """The number of the vector that each row is shown with: int64 [B].

        Args:
            user_B: int64, the rows' users.
            seen_B: int64, as in `schema.INTERACTIONS`; None for rows that knowledge cannot have seen.
        """
        if seen_B is None:
            return user_B
        if self.past is not None:
            has_past_B = (seen_B > 0) & (seen_B <= len(self.past.known_R))
            return torch.where(has_past_B, len(self.known_N) - 1 + seen_B, user_B)
        return user_B.masked_fill(seen_B > 0, 0) if self.hides_seen else user_B

    def lookup(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors float16 [B, Z] and whether each is known, bool [B], of numbers int64 [B]."""
        number_B = numbers.numpy()
        source_B = number_B if self._stand_ins is None else self._stand_ins[number_B]
        past = self.past or Past(self.users_NZ[:0], self.known_N[:0], source_B[:0])
        known_B = _take(number_B, self.known_N, past.known_R) & _take(source_B, self.known_N, past.known_R)
        return torch.from_numpy(_take(source_B, self.users_NZ, past.vectors_RZ)), torch.from_numpy(known_B)

    def with_control(self, control: str, seed: int) -> "KnowledgeStore":
        """The same store with wrong vectors: `shuffled` among the known users, or `random` normal numbers.

        What was known of a user in the past becomes what was known of the other user as far into their history, or
        the user's own random numbers.
        """
        if control == "none":
            return self
        rng = np.random.default_rng([seed, 4711])
        users_NZ, scenarios_SZ = self.users_NZ, self.scenarios_SZ.copy()
        stand_in_N = np.arange(len(self.known_N))
        if control == "random":
            users_NZ = rng.standard_normal(self.users_NZ.shape, np.float32).astype(np.float16)
            scenarios_SZ[1:] = rng.standard_normal(scenarios_SZ[1:].shape).astype(np.float16)
        else:
            scenarios_SZ[1:] = scenarios_SZ[1:][rng.permutation(len(scenarios_SZ) - 1)]
            known = np.flatnonzero(self.known_N)
            stand_in_N[known] = known[rng.permutation(len(known))]
        wrong = KnowledgeStore(users_NZ, self.known_N, scenarios_SZ, self.past)
        wrong.hides_seen = self.hides_seen
        stand_in_R = stand_in_N[:0]
        if self.past is not None:
            stand_in_R = self.past.user_R if control == "random" else _shuffle_past(self.past, stand_in_N)
        wrong._stand_ins = np.concatenate([stand_in_N, stand_in_R])
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
        singles = (torch.from_numpy(array.astype(np.float32)) for array in (mean, scale, self.scenarios_SZ))
        return KnowledgeStatistics(*singles)


def cache_path(output: StageOutput) -> Path:
    """Where this machine keeps the vectors of a version, memory-mapped; the suffix is the number of users."""
    digests = {name: part.digest for name, part in output.manifest.files.items()}
    return cache.root() / "knowledge" / storage.digest_json(digests)


def _take(number_B: Ints, users: Array, past: Array) -> Array:
    """Rows of the users' array [N, ...], and for numbers beyond its end of the past's [R, ...]."""
    is_past_B = number_B >= len(users)
    if not is_past_B.any():
        return np.asarray(users[number_B])
    rows = np.empty((len(number_B), *users.shape[1:]), users.dtype)
    rows[~is_past_B] = users[number_B[~is_past_B]]
    rows[is_past_B] = past[number_B[is_past_B] - len(users)]
    return rows


def _shuffle_past(past: Past, stand_in_N: Ints) -> Ints:
    """For each past the number of that of the user who stands in, as far into their history: int64 [R]."""
    count_N = np.bincount(past.user_R, minlength=len(stand_in_N))
    starts = np.flatnonzero(np.diff(past.user_R, prepend=-1))
    first_N = np.zeros(len(stand_in_N), np.int64)
    first_N[past.user_R[starts]] = starts
    other_R = stand_in_N[past.user_R]
    place_R = (np.arange(len(other_R)) - first_N[past.user_R]) * count_N[other_R] // count_N[past.user_R]
    return np.asarray(len(stand_in_N) + first_N[other_R] + place_R)


def _write_past(output: StageOutput, width: int, folder: Path) -> None:
    """`past.npy` and its companions, where the extraction has points in time; one row group in memory at a time."""
    groups = row_groups(output, "past")
    if not groups:
        return
    rows = sum(output.manifest.files[f"pooled/{group.file.name}"].rows for group in groups)
    vectors_RZ = map_zeros(folder / "past.npy", (rows, width))
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


def map_zeros(file: Path, shape: tuple[int, int]) -> "np.memmap[Any, np.dtype[np.float16]]":
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
