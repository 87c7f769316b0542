"""What the ranker sees of a row: the numbers of its features, and their embedding.

A slot is one number of a row. A single-valued field has one slot, a many-valued one has several, averaged.
All fields share one embedding table, in which each field has its own range; the first number of a range means
unknown (or, in a many-valued field, nothing).

Shape suffixes: B rows, S slots, E embedding width, F fields.
"""

import json
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor, nn
from upath import UPath

from llm4msr import storage

Side = Literal["user", "item", "scenario", "context"]


@dataclass(frozen=True)
class Field:
    """One feature: whose it is, how many numbers it has (0 = unknown included), and how many slots it takes."""

    name: str
    side: Side
    size: int
    slots: int


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
        users_US: npt.NDArray[np.int64],
        items_IS: npt.NDArray[np.int64],
        scenarios: int,
    ):
        self.fields, self.scenarios = fields, scenarios
        offsets = np.cumsum([0, *(field.size for field in fields)])
        by_slot = {field.name: np.full(field.slots, offset) for field, offset in zip(fields, offsets, strict=False)}

        def start(side: Side) -> npt.NDArray[np.int64]:
            return np.concatenate([by_slot[f.name] for f in fields if f.side == side] or [np.zeros(0, np.int64)])

        self.users_US = torch.from_numpy(users_US + start("user"))
        self.items_IS = torch.from_numpy(items_IS + start("item"))
        self.scenario_start = int(start("scenario")[0])
        self.context_start = torch.from_numpy(start("context"))

    @classmethod
    def open(cls, folder: UPath) -> "FeatureTables":
        """From the output of `prepare`, or from a bundle, which keeps the same files."""
        vocabularies: dict[str, dict[str, list[str]]] = json.loads(storage.read_bytes(folder / "fields.json"))
        fields: list[Field] = []
        numbers = {}
        for side in ("user", "item"):
            table = storage.read_table(folder / f"{side}s.parquet")
            columns = []
            for name, values in vocabularies[side].items():
                columns.append(_slots(table[f"f:{name}"]))
                fields.append(Field(name, side, len(values) + 1, columns[-1].shape[1]))
            numbers[side] = np.concatenate(columns, axis=1)
        scenarios = storage.read_table(folder / "scenarios.parquet", ["scenario"]).num_rows
        fields.append(Field("scenario_id", "scenario", scenarios, 1))
        fields += [Field(n, "context", len(v) + 1, 1) for n, v in vocabularies["context"].items()]
        return cls(fields, numbers["user"], numbers["item"], scenarios)

    def slots(self, user_B: Tensor, item_B: Tensor, scenario_B: Tensor, context_BC: Tensor) -> Tensor:
        """int64 [B, S]: places of the rows' features in the embedding table."""
        parts = [self.users_US[user_B], self.items_IS[item_B], (scenario_B + self.scenario_start)[:, None]]
        return torch.cat([*parts, context_BC + self.context_start], dim=1)


def _slots(column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """[N, slots] from a column of numbers, or of lists of numbers padded with 0."""
    if not pa.types.is_list(column.type):
        return np.asarray(column.to_numpy())[:, None]
    lists = column.combine_chunks()
    ends = lists.offsets.to_numpy()
    lengths = np.diff(ends)
    padded = np.zeros((len(lists), max(int(lengths.max(initial=0)), 1)), np.int64)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = lists.flatten().to_numpy()
    return padded


class FeatureEmbedding(nn.Module):
    """Rows' slots -> the concatenated embeddings of their fields (METHOD: `x`)."""

    def __init__(self, fields: list[Field], dim: int):
        super().__init__()
        self.table = nn.Embedding(sum(field.size for field in fields), dim)
        nn.init.normal_(self.table.weight, std=0.05)
        self.width = dim * len(fields)
        self._fields = fields
        self._starts: list[int] = np.cumsum([0, *(field.size for field in fields)]).tolist()

    def forward(self, slots_BS: Tensor) -> Tensor:
        """float32 [B, F * E]."""
        embedded_BSE = self.table(slots_BS)
        columns, at = [], 0
        for field, start in zip(self._fields, self._starts, strict=False):
            piece = embedded_BSE[:, at : at + field.slots]
            if field.slots == 1:
                columns.append(piece[:, 0])
            else:
                filled_BV = (slots_BS[:, at : at + field.slots] > start).to(piece.dtype)
                columns.append((piece * filled_BV[..., None]).sum(1) / filled_BV.sum(1, keepdim=True).clamp(min=1))
            at += field.slots
        return torch.cat(columns, dim=1)

    def hide(self, slots_BS: Tensor, share: float) -> Tensor:
        """A copy in which that share of user, item and scenario ids is unknown, so that unknown gets trained."""
        hidden, at = slots_BS.clone(), 0
        for field, start in zip(self._fields, self._starts, strict=False):
            if field.name in ("user_id", "item_id", "scenario_id"):
                chosen_B = torch.rand(len(slots_BS), device=slots_BS.device) < share
                hidden[:, at] = torch.where(chosen_B, start, slots_BS[:, at])
            at += field.slots
        return hidden
