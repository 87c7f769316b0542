"""Users' events -> what a bundle keeps of their pasts, and codes that are pooled from them, partition by partition.

Of everything that `prepare` knows, rows of validation and test included: serving is later than all of them. Codes are
pooled from the very events that are kept, so that those of a bundle, of a refresh and of a request agree.

Shape suffixes: E events of a partition, U its users with any, I items, S scenarios, D numbers of an item's vector.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch

from llm4msr.arrays import Array, Column, Halves, Ints
from llm4msr.bundle import id_table
from llm4msr.bundle.pasts import Events
from llm4msr.data import partitions
from llm4msr.data.interactions import run_starts
from llm4msr.knowledge import pooling
from llm4msr.knowledge.forget import leave_out
from llm4msr.model.meta import KnowledgeCode
from llm4msr.storage import StageOutput
from llm4msr.storage.vectors import to_column
from llm4msr.training.pasts import Pasts

USERS_AT_ONCE = 4096
"""Users whose items' vectors are held at once."""


class Numbers(NamedTuple):
    """What the numbers of prepared data are in a bundle."""

    item_I: Ints
    """Rows in its table of items, -1 for what it does not know."""
    scenario_S: Ints
    """Scenario numbers, 0 likewise."""


class Source(NamedTuple):
    """Whose events are read, and how."""

    prepared: StageOutput
    most: int
    """Events of a user at most."""
    numbers: Numbers
    """Of the data's items and scenarios in the bundle."""
    forget: Column
    """Raw ids of users of whom nothing is kept."""

    def latest(self, partition: int) -> pa.Table:
        """The latest events of a partition's users, as `Pasts.latest` gives them."""
        return Pasts(self.prepared, self.most, fresh=True).latest(partition, self.numbers.item_I >= 0)


def events_of(partition: int, source: Source) -> pa.Table:
    """The users of a partition: id, and events as `Events.pack` gives them."""
    events, numbers = source.latest(partition), source.numbers
    item_E, scenario_E = numbers.item_I[events["item"]], numbers.scenario_S[events["scenario"]]
    packed = Events(item_E, scenario_E, events["label"].to_numpy() > 0.5).pack()
    start_U = run_starts(events["user"].to_numpy())
    offsets = pa.array(2 * np.r_[start_U, len(events)])
    lists = pa.LargeListArray.from_arrays(offsets, pa.array(packed)).cast(id_table.LIST)
    return _of_users(source, partition, events["user"].to_numpy()[start_U], "events", lists)


def codes_of(partition: int, source: Source, vector_ID: Array, coder: KnowledgeCode) -> pa.Table:
    """The users of a partition who have an item with a vector: id, and the code, pooled from what `events_of` keeps.

    Args:
        partition: its number.
        source: of the events.
        vector_ID: of the bundle's items by row, float16.
        coder: of the trained net.
    """
    events = source.latest(partition)
    starts = run_starts(events["user"].to_numpy())[::USERS_AT_ONCE].tolist()
    blocks = [events.slice(first, end - first) for first, end in pairwise([*(starts or [0]), len(events)])]
    pooled = [_pooled(block, source.numbers, vector_ID, coder) for block in blocks]
    user_U, code_UK = (np.concatenate(parts) for parts in zip(*pooled, strict=True))
    return _of_users(source, partition, user_U, "code", to_column(code_UK))


@torch.inference_mode()
def _pooled(events: pa.Table, numbers: Numbers, vector_ID: Array, coder: KnowledgeCode) -> tuple[Ints, Halves]:
    """The users with a code, int64 [U], and their codes, float16 [U, K]."""
    user_E, item_E = events["user"].to_numpy(), numbers.item_I[events["item"]]
    start_U, vector_ED = run_starts(user_E), vector_ID.take(item_E, axis=0)
    known_E, end_U = np.asarray(vector_ED.any(axis=1)), np.r_[start_U[1:], len(events)][: len(start_U)]
    z_UZ = pooling.pool(vector_ED, events["label"].to_numpy() > 0.5, known_E, start_U, end_U).astype(np.float16)
    is_known_U = np.logical_or.reduceat(known_E, start_U) if len(start_U) else np.zeros(0, bool)
    code_UK = coder(torch.from_numpy(z_UZ), torch.from_numpy(is_known_U)).half().numpy()
    return user_E[start_U][is_known_U], code_UK[is_known_U]


def _of_users(source: Source, partition: int, user_U: Ints, name: str, values: Column) -> pa.Table:
    """`id` and the values of these users, less those to forget."""
    prepared = source.prepared
    users = partitions.read(prepared, "users", partition, ["user_id"])["user_id"]
    ids = users.take(pa.array(user_U - partitions.offsets(prepared, "users")[partition])).combine_chunks()
    return leave_out(pa.table([ids, values], ["id", name]), source.forget)
