"""Users' events -> what a bundle keeps of their pasts, and codes that are pooled from them, partition by partition.

Of everything that `prepare` knows, rows of validation and test included: serving is later than all of them. Codes are
pooled from the very events that are kept, so that those of a bundle, of a refresh and of a request agree.

Shape suffixes: E events of a partition, U its users with any, I items, S scenarios, D numbers of an item's vector.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch

from llm4msr.arrays import Array, Column, Ints
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


class Numbers(NamedTuple):
    """What the numbers of prepared data are in a bundle."""

    item_I: Ints
    """Rows in its table of items, -1 for what it does not know."""
    scenario_S: Ints
    """Scenario numbers, 0 likewise."""


def read_all(prepared: StageOutput, pasts: Pasts, numbers: Numbers, forget: Column) -> Iterator[pa.Table]:
    """A table for each partition: id, and events as `Events.pack` gives them.

    Args:
        prepared: the data.
        pasts: of all its users.
        numbers: of its items and scenarios in the bundle.
        forget: raw ids of users of whom nothing is kept.
    """
    for number in range(partitions.count(prepared)):
        events = pasts.latest(number, numbers.item_I >= 0)
        item_E, scenario_E = numbers.item_I[events["item"]], numbers.scenario_S[events["scenario"]]
        packed = Events(item_E, scenario_E, events["label"].to_numpy() > 0.5).pack()
        start_U = run_starts(events["user"].to_numpy())
        offsets = pa.array(2 * np.r_[start_U, len(events)])
        lists = pa.LargeListArray.from_arrays(offsets, pa.array(packed)).cast(id_table.LIST)
        yield _of_users(prepared, number, events["user"].to_numpy()[start_U], "events", lists, forget)


def encode_all(
    prepared: StageOutput, pasts: Pasts, numbers: Numbers, vector_ID: Array, coder: KnowledgeCode, forget: Column
) -> Iterator[pa.Table]:
    """A table for each partition: id, and the code of who has an item with a vector, pooled from what `read_all` keeps.

    Args:
        prepared: the data.
        pasts: of all its users.
        numbers: of its items and scenarios in the bundle.
        vector_ID: of the bundle's items by row, float16.
        coder: of the trained net.
        forget: raw ids of users without a code.
    """
    for number in range(partitions.count(prepared)):
        events = pasts.latest(number, numbers.item_I >= 0)
        item_E, start_U = numbers.item_I[events["item"]], run_starts(events["user"].to_numpy())
        vector_ED = vector_ID.take(item_E, axis=0)
        known_E, end_U = np.asarray(vector_ED.any(axis=1)), np.r_[start_U[1:], len(events)][: len(start_U)]
        z_UZ = pooling.pool(vector_ED, events["label"].to_numpy() > 0.5, known_E, start_U, end_U).astype(np.float16)
        is_known_U = np.logical_or.reduceat(known_E, start_U) if len(start_U) else np.zeros(0, bool)
        with torch.inference_mode():
            code_UK = coder(torch.from_numpy(z_UZ), torch.from_numpy(is_known_U)).half().numpy()
        user_U = events["user"].to_numpy()[start_U]
        yield _of_users(prepared, number, user_U[is_known_U], "code", to_column(code_UK[is_known_U]), forget)


def _of_users(
    prepared: StageOutput, partition: int, user_U: Ints, name: str, values: Column, forget: Column
) -> pa.Table:
    """`id` and the values of these users, less those to forget."""
    users = partitions.read(prepared, "users", partition, ["user_id"])["user_id"]
    ids = users.take(pa.array(user_U - partitions.offsets(prepared, "users")[partition])).combine_chunks()
    return leave_out(pa.table([ids, values], ["id", name]), forget)
