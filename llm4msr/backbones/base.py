"""Pieces that backbones share. A backbone maps features and scenarios to logits: `forward(x_BD, scenario_B)`.

Law: a row's score never depends on the other rows of its batch, so there are no batch statistics anywhere.
Scenario 0 is the unknown one and has a tower of its own, trained on rows whose scenario is hidden.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def mlp(width: int, hidden: Sequence[int], dropout: float) -> nn.Sequential:
    """Linear, ReLU and dropout, once per hidden width."""
    layers: list[nn.Module] = []
    for out in hidden:
        layers += [nn.Linear(width, out), nn.ReLU(), nn.Dropout(dropout)]
        width = out
    return nn.Sequential(*layers)


class RowGroups:
    """Rows brought into the order of their groups (scenarios), so that each group's rows are one matrix."""

    def __init__(self, group_B: Tensor, groups: int):
        self.order_B = torch.argsort(group_B, stable=True)
        self.sizes: list[int] = torch.bincount(group_B, minlength=groups).tolist()

    def split(self, rows_BD: Tensor) -> list[Tensor]:
        """One [rows, D] matrix per group, empty ones included."""
        return list(rows_BD[self.order_B].split(self.sizes))

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The rows in the batch's order again."""
        joined = torch.cat(list(parts))
        return torch.empty_like(joined).index_copy(0, self.order_B, joined)


class Towers(nn.Module):
    """One small network per scenario that ends in a logit; a row passes through its own scenario's alone."""

    def __init__(self, scenarios: int, width: int, hidden: int, dropout: float):
        super().__init__()
        self.towers = nn.ModuleList(
            nn.Sequential(mlp(width, [hidden], dropout), nn.Linear(hidden, 1)) for _ in range(scenarios)
        )

    def forward(self, x_BD: Tensor, scenario_B: Tensor) -> Tensor:
        """Logits [B]."""
        rows = RowGroups(scenario_B, len(self.towers))
        parts = zip(self.towers, rows.split(x_BD), strict=True)
        return rows.join([tower(part)[:, 0] for tower, part in parts])
