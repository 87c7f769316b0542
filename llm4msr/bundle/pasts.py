"""What users took before, as serving has it: the latest events of each, and what a match reads of them.

An event is two int32 numbers in `pasts.arrow`: the item's row in `items.arrow`, and twice the scenario's number, plus 1
where the user liked the item. A user's stand together, the oldest first: 8 bytes an event.

Shape suffixes: N requests, B candidates of all of them, E events of a past.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from llm4msr.arrays import AnyInts, Array, Bools, Ints, Ints32, Singles
from llm4msr.bundle import id_table
from llm4msr.bundle.id_table import IdTable, Partition
from llm4msr.model.embedding import Field
from llm4msr.model.serving_match import MatchInput, RequestPast


class Events(NamedTuple):
    """Events of a user, the oldest first."""

    item_E: AnyInts
    """Rows in `items.arrow`."""
    scenario_E: AnyInts
    """Scenario numbers."""
    liked_E: Bools
    """Whether the user liked the item."""

    def pack(self) -> Ints32:
        """The numbers of the file, int32 [2 E]."""
        return np.stack([self.item_E, 2 * self.scenario_E + self.liked_E], axis=1).astype(np.int32).ravel()

    @classmethod
    def unpack(cls, numbers: Ints32) -> "Events":
        """From the numbers of the file, int32 [2 E]."""
        return cls(numbers[::2], numbers[1::2] >> 1, (numbers[1::2] & 1).astype(bool))


SCHEMA = id_table.table_schema({"events": id_table.LIST}, {})
NOTHING = Events.unpack(np.zeros(0, np.int32))


class PastReader:
    """What a match reads of a request.

    Args:
        items: the table of items, with a column `unit` where the model matches vectors.
        fields: the features, in the order of the slots.
    """

    def __init__(self, items: Partition, fields: Sequence[Field]):
        slots = [field.name for field in fields if field.side == "item" for _ in range(field.slots)]
        self._place_I: Ints32 = items.numbers["slots"][:, slots.index("item_id")]
        self._unit_ID: Array = items.numbers.get("unit", np.zeros((len(items), 0), np.float16))

    def read(self, item_B: Ints, counts: Sequence[int], scenario_N: Ints, events: Sequence[Events]) -> MatchInput:
        """What `ServingNet` takes.

        Args:
            item_B: rows of the candidates in the table of items, -1 for unknown ones.
            counts: candidates of each request.
            scenario_N: numbers of the requests' scenarios.
            events: what the user of each request took before.
        """
        unit_BD = self._units(item_B)
        unit_BD[item_B < 0] = 0
        pasts = [self._past(one, scenario) for one, scenario in zip(events, scenario_N.tolist(), strict=True)]
        return MatchInput(torch.from_numpy(unit_BD), counts, pasts)

    def _past(self, events: Events, scenario: int) -> RequestPast:
        item_E, scenario_E, liked_E = events
        columns = (self._units(item_E), self._place_I.take(item_E).astype(np.int64), scenario_E == scenario, liked_E)
        return RequestPast(*map(torch.from_numpy, columns))

    def _units(self, item_E: AnyInts) -> Singles:
        return self._unit_ID.take(item_E, axis=0).astype(np.float32)


def stored_events(pasts: IdTable, user_id: str) -> Events:
    """What a bundle keeps of a user; nothing of who is not in it."""
    place = pasts.find(user_id)
    if place is None:
        return NOTHING
    partition, row = place
    return Events.unpack(partition.lists["events"][row])
