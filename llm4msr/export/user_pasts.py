"""Users' latest events -> what a bundle keeps of their pasts, partition by partition.

Of everything that `prepare` knows, rows of validation and test included: serving is later than all of them.

Shape suffixes: E events of a partition, U its users with any, I items.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm4msr.arrays import Column, Ints
from llm4msr.bundle import id_table
from llm4msr.bundle.pasts import Events
from llm4msr.data import partitions
from llm4msr.data.interactions import run_starts
from llm4msr.storage import StageOutput
from llm4msr.training.pasts import Pasts


def read_all(prepared: StageOutput, pasts: Pasts, row_I: Ints, forget: Column) -> Iterator[pa.Table]:
    """A table for each partition: id, and events as `Events.pack` gives them.

    Args:
        prepared: what the model was trained on.
        pasts: of all its users.
        row_I: the row of each item number in the bundle's table of items.
        forget: raw ids of users of whom nothing is kept.
    """
    first_P = partitions.offsets(prepared, "users")
    for number, users in enumerate(partitions.read_each(prepared, "users", ["user_id"])):
        events = pasts.latest(number)
        user_E, item_E, scenario_E = (events[name].to_numpy() for name in ("user", "item", "scenario"))
        packed = Events(row_I[item_E], scenario_E, events["label"].to_numpy() > 0.5).pack()
        start_U = run_starts(user_E)
        offsets = pa.array(2 * np.r_[start_U, len(events)])
        ids = users["user_id"].take(pa.array(user_E[start_U] - first_P[number])).combine_chunks()
        lists = pa.LargeListArray.from_arrays(offsets, pa.array(packed)).cast(id_table.LIST)
        yield pa.table({"id": ids, "events": lists}).filter(pc.invert(pc.is_in(ids, value_set=forget)))
