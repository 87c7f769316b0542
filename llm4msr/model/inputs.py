"""What the nets read: a batch of rows, how much of each level of knowledge counts, and what a net is built from.

Shape suffixes: B rows, S slots of a row (and scenarios, in `scenarios_SZ`), N users (and events of a past, in `_BN`), I
items of D numbers each, Z numbers of an LLM's vector.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Past(NamedTuple):
    """The candidate of each row, and its user's latest events before that row (N of them at most), the latest first."""

    candidate_B: Tensor
    """int64: item numbers, 0 = unknown."""
    item_BN: Tensor
    """int64: item numbers; 0 where a past is shorter than N, and for items that are unknown."""
    place_BN: Tensor
    """int64: places of these items' ids in the embedding table."""
    scenario_BN: Tensor
    """int64: scenario numbers."""
    liked_BN: Tensor
    """bool: whether the user liked the item."""


class Batch(NamedTuple):
    """Rows to score. Users are given once each (N of them), rows point to theirs."""

    slots_BS: Tensor
    """int64: places in the embedding table."""
    scenario_B: Tensor
    """int64: scenario numbers, 0 = unknown."""
    owner_B: Tensor
    """int64: which of the N users a row belongs to."""
    z_NZ: Tensor
    """float16: the users' LLM vectors; [N, 0] without user knowledge."""
    known_N: Tensor
    """bool: which users have one."""
    past: Past | None = None
    """For models that match it with the candidate (`model.match`)."""

    def to(self, device: torch.device) -> "Batch":
        """The same on that device."""
        past = self.past and Past._make(tensor.to(device, non_blocking=True) for tensor in self.past)
        *tensors, _ = self
        return Batch._make([*(tensor.to(device, non_blocking=True) for tensor in tensors), past])

    def places(self) -> Tensor:
        """int64: the places in the embedding table that a net may read for these rows, some of them several times."""
        places = self.slots_BS.flatten()
        return places if self.past is None else torch.cat([places, self.past.place_BN.flatten()])


class Strengths(NamedTuple):
    """How much of each level of knowledge counts: 0 leaves it out, 1 is what was trained."""

    user: float = 1.0
    scenario: float = 1.0


WHOLE = Strengths()


@dataclass(frozen=True)
class KnowledgeStatistics:
    """What a model with knowledge is built from; float32 where nothing else is said."""

    mean_Z: Tensor
    """Of the training users' vectors."""
    scale_Z: Tensor
    """Their standard deviation."""
    scenarios_SZ: Tensor
    """The scenarios' vectors, row 0 for the unknown scenario."""
    items_ID: Tensor | None = None
    """The items' vectors, float16, of unit length, zero for an item without one; None where users were read."""
