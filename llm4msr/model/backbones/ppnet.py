"""PPNet of PEPNet (Chang et al., KDD 2023, https://doi.org/10.1145/3580305.3599884): what a row says of its user and
item scales the hidden layers of a tower.

Ours: the towers are scenarios, the paper's are tasks. The gates read all features, the ids of user and item among
them, and train none; the paper's train the ids through a second path. All towers share the gates, which see the
scenario as a feature. EPNet, the paper's other half, is a backbone of its own here.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from llm4msr.arrays import Singles
from llm4msr.config.model import ModelConfig
from llm4msr.model.backbones.base import Dropout, GateUnit, Logit
from llm4msr.model.backbones.row_groups import RowGroups
from llm4msr.model.fold import Fold, linears, relu, sigmoid


class PPNet(nn.Module):
    """A tower per scenario, whose hidden layers the row's own gates scale."""

    def __init__(self, width: int, scenarios: int, config: ModelConfig):
        super().__init__()
        widths = [width, *config.hidden, config.tower]
        self.gates = nn.ModuleList(GateUnit(width, config.hidden[-1], out) for out in widths[1:])
        self.layers = nn.ModuleList(
            nn.ModuleList(nn.Linear(a, b) for _ in range(scenarios)) for a, b in pairwise(widths)
        )
        self.last = nn.ModuleList(Logit(config.tower) for _ in range(scenarios))
        self.dropout = Dropout(config.dropout)

    def forward(self, x_BD: Tensor, scenario_B: Tensor) -> Tensor:
        """Logits [B]."""
        rows, prior_BD = RowGroups(scenario_B, len(self.last)), x_BD.detach()
        for layers, gate in zip(self.layers, self.gates, strict=True):
            assert isinstance(layers, nn.ModuleList)
            x_BD = self.dropout(torch.relu(rows.through(layers, x_BD)) * gate(prior_BD))
        return rows.through(self.last, x_BD)[:, 0]

    def fold(self, scenario: int) -> Fold:
        """In one scenario."""
        layers = [linears(of_scenarios)[scenario] for of_scenarios in self.layers]
        gates = [linears(gate) for gate in self.gates]
        (last,) = linears(self.last[scenario])

        def rest(x_OB: Singles, *hidden: Singles) -> Singles:
            for i, ((_, gate), hidden_HB) in enumerate(zip(gates, hidden, strict=True)):
                x_OB = relu(layers[i](x_OB) if i else x_OB) * (2 * sigmoid(gate(relu(hidden_HB))))
            return last(x_OB)[0]

        return Fold([layers[0], *(first for first, _ in gates)], rest)
