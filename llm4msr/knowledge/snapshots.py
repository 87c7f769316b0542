"""Snapshots: a user's history as it was at a few earlier times, for the LLM to read (`extract.snapshots`).

They hold the user's first 1, 2, 4, 8 and so on training rows: new rows leave these as they are, so that no later run
asks about them again. One more, for users who liked something in rows of validation, holds those too. The history as
of the training cut is a row of `users`, and no snapshot.

Shape suffixes: E rows of a partition's `events`, U users, M snapshots, K snapshots and cuts, N rows that they hold.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from llm4msr import schema
from llm4msr.arrays import Bools, Column, Ints, strings
from llm4msr.data import partitions
from llm4msr.data.histories import Past, shelves
from llm4msr.data.split import TRAIN, VALID
from llm4msr.storage import StageOutput

KIND = "snapshots"
"""The kind of their rows in the knowledge."""
CUT, NOTHING = -1, -2
"""What a row is shown in place of a snapshot: the history as of the training cut, or nothing."""


class Snapshots(NamedTuple):
    """Those of a partition's users, each user's together and the shortest first; their places are their numbers."""

    line_M: Ints
    """Whose it is, by place in `histories`."""
    first_M: Ints
    """The user's first event."""
    stop_M: Ints
    """The event after the last one that it holds."""
    is_late_M: Bools
    """Whether it holds rows of validation beside those of training."""
    shown_E: Ints
    """What each event is shown: the last snapshot all of whose rows are older, `CUT` or `NOTHING`. One that holds rows
    of validation is thus for rows of test alone."""


def find(events: pa.Table, users: int, most: int) -> Snapshots:
    """The snapshots of the first users of a partition.

    Args:
        events: rows of `schema.EVENTS`, all of the partition.
        users: how many users; others are shown nothing.
        most: training histories of a user at most, the one as of the cut included: the longest ones.
    """
    split_E, earlier_E = events["split"].to_numpy(), events["earlier"].to_numpy()
    starts = np.append(np.flatnonzero(earlier_E == 0), len(events))
    start_U, end_U = starts[:users], starts[1 : users + 1]
    train_N, late_N = np.flatnonzero(split_E == TRAIN), np.flatnonzero(split_E <= VALID)
    trained_U = np.searchsorted(train_N, end_U) - np.searchsorted(train_N, start_U)
    powers_U = np.frexp(trained_U - 1)[1].astype(np.int64)  # how many of 1, 2, 4 ... are fewer than the training rows
    kept_U = np.minimum(powers_U, most - 1)
    told_E = np.r_[0, np.cumsum((split_E == VALID) & (events["label"].to_numpy() > 0.5))]
    count_U = kept_U + 1 + (told_E[end_U] > told_E[start_U])
    line_K = np.repeat(np.arange(len(count_U)), count_U)
    nth_K = np.arange(len(line_K)) - (np.cumsum(count_U) - count_U)[line_K]
    is_cut_K, is_late_K = nth_K == kept_U[line_K], nth_K > kept_U[line_K]
    rows_K = np.where(nth_K < kept_U[line_K], 1 << ((powers_U - kept_U)[line_K] + nth_K), trained_U[line_K])
    stop_K = train_N[np.searchsorted(train_N, start_U)[line_K] + rows_K - 1] + 1
    stop_K[is_late_K] = late_N[np.searchsorted(late_N, end_U[line_K[is_late_K]]) - 1] + 1
    number_K = np.where(is_cut_K, CUT, np.cumsum(~is_cut_K) - 1)
    shown_E = _show(events, line_K, stop_K, number_K)
    line_M = line_K[~is_cut_K]
    return Snapshots(line_M, start_U[line_M], stop_K[~is_cut_K], is_late_K[~is_cut_K], shown_E)


def _show(events: pa.Table, line_K: Ints, stop_K: Ints, number_K: Ints) -> Ints:
    """`Snapshots.shown_E`, where snapshots and cuts stand in the order of their users and ends."""
    is_first_E = events["earlier"].to_numpy() == 0
    older_E = np.arange(len(events)) - events["earlier"].to_numpy() + events["before"].to_numpy()
    last_E = np.searchsorted(stop_K, older_E, side="right") - 1  # -1 finds the one appended last, which is nobody's
    is_own_E = np.append(line_K, -1)[last_E] == np.cumsum(is_first_E) - 1
    return np.where(is_own_E, np.append(number_K, NOTHING)[last_E], NOTHING)


def histories(
    events: pa.Table, found: Snapshots, chosen_M: Ints, user_ids: Column, titles: Column, scenario_ids: Sequence[str]
) -> pa.Table:
    """Some snapshots as rows of `schema.HISTORIES`, whose `user` is the snapshot's number.

    `user_ids` are by place in `histories`, `titles` of items and `scenario_ids` by number.
    """
    first_M, is_late_M = found.first_M[chosen_M], found.is_late_M[chosen_M]
    size_M = found.stop_M[chosen_M] - first_M
    line_N = np.repeat(np.arange(len(chosen_M)), size_M)
    row_N = np.arange(len(line_N)) + (first_M - (np.cumsum(size_M) - size_M))[line_N]
    is_held_N = events["split"].to_numpy()[row_N] <= np.where(is_late_M, VALID, TRAIN)[line_N]
    line_N, row_N = line_N[is_held_N], row_N[is_held_N]
    item_E, scenario_E, label_E = (events[name].to_numpy() for name in ("item", "scenario", "label"))
    rows = Past(line_N, item_E[row_N], scenario_E[row_N], label_E[row_N], row_N)
    columns = {
        "user": pa.array(chosen_M),
        "user_id": user_ids.take(found.line_M[chosen_M]),
        "interactions": pa.array(np.bincount(line_N, minlength=len(chosen_M))),
        "history": shelves(rows, line_N, len(chosen_M), titles, [*scenario_ids]),
    }
    return pa.Table.from_pydict(columns, schema.HISTORIES)


def read_histories(data: StageOutput, partition: int, start: int, stop: int, most: int) -> pa.Table:
    """`histories` of the snapshots of a partition's users [start, stop)."""
    events = data.table(partitions.file_name("events", partition))
    user_ids = data.table(partitions.file_name("histories", partition), ["user_id"])["user_id"]
    found = find(events, stop, most)
    chosen_M = np.flatnonzero(found.line_M >= start)
    titles = data.table("items.parquet", ["title"])["title"]
    scenario_ids = strings(data.table("scenarios.parquet", ["scenario_id"])["scenario_id"])
    return histories(events, found, chosen_M, user_ids, titles, scenario_ids)
