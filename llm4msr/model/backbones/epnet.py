"""EPNet of PEPNet (Chang et al., KDD 2023, https://doi.org/10.1145/3580305.3599884): the scenario scales the input.

Ours: the scenario's prior is an embedding of its own, since `x` does not say where the scenario's feature lies.
"""

import torch
from torch import Tensor, nn

from llm4msr.config.model import ModelConfig
from llm4msr.model.backbones.base import GateUnit, tower


class EPNet(nn.Module):
    """One network, whose input the scenario scales by a gate for each feature."""

    def __init__(self, width: int, scenarios: int, config: ModelConfig):
        super().__init__()
        self.scenario = nn.Embedding(scenarios, config.embedding_dim)
        self.gate = GateUnit(config.embedding_dim + width, config.hidden[-1], width)
        self.net = tower(width, [*config.hidden, config.tower], config.dropout)

    def forward(self, x_BD: Tensor, scenario_B: Tensor) -> Tensor:
        """Logits [B]. The gate reads the features and does not train them."""
        prior_BP = torch.cat([self.scenario(scenario_B), x_BD.detach()], dim=1)
        return self.net(x_BD * self.gate(prior_BP))[:, 0]
