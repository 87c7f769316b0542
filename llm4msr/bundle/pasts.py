"""What users took before, as serving has it: the latest events of each, and what a match reads of them.

An event is two int32 numbers in `pasts.arrow`: the item's row in `items.arrow`, and twice the scenario's number, plus 1
where the user liked the item. A user's stand together, the oldest first: 8 bytes an event.

Shape suffixes: N requests, B candidates of all of them, I items, E events of a past.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from llm4msr.arrays import AnyInts, Array, Bools, Ints, Ints32, Singles
from llm4msr.bundle import id_table
from llm4msr.bundle.id_table import Partition
from llm4msr.model.embedding import Field
from llm4msr.model.serving_match import MatchInput, RequestPast

SCHEMA = id_table.table_schema({"events": id_table.LIST}, {})


@dataclass(frozen=True, slots=True)
class Events:
    """Events of a user, the oldest first."""

    item_E: AnyInts
    """Rows in `items.arrow`."""
    scenario_E: AnyInts
    """Scenario numbers."""
    liked_E: Bools
    """Whether the user liked the item."""

    def __len__(self) -> int:
        return len(self.item_E)

    def pack(self) -> Ints32:
        """The numbers of the file, int32 [2 E]."""
        return np.stack([self.item_E, 2 * self.scenario_E + self.liked_E], axis=1).astype(np.int32).ravel()

    @classmethod
    def unpack(cls, numbers: Ints32) -> "Events":
        """From the numbers of the file, int32 [2 E]."""
        return cls(numbers[::2], numbers[1::2] >> 1, (numbers[1::2] & 1).astype(bool))

    def extend(self, newer: "Events") -> "Events":
        """These events, then the newer ones."""
        if not len(newer):
            return self
        return Events(
            np.concatenate([self.item_E, newer.item_E]),
            np.concatenate([self.scenario_E, newer.scenario_E]),
            np.concatenate([self.liked_E, newer.liked_E]),
        )

    def after(self, first: int) -> "Events":
        """Without so many of the oldest."""
        return Events(self.item_E[first:], self.scenario_E[first:], self.liked_E[first:])

    def latest(self, most: int) -> "Events":
        """The latest of them, so many at most."""
        return self if len(self) <= most else Events(self.item_E[-most:], self.scenario_E[-most:], self.liked_E[-most:])


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
        here_E = (events.scenario_E == scenario) & (scenario > 0)  # two unknown ones may differ
        places_E = self._place_I.take(events.item_E).astype(np.int64)
        return RequestPast(*map(torch.from_numpy, (self._units(events.item_E), places_E, here_E, events.liked_E)))

    def _units(self, item_E: AnyInts) -> Singles:
        return self._unit_ID.take(item_E, axis=0).astype(np.float32)
