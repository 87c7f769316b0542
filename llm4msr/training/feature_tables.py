"""The places of users', items' and scenarios' features in the embedding table, looked up row by row."""

from itertools import chain

import numpy as np
import torch
from torch import Tensor

from llm4msr.arrays import Ints, Ints32
from llm4msr.config import ModelConfig
from llm4msr.data import catalogue, partitions
from llm4msr.data.partitioned_rows import PartitionedRows
from llm4msr.model.embedding import Field, slot_starts
from llm4msr.storage import StageOutput
from llm4msr.training.user_features import UserFeatures, list_width, matrix

_DEFAULT = ModelConfig()


class FeatureTables:
    """The features of every user, item and scenario: lookups instead of joins.

    Args:
        fields: in the order user, item, scenario, context.
        users: int32 [U, S], places of each user's features in the embedding table; user 0 is the unknown one.
        items_IS: int64, the numbers of each item's features, row 0 for the unknown one.
        scenarios: how many, the unknown one included.
    """

    def __init__(self, fields: list[Field], users: PartitionedRows, items_IS: Ints, scenarios: int):
        self.fields, self.users, self.scenarios = fields, users, scenarios
        self.items_IS = torch.from_numpy(items_IS + slot_starts(fields, "item"))
        slots = chain.from_iterable([f.name] * f.slots for f in fields if f.side == "item")
        self._id_places_I = self.items_IS[:, list(slots).index("item_id")].contiguous()
        self.user_slots = len(slot_starts(fields, "user"))
        self.scenario_start = int(slot_starts(fields, "scenario")[0])
        self.context_start = torch.from_numpy(slot_starts(fields, "context"))

    @classmethod
    def open(cls, prepared: StageOutput, model: ModelConfig = _DEFAULT) -> "FeatureTables":
        """From the output of `prepare`; `model` says what becomes of users' ids.

        Users' files are read when their partition is looked up; items are held whole.
        """
        users = UserFeatures(prepared, model)
        fields, sizes = [*users.fields], catalogue.field_sizes(prepared)
        items, numbers = prepared.table("items.parquet"), []
        for name, size in sizes["item"].items():
            column = items[f"f:{name}"]
            numbers.append(matrix(column, list_width(column)))
            fields.append(Field(name, "item", size + 1, numbers[-1].shape[1]))
        scenarios = prepared.table("scenarios.parquet", ["scenario"]).num_rows
        fields.append(Field("scenario_id", "scenario", scenarios, 1))
        fields += [Field(name, "context", size + 1, 1) for name, size in sizes["context"].items()]
        start_S = slot_starts(fields, "user")

        def open_partition(partition: int) -> Ints32:
            return (users.numbers(partition) + start_S).astype(np.int32)

        slots = PartitionedRows(partitions.offsets(prepared, "users"), open_partition)
        return cls(fields, slots, np.concatenate(numbers, axis=1), scenarios)

    def item_places(self, items: Tensor) -> Tensor:
        """int64 of the same shape: places of items' ids in the embedding table, of items' numbers."""
        return self._id_places_I[items]

    def slots(self, user_B: Tensor, item_B: Tensor, scenario_B: Tensor, context_BC: Tensor) -> Tensor:
        """int64 [B, S]: places of the rows' features in the embedding table."""
        user_BS = torch.from_numpy(self.users.take(user_B.numpy()))
        sides = [user_BS.long(), self.items_IS.index_select(0, item_B)]
        rest = [(scenario_B + self.scenario_start)[:, None], context_BC + self.context_start]
        return torch.cat([*sides, *rest], dim=1)
