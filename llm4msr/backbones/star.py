"""STAR (Sheng et al., CIKM 2021, https://doi.org/10.1145/3459637.3481941): shared weights times each scenario's own.

Ours: the partitioned normalisation works on a row's features (layer norm), not on the batch's statistics, so
that a row scores the same alone and in any batch; and the last layer has no activation.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llm4msr.backbones.base import RowGroups, mlp
from llm4msr.config import ModelConfig


class StarLayer(nn.Module):
    """`(W * W_s) x + b + b_s`; the scenarios' own parts start as the identity of each operation."""

    def __init__(self, width: int, out: int, scenarios: int):
        super().__init__()
        self.shared = nn.Linear(width, out)
        self.weight_SOD = nn.Parameter(torch.ones(scenarios, out, width))
        self.bias_SO = nn.Parameter(torch.zeros(scenarios, out))

    def forward(self, parts: list[Tensor]) -> list[Tensor]:
        """One matrix of rows per scenario, [rows, D] -> [rows, O]."""
        weights_SOD = self.shared.weight * self.weight_SOD
        biases_SO = self.shared.bias + self.bias_SO
        return [F.linear(part, weights_SOD[s], biases_SO[s]) for s, part in enumerate(parts)]


class Star(nn.Module):
    """See the module."""

    def __init__(self, width: int, scenarios: int, config: ModelConfig):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.scale_SD = nn.Parameter(torch.ones(scenarios, width))
        self.shift_SD = nn.Parameter(torch.zeros(scenarios, width))
        widths = [width, *config.hidden, config.tower]
        self.layers = nn.ModuleList(StarLayer(a, b, scenarios) for a, b in pairwise(widths))
        self.last = StarLayer(config.tower, 1, scenarios)
        self.auxiliary = nn.Sequential(mlp(width, [config.tower], config.dropout), nn.Linear(config.tower, 1))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BD: Tensor, scenario_B: Tensor) -> Tensor:
        """Logits [B]: the star's and the auxiliary network's, added. The latter sees the scenario among `x_BD`."""
        x_BD = self.norm(x_BD) * self.scale_SD[scenario_B] + self.shift_SD[scenario_B]
        rows = RowGroups(scenario_B, len(self.scale_SD))
        parts = rows.split(x_BD)
        for layer in self.layers:
            parts = [self.dropout(torch.relu(part)) for part in layer(parts)]
        return rows.join(self.last(parts))[:, 0] + self.auxiliary(x_BD)[:, 0]
