"""What the nets read: a batch of rows, how much of each level of knowledge counts, and what a net is built from.

Shape suffixes: B rows, S slots of a row (and scenarios, in `scenarios_SZ`), N users, Z numbers of an LLM's vector.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


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

    def to(self, device: torch.device) -> "Batch":
        """The same on that device."""
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))


class Strengths(NamedTuple):
    """How much of each level of knowledge counts: 0 leaves it out, 1 is what was trained."""

    user: float = 1.0
    scenario: float = 1.0


WHOLE = Strengths()


@dataclass(frozen=True)
class KnowledgeStatistics:
    """What a model with knowledge is built from; all float32."""

    mean_Z: Tensor
    """Of the training users' vectors."""
    scale_Z: Tensor
    """Their standard deviation."""
    scenarios_SZ: Tensor
    """The scenarios' vectors, row 0 for the unknown scenario."""
