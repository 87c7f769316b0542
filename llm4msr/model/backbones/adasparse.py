"""AdaSparse (Yang et al., CIKM 2022, https://doi.org/10.1145/3511808.3557541): scenario and row decide which neurons of
each layer work, and how strongly.

A factor is `2 sigmoid(v)`, less a threshold, and zero below it (the paper's fusion of scaling and pruning). Ours:
the paper jumps from the threshold to zero, where rounding could switch a neuron between two batches; this cut is
continuous. Left out: the schedule that sharpens the sigmoid, and the loss that steers the share of zeros.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from llm4msr.config.model import ModelConfig
from llm4msr.model.backbones.base import Logit, mlp

THRESHOLD = 0.25


class AdaSparse(nn.Module):
    """A network whose neurons a row and its scenario scale or switch off, layer by layer."""

    def __init__(self, width: int, scenarios: int, config: ModelConfig):
        super().__init__()
        widths, prior = [width, *config.hidden, config.tower], config.embedding_dim
        self.scenario = nn.Embedding(scenarios, prior)
        self.pruners = nn.ModuleList(nn.Linear(prior + w, w, bias=False) for w in widths)
        self.layers = nn.ModuleList(mlp(a, [b], config.dropout) for a, b in pairwise(widths))
        self.last = Logit(config.tower)

    def forward(self, x_BD: Tensor, scenario_B: Tensor) -> Tensor:
        """Logits [B]."""
        prior_BP = self.scenario(scenario_B)
        for pruner, layer in zip(self.pruners, [*self.layers, self.last], strict=True):
            factor_BD = torch.relu(2 * torch.sigmoid(pruner(torch.cat([prior_BP, x_BD], dim=1))) - THRESHOLD)
            x_BD = layer(factor_BD * x_BD)
        return x_BD[:, 0]
