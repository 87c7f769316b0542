"""EPNet of PEPNet (Chang et al., KDD 2023, https://doi.org/10.1145/3580305.3599884): the scenario scales the input.

Ours: the scenario's prior is an embedding of its own, since `x` does not say where the scenario's feature lies.
"""

import torch
from torch import Tensor, nn

from llm4msr.arrays import Singles
from llm4msr.config.model import ModelConfig
from llm4msr.model.backbones.base import GateUnit, tower
from llm4msr.model.fold import Fold, Linear, array, identity, linears, relu, sigmoid, through


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

    def fold(self, scenario: int) -> Fold:
        """In one scenario."""
        prior_P1 = array(self.scenario.weight)[scenario, :, None]
        gate, last_gate = linears(self.gate)
        prior = len(prior_P1)
        first = Linear(gate.weight[:, prior:], gate.bias + gate.weight[:, :prior] @ prior_P1)
        bottom, *top = linears(self.net)

        def rest(x_DB: Singles, hidden_HB: Singles) -> Singles:
            x_DB *= 2 * sigmoid(last_gate(relu(hidden_HB)))
            return through(top, bottom(x_DB))[0]

        return Fold([identity(len(last_gate.weight)), first], rest)
