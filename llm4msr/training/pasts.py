"""What a user had done before any row: looked up by the row's event, from files that this machine's cache maps.

A row sees events of its own moment never, and of its user's earlier ones those of its own split and of the splits
before that (`fresh`), or of the training rows alone (`stale`). A training row sees no validation or test row even where
a random split has put one before it.

Shape suffixes: E events of a partition, L of them that are seen, B rows, N events of a past.
"""

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm4msr import storage
from llm4msr.arrays import Bools, Ints, Ints32
from llm4msr.data import partitions
from llm4msr.data.interactions import run_starts
from llm4msr.data.partitioned_rows import KEPT
from llm4msr.storage import StageOutput, cache

VERSION = 1
"""Of the files in the cache."""


class PastEvents(NamedTuple):
    """The latest events before each row, the latest first; zeros where there are fewer than N."""

    item_BN: Ints32
    scenario_BN: Ints32
    liked_BN: Ints32
    """1 where the user liked the item."""


class Pasts:
    """The pasts of all rows of prepared data.

    Args:
        prepared: the output of `prepare`.
        most: how many events a past has at most.
        fresh: whether rows of validation and test see more than training rows.
    """

    def __init__(self, prepared: StageOutput, most: int, fresh: bool):
        self._prepared, self._most, self._fresh = prepared, most, fresh
        self._offset_P = partitions.offsets(prepared, "events")
        self._open = functools.lru_cache(KEPT)(self._map)

    def before(self, event_B: Ints) -> PastEvents:
        """The pasts of rows by their events, int64 [B]; N is as long as the longest of them, and at least 1."""
        home_B = np.searchsorted(self._offset_P, event_B, side="right") - 1
        places = [(number, np.flatnonzero(home_B == number)) for number in np.unique(home_B).tolist()]
        bounds_B2 = np.empty((len(event_B), 2), np.int64)
        for number, rows in places:
            bounds_B2[rows] = self._open(number)[1][event_B[rows] - self._offset_P[number]]
        length_B = np.minimum(bounds_B2[:, 1] - bounds_B2[:, 0], self._most)
        back_N = np.arange(max(int(length_B.max(initial=0)), 1))
        seen_BN = np.where(back_N < length_B[:, None], bounds_B2[:, 1:] - 1 - back_N, -1)  # the last of all is none
        told_BN3 = np.empty((*seen_BN.shape, 3), np.int32)
        for number, rows in places:
            told_BN3[rows] = self._open(number)[0][seen_BN[rows]]
        return PastEvents(told_BN3[..., 0], told_BN3[..., 1], told_BN3[..., 2])

    def latest(self, partition: int, counts_I: Bools | None = None) -> pa.Table:
        """All that is known of a partition's users now, as serving has it: their latest events of every split.

        Columns `user`, `item`, `scenario` and `label`: each user's rows together, the oldest first. Unknown users and
        items are left out, and items that do not count where `counts_I` says which do.
        """
        columns = ["user", "item", "scenario", "label"]
        events = partitions.read(self._prepared, "events", partition, columns)
        events = events.filter((pc.field("user") > 0) & (pc.field("item") > 0))
        if counts_I is not None:
            events = events.filter(pa.array(counts_I[events["item"].to_numpy()]))
        start_U = run_starts(events["user"].to_numpy())
        length_U = np.diff(start_U, append=len(events))
        end_E = np.repeat(start_U + length_U, length_U)
        return events.filter(pa.array(end_E - np.arange(len(events)) <= self._most))

    def now(self, user: int) -> PastEvents:
        """What `latest` has of one user, as the past of a row [1, N]."""
        (home,) = partitions.homes(self._prepared, np.array([user])).tolist()
        events = self.latest(home).filter(pc.field("user") == user)
        told_3N = np.zeros((3, max(len(events), 1)), np.int32)
        for told_N, name in zip(told_3N, ("item", "scenario", "label"), strict=True):
            told_N[: len(events)] = events[name].to_numpy() > 0.5 if name == "label" else events[name].to_numpy()
        return PastEvents(*told_3N[:, None, ::-1].copy())

    def _map(self, partition: int) -> tuple[Ints32, Ints]:
        """The arrays of `index_events`."""
        name = partitions.file_name("events", partition)
        identity = [VERSION, self._prepared.manifest.files[name].digest, self._fresh]
        folder = cache.root() / "pasts" / storage.digest_json(identity)

        def build(at: Path) -> None:
            columns = ["item", "scenario", "label", "split", "earlier", "before"]
            seen_L3, bounds_E2 = index_events(self._prepared.table(name, columns), self._fresh)
            np.save(at / "seen.npy", seen_L3)
            np.save(at / "bounds.npy", bounds_E2)

        cache.build_once(folder, build)
        return np.load(folder / "seen.npy", mmap_mode="r"), np.load(folder / "bounds.npy", mmap_mode="r")


def index_events(events: pa.Table, fresh: bool) -> tuple[Ints32, Ints]:
    """Item, scenario and whether it was liked, of events that rows see; and where each event's past begins and ends.

    Events of unknown items are left out. int32 [L, 3], of which the last row is zero, and int64 [E, 2].
    """
    column = {name: events[name].to_numpy() for name in events.column_names}
    level_E = column["split"] if fresh else np.zeros(len(events), np.int8)
    first_E = np.arange(len(events)) - column["earlier"]
    told_E3 = np.stack([column["item"], column["scenario"], column["label"] > 0.5], axis=1).astype(np.int32)
    bounds_E2, parts, start = np.zeros((len(events), 2), np.int64), [], 0
    for level in np.unique(level_E):
        is_seen_E = (column["split"] <= level) & (column["item"] > 0)
        above_E = start + np.r_[0, np.cumsum(is_seen_E)]
        own = np.flatnonzero(level_E == level)
        bounds_E2[own, 0] = above_E[first_E[own]]
        bounds_E2[own, 1] = above_E[first_E[own] + column["before"][own]]
        parts.append(told_E3[is_seen_E])
        start += len(parts[-1])
    return np.concatenate([*parts, np.zeros((1, 3), np.int32)]), bounds_E2
