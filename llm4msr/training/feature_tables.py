"""The numbers of users', items' and scenarios' features, looked up row by row."""

from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from llm4msr.arrays import Column, Ints
from llm4msr.data import catalogue, partitions
from llm4msr.model.embedding import Field, slot_starts
from llm4msr.storage import StageOutput


class FeatureTables:
    """The numbers of every user's, item's and scenario's features: lookups instead of joins.

    Args:
        fields: in the order user, item, scenario, context.
        users_US: int64, the slots of each user, row 0 for the unknown one.
        items_IS: int64, the same for items.
    """

    def __init__(
        self,
        fields: list[Field],
        users_US: Ints,
        items_IS: Ints,
        scenarios: int,
    ):
        self.fields, self.scenarios = fields, scenarios
        self.users_US = torch.from_numpy(users_US + slot_starts(fields, "user"))
        self.items_IS = torch.from_numpy(items_IS + slot_starts(fields, "item"))
        self.scenario_start = int(slot_starts(fields, "scenario")[0])
        self.context_start = torch.from_numpy(slot_starts(fields, "context"))

    @classmethod
    def open(cls, prepared: StageOutput) -> "FeatureTables":
        """From the output of `prepare`."""
        sizes = catalogue.field_sizes(prepared)
        fields: list[Field] = []
        numbers = {}
        users = pa.concat_tables(partitions.read_each(prepared, "users"))
        sides: dict[Literal["user", "item"], pa.Table] = {"user": users, "item": prepared.table("items.parquet")}
        for side, table in sides.items():
            columns = []
            for name, size in sizes[side].items():
                columns.append(_slots(table[f"f:{name}"]))
                fields.append(Field(name, side, size + 1, columns[-1].shape[1]))
            numbers[side] = np.concatenate(columns, axis=1)
        scenarios = prepared.table("scenarios.parquet", ["scenario"]).num_rows
        fields.append(Field("scenario_id", "scenario", scenarios, 1))
        fields += [Field(name, "context", size + 1, 1) for name, size in sizes["context"].items()]
        return cls(fields, numbers["user"], numbers["item"], scenarios)

    def slots(self, user_B: Tensor, item_B: Tensor, scenario_B: Tensor, context_BC: Tensor) -> Tensor:
        """int64 [B, S]: places of the rows' features in the embedding table."""
        sides = [self.users_US.index_select(0, user_B), self.items_IS.index_select(0, item_B)]
        rest = [(scenario_B + self.scenario_start)[:, None], context_BC + self.context_start]
        return torch.cat([*sides, *rest], dim=1)


def _slots(column: Column) -> Ints:
    """int64 [N, slots] from a column of numbers, or of lists of numbers padded with 0."""
    lists = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if not isinstance(lists, pa.ListArray):
        return np.asarray(column.to_numpy())[:, None]
    ends = lists.offsets.to_numpy()
    lengths = np.diff(ends)
    padded = np.zeros((len(lists), max(int(lengths.max(initial=0)), 1)), np.int64)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = lists.flatten().to_numpy()
    return padded
