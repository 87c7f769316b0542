"""The knowledge store: a user's or scenario's number -> the LLM's vector, memory-mapped from this machine's cache.

Vectors lie by partition and place in it; a machine copies and opens the partitions that it looks numbers up in.

Shape suffixes: N users with the unknown one as row 0, S scenarios likewise, Z width of the LLM's vector, R events, P
partitions, B rows of a batch.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from llm4msr.arrays import Array, Bools, Halves, Ints
from llm4msr.data import partitions
from llm4msr.data.partitioned_rows import PartitionedRows
from llm4msr.errors import StorageError
from llm4msr.knowledge import controls, item_vectors, sums
from llm4msr.knowledge.mapped_vectors import MappedVectors, fill
from llm4msr.knowledge.rows import row_groups
from llm4msr.knowledge.snapshots import CUT
from llm4msr.knowledge.sums import Sums
from llm4msr.model.inputs import KnowledgeStatistics
from llm4msr.storage import StageOutput


class Vectors(NamedTuple):
    """What is known of users: a row for each, zero where nothing is known."""

    vectors: PartitionedRows
    """float16 [N, Z]."""
    known: PartitionedRows
    """bool [N]."""


class Past(NamedTuple):
    """What was known of users at earlier times: each user's together, oldest first.

    A partition has as many rows as it has events, or fewer; they are numbered as its first events are.
    """

    vectors: PartitionedRows
    """float16 [R, Z]."""
    known: PartitionedRows
    """Whether anything was known: bool [R]."""
    users: PartitionedRows
    """Whose row it is, by place in the partition: int64 [R]."""
    shown: PartitionedRows
    """What each event is shown, as in `Snapshots`: int64 [E], of which a row is named by its place in the partition."""


class StandIns(NamedTuple):
    """Whose vector stands in for that of each number, where it is another's: int64 [N], and [R] with a past."""

    users: PartitionedRows
    past: PartitionedRows | None


class KnowledgeStore:
    """Vectors by number; they are memory-mapped, so workers on a machine share them.

    A user's number is their dense id; with `past`, number N + r is its row r, and an event tells which row it is shown.

    Args:
        users: by their numbers.
        scenarios_SZ: float16.
        total: sums over the known users.
        past: where the extraction has points in time or snapshots.
        noise: gives random numbers instead of a partition's vectors, of a seed and the partition; in memory by default.
        items_ID: float16, by item number, of unit length, zero where nothing is known; where items were read.
    """

    def __init__(
        self,
        users: Vectors,
        scenarios_SZ: Halves,
        total: Sums,
        past: Past | None = None,
        noise: Callable[[int, int], Halves] | None = None,
        items_ID: Halves | None = None,
    ):
        self.users, self.scenarios_SZ, self.sums, self.past = users, scenarios_SZ, total, past
        self.items_ID = items_ID
        self.hides_seen = False
        """Whether a row that knowledge has seen is shown as that of an unknown user (`split.history_share`)."""
        self.is_stale = False
        """Whether rows that knowledge has not seen are shown with what was known after training (`model.past`)."""
        self._stand_ins: StandIns | None = None
        self._noise = noise or partial(controls.noise_in_memory, users.vectors)

    @classmethod
    def open(cls, output: StageOutput, prepared: StageOutput) -> "KnowledgeStore":
        """From a finished extraction and the prepared data whose numbers are looked up.

        Raises:
            StorageError: a file is missing, damaged, of another width or model, or knows ids beyond the prepared ones;
                of a partition's files when it is opened.
        """
        mapped, info = MappedVectors(output, prepared), output.manifest.info
        width = int(info.get("scenario_width", info["width"]))
        scenarios_SZ = np.zeros((prepared.manifest.info["scenarios"], width), np.float16)
        fill(scenarios_SZ, row_groups(output, "scenarios"))
        rows = partial(PartitionedRows, mapped.offset_P)
        users = Vectors(rows(mapped.reader("users")), rows(mapped.reader("known")))
        past = None
        if mapped.has_past:
            rows = partial(PartitionedRows, partitions.offsets(prepared, "events"))
            names = ("past", "past_known", "past_user", "past_shown")
            past = Past(*(rows(mapped.reader(name)) for name in names))
        items_ID = None
        if item_vectors.FILE in output.manifest.files:
            items_ID = item_vectors.of_unit_length(item_vectors.read(output).vectors_ID)
        return cls(users, scenarios_SZ, sums.read(output), past, mapped.noise, items_ID)

    @classmethod
    def in_memory(cls, users_NZ: Halves, known_N: Bools, scenarios_SZ: Halves) -> "KnowledgeStore":
        """From arrays that hold all users in one partition."""
        offset_P = np.array([0, len(known_N)])
        users = Vectors(PartitionedRows(offset_P, lambda _: users_NZ), PartitionedRows(offset_P, lambda _: known_N))
        return cls(users, scenarios_SZ, Sums.of(users_NZ[known_N]))

    def known(self, number_B: Ints) -> Bools:
        """Whether users have a vector: bool [B], of their dense ids."""
        return self.users.known.take(number_B)

    def vector_numbers(self, user_B: Tensor, seen_B: Tensor | None, event_B: Tensor | None = None) -> Tensor:
        """The number of the vector that each row is shown with: int64 [B].

        Args:
            user_B: int64, the rows' users.
            seen_B: int64, as in `schema.INTERACTIONS`; None for rows that knowledge cannot have seen.
            event_B: int64, likewise; None for rows that are at no point in time.
        """
        if self.past is None:
            return user_B.masked_fill(seen_B > 0, 0) if self.hides_seen and seen_B is not None else user_B
        if event_B is None:
            return user_B
        offset_P, row_B = self.past.shown.offset_P, event_B.numpy()
        start_B = torch.from_numpy(offset_P[np.searchsorted(offset_P, row_B, side="right") - 1])
        shown_B = torch.from_numpy(self.past.shown.take(row_B))
        if self.is_stale and seen_B is not None:
            shown_B = shown_B.where(seen_B > 0, CUT)
        past_B = (len(self.users.known) + start_B + shown_B).where(shown_B >= 0, 0)
        return user_B.where(shown_B == CUT, past_B)

    def lookup(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors float16 [B, Z] and whether each is known, bool [B], of numbers int64 [B]."""
        number_B = source_B = numbers.numpy()
        past, instead = self.past, self._stand_ins
        if instead is not None:
            source_B = self._take(number_B, instead.users, instead.past)
        known_B = self._take(number_B, self.users.known, past and past.known)
        if instead is not None:
            known_B = known_B & self._take(source_B, self.users.known, past and past.known)
        vectors_BZ = self._take(source_B, self.users.vectors, past and past.vectors)
        return torch.from_numpy(vectors_BZ), torch.from_numpy(known_B)

    def _take(self, number_B: Ints, users: PartitionedRows, past: PartitionedRows | None) -> Array:
        """Rows of the users' array [N, ...], and for numbers beyond its end of the past's [R, ...]."""
        is_past_B = number_B >= len(self.users.known)
        if past is None or not is_past_B.any():
            return np.asarray(users.take(number_B))
        rows_of_users = users.take(number_B[~is_past_B])
        rows = np.empty((len(number_B), *rows_of_users.shape[1:]), rows_of_users.dtype)
        rows[~is_past_B] = rows_of_users
        rows[is_past_B] = past.take(number_B[is_past_B] - len(self.users.known))
        return rows

    def with_control(self, control: str, seed: int) -> "KnowledgeStore":
        """The same store with wrong vectors: `shuffled` among a partition's known users, or `random` normal numbers.

        What was known of a user in the past becomes what was known of the other user as far into their history, or
        the user's own random numbers. Both follow the seed and the partition, so that no more than that is opened.
        Items' vectors are wrong in the same way, among all items.
        """
        if control == "none":
            return self
        rng = np.random.default_rng([seed, 4711])
        users, scenarios_SZ, total = self.users, self.scenarios_SZ.copy(), self.sums
        if control == "random":
            scenarios_SZ[1:] = rng.standard_normal(scenarios_SZ[1:].shape).astype(np.float16)
            users = users._replace(vectors=PartitionedRows(users.vectors.offset_P, partial(self._noise, seed)))
            total = Sums(total.users, np.zeros_like(total.total_Z), np.full_like(total.square_Z, total.users))
        else:
            scenarios_SZ[1:] = scenarios_SZ[1:][rng.permutation(len(scenarios_SZ) - 1)]
        items_ID = None if self.items_ID is None else controls.wrong_items(self.items_ID, control, seed)
        wrong = KnowledgeStore(users, scenarios_SZ, total, self.past, items_ID=items_ID)
        wrong.hides_seen, wrong.is_stale = self.hides_seen, self.is_stale
        wrong._stand_ins = self._own_numbers() if control == "random" else self._shuffled_numbers(seed)
        return wrong

    def _own_numbers(self) -> StandIns:
        """Everybody's own number, in the past too."""
        offset_P = self.users.known.offset_P
        users = PartitionedRows(offset_P, lambda p: np.arange(offset_P[p], offset_P[p + 1]))
        past = self.past and PartitionedRows(
            self.past.users.offset_P, partial(controls.own_numbers, self.past.users, offset_P)
        )
        return StandIns(users, past)

    def _shuffled_numbers(self, seed: int) -> StandIns:
        """For each known user another one of the partition, and for their past that user's."""
        places = PartitionedRows(self.users.known.offset_P, partial(controls.shuffle, self.users.known, seed))
        users = PartitionedRows(places.offset_P, lambda p: places.offset_P[p] + places.open(p))
        first = len(places)
        past = self.past and PartitionedRows(
            self.past.users.offset_P, partial(controls.shuffled_past, self.past.users, places, first)
        )
        return StandIns(users, past)

    def statistics(self) -> KnowledgeStatistics:
        """Mean and deviation over the known users (all of them users of training rows), the scenarios and the items.

        Raises:
            StorageError: no user is known.
        """
        if not self.sums.users:
            raise StorageError("the knowledge store knows no user; look at the errors in its shards")
        arrays = (self.sums.mean, self.sums.deviation + 1e-6, self.scenarios_SZ)
        mean_Z, scale_Z, scenarios_SZ = (torch.from_numpy(array.astype(np.float32)) for array in arrays)
        items_ID = None if self.items_ID is None else torch.from_numpy(self.items_ID)
        return KnowledgeStatistics(mean_Z, scale_Z, scenarios_SZ, items_ID)
