"""AdaSparse (Yang et al., CIKM 2022, https://doi.org/10.1145/3511808.3557541): scenario and row decide which neurons of
each layer work, and how strongly.

A factor is `2 sigmoid(v)`, less a threshold, and zero below it (the paper's fusion of scaling and pruning). Ours:
the paper jumps from the threshold to zero, where rounding could switch a neuron between two batches; this cut is
continuous. Left out: the schedule that sharpens the sigmoid, and the loss that steers the share of zeros.
"""

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from llm4msr.arrays import Singles
from llm4msr.config.model import ModelConfig
from llm4msr.model.backbones.base import Logit, mlp
from llm4msr.model.fold import Fold, Linear, array, identity, linears, relu, sigmoid

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

    def fold(self, scenario: int) -> Fold:
        """In one scenario."""
        prior_P1 = array(self.scenario.weight)[scenario, :, None]
        weights, prior = [array(weight) for weight in self.pruners.parameters()], len(prior_P1)
        first, *pruners = [Linear(weight[:, prior:], weight[:, :prior] @ prior_P1) for weight in weights]
        bottom, *layers = linears(self.layers) + linears(self.last)

        def rest(x_DB: Singles, pruned_DB: Singles) -> Singles:
            x_DB = bottom(_factor(pruned_DB) * x_DB)
            for pruner, layer in zip(pruners, layers, strict=True):
                x_DB = relu(x_DB)
                x_DB = layer(_factor(pruner(x_DB)) * x_DB)
            return x_DB[0]

        return Fold([identity(first.weight.shape[1]), first], rest)


def _factor(pruned_DB: Singles) -> Singles:
    return relu(2 * sigmoid(pruned_DB) - np.float32(THRESHOLD))
