"""What the ranker sees of a row: the numbers of its features, and their embedding.

A slot is one number of a row. A single-valued field has one slot, a many-valued one has several, averaged.
All fields share one embedding table, in which each field has its own range; the first number of a range means
unknown (or, in a many-valued field, nothing).

Shape suffixes: B rows, S slots, E embedding width, F fields, N slots of one field, V values.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from llm4msr.arrays import Ints

Side = Literal["user", "item", "scenario", "context"]

IDS = {("user", "user_id"), ("item", "item_id"), ("scenario", "scenario_id")}
"""Sides and names of the fields that are ids; a context field `user_id`, say, is a field like any other."""

FEW_VALUES = 256
"""How many values a many-valued field may have for its means to be taken by one matrix product over all of them."""


@dataclass(frozen=True)
class Field:
    """One feature: whose it is, how many numbers it has (0 = unknown included), and how many slots it takes."""

    name: str
    side: Side
    size: int
    slots: int


def slot_starts(fields: list[Field], side: Side) -> Ints:
    """[S]: where the range of each slot's field begins in the embedding table, for the fields of one side."""
    begins = np.cumsum([0, *(field.size for field in fields)])
    slots = [np.full(f.slots, begin) for f, begin in zip(fields, begins, strict=False) if f.side == side]
    return np.concatenate([*slots, np.zeros(0, np.int64)])


class FeatureEmbedding(nn.Module):
    """Rows' slots -> the concatenated embeddings of their fields, `x` in the formulas of `net`."""

    _first_F: Tensor
    _id_columns: Tensor
    _id_starts: Tensor

    def __init__(self, fields: list[Field], dim: int):
        super().__init__()
        self.table = nn.Embedding(sum(field.size for field in fields), dim)
        nn.init.normal_(self.table.weight, std=0.05)
        self.width = dim * len(fields)
        self._fields = fields
        self._starts: list[int] = np.cumsum([0, *(field.size for field in fields)]).tolist()
        self._columns: list[int] = np.cumsum([0, *(field.slots for field in fields)]).tolist()
        ids = [i for i, field in enumerate(fields) if (field.side, field.name) in IDS]
        for name, numbers in (
            ("_first_F", self._columns[: len(fields)]),
            ("_id_columns", [self._columns[i] for i in ids]),
            ("_id_starts", [self._starts[i] for i in ids]),
        ):
            self.register_buffer(name, torch.tensor(numbers), persistent=False)

    def forward(self, slots_BS: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """[B, F * E] in this format; the table and its gradient are float32."""
        place_BF, means = slots_BS.index_select(1, self._first_F), []
        for i, (field, start, at) in enumerate(zip(self._fields, self._starts, self._columns, strict=False)):
            if field.slots > 1:
                means.append(_Mean(i, slots_BS[:, at : at + field.slots], start, field.size))
                place_BF[:, i] = start
        x_BFE: Tensor = _Lookup.apply(self.table.weight, place_BF, means, self.table.sparse, dtype)
        return x_BFE.flatten(1)

    def hide(self, slots_BS: Tensor, share: float) -> Tensor:
        """A copy in which that share of user, item and scenario ids is unknown, so that unknown gets trained."""
        hidden = slots_BS.clone()
        drawn = torch.rand(len(slots_BS), len(self._id_columns), device=slots_BS.device)
        row_H, id_H = (drawn < share).nonzero(as_tuple=True)
        hidden[row_H, self._id_columns[id_H]] = self._id_starts[id_H]
        return hidden

    def item_ids(self, slots_BS: Tensor) -> Tensor:
        """int64 [B]: the places of the items' ids in the table."""
        return slots_BS[:, self.item_column]

    @property
    def item_column(self) -> int:
        """The slot of the item's id."""
        return next(self._columns[i] for i, f in enumerate(self._fields) if (f.side, f.name) == ("item", "item_id"))

    def scenarios(self, slots_BS: Tensor) -> Tensor:
        """int64 [B]: the scenarios' numbers, which the slots tell too; 0 where `hide` hid the scenario."""
        at = next(i for i, field in enumerate(self._fields) if field.side == "scenario")
        return slots_BS[:, self._columns[at]] - self._starts[at]


class _Mean:
    """The mean embedding of a many-valued field in each row; 0 where a row has no value."""

    def __init__(self, field: int, slots_BN: Tensor, start: int, size: int):
        self.field, self.start, self.end = field, start, start + size
        filled_BN = (slots_BN > start).float()
        self.slots_BN, self.share_BN = slots_BN, filled_BN / filled_BN.sum(1, keepdim=True).clamp(min=1)
        self.share_BV: Tensor | None = None
        if size <= FEW_VALUES:  # then a product over all values costs less than the rows of the table one by one
            shares_BV = torch.zeros(len(slots_BN), size, device=slots_BN.device)
            self.share_BV = shares_BV.scatter_add_(1, slots_BN - start, self.share_BN)

    def embed(self, table_VE: Tensor) -> Tensor:
        """[B, E]."""
        if self.share_BV is not None:
            return self.share_BV @ table_VE[self.start : self.end]
        values_BNE = table_VE.index_select(0, self.slots_BN.flatten()).view(*self.slots_BN.shape, table_VE.shape[1])
        return torch.bmm(self.share_BN[:, None], values_BNE)[:, 0]

    def add_gradient(self, gradient_VE: Tensor, out_BE: Tensor) -> None:
        """Write the table's gradient in this field's range, from that of `embed`'s output."""
        if self.share_BV is not None:
            gradient_VE[self.start : self.end] = self.share_BV.T @ out_BE
            return
        gradient_VE[self.start] = 0
        gradient_VE.index_add_(0, *self._gradient_of_values(out_BE))

    def sparse_gradient(self, out_BE: Tensor) -> tuple[Tensor, Tensor]:
        """The same as rows of the table [N], and what is added to each [N, E]; a row can come several times."""
        if self.share_BV is not None:
            return torch.arange(self.start, self.end, device=out_BE.device), self.share_BV.T @ out_BE
        return self._gradient_of_values(out_BE)

    def _gradient_of_values(self, out_BE: Tensor) -> tuple[Tensor, Tensor]:
        values_BNE = self.share_BN[..., None] * out_BE[:, None]
        return self.slots_BN.flatten(), values_BNE.flatten(0, 1)


class _Lookup(torch.autograd.Function):
    """Rows of the table [B, F, E] at places [B, F], but means where a field is many-valued.

    Makes one gradient of the table in one pass, and without the copies that cutting and joining fields would take.
    The place of a many-valued field is the start of its range, which no mean reads. A `sparse` gradient holds the
    rows of the batch alone.
    """

    @staticmethod
    def forward(
        context: Any, table_VE: Tensor, place_BF: Tensor, means: list[_Mean], sparse: bool, dtype: torch.dtype
    ) -> Tensor:
        small = len(table_VE) <= place_BF.numel()  # then its rows are cast before they are copied, not after
        rows_VE = table_VE.to(dtype) if small else table_VE
        x_BFE = rows_VE.index_select(0, place_BF.flatten()).view(*place_BF.shape, table_VE.shape[1]).to(dtype)
        for mean in means:
            x_BFE[:, mean.field] = mean.embed(table_VE)
        context.place_BF, context.means, context.values, context.sparse = place_BF, means, len(table_VE), sparse
        return x_BFE

    @staticmethod
    def backward(context: Any, gradient_BFE: Tensor) -> tuple[Tensor, None, None, None, None]:
        make = _sparse_gradient if context.sparse else _dense_gradient
        gradient_VE = make(context.values, gradient_BFE.float(), context.place_BF, context.means)
        return gradient_VE, None, None, None, None


def _dense_gradient(values: int, gradient_BFE: Tensor, place_BF: Tensor, means: list[_Mean]) -> Tensor:
    gradient_VE = gradient_BFE.new_zeros(values, gradient_BFE.shape[-1])
    gradient_VE.index_add_(0, place_BF.flatten(), gradient_BFE.flatten(0, 1))
    for mean in means:
        mean.add_gradient(gradient_VE, gradient_BFE[:, mean.field])
    return gradient_VE


def _sparse_gradient(values: int, gradient_BFE: Tensor, place_BF: Tensor, means: list[_Mean]) -> Tensor:
    averaged = {mean.field for mean in means}
    single = [field for field in range(place_BF.shape[1]) if field not in averaged]
    parts = [(place_BF[:, single].flatten(), gradient_BFE[:, single].flatten(0, 1))]
    parts += [mean.sparse_gradient(gradient_BFE[:, mean.field]) for mean in means]
    rows_N, added_NE = (torch.cat(part) for part in zip(*parts, strict=True))
    shape = (values, gradient_BFE.shape[-1])  # the lookup has checked the rows
    return torch.sparse_coo_tensor(rows_N[None], added_NE, shape, check_invariants=False)
