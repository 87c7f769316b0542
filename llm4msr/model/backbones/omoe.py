"""OMoE, the one-gate mixture that MMoE is measured against (Ma et al., KDD 2018,
https://doi.org/10.1145/3219819.3220007): experts, mixed by one gate for all scenarios, a tower for each.
"""

from torch import Tensor, nn

from llm4msr.config.model import ModelConfig
from llm4msr.model.backbones.base import mix, mlp, tower
from llm4msr.model.backbones.row_groups import RowGroups
from llm4msr.model.fold import Fold, linear, linears, mixture, side_by_side


class OMoE(nn.Module):
    """Shared experts, one gate for all scenarios, a tower per scenario."""

    def __init__(self, width: int, scenarios: int, config: ModelConfig):
        super().__init__()
        self.experts = nn.ModuleList(mlp(width, config.hidden, config.dropout) for _ in range(config.experts))
        self.gate = nn.Linear(width, config.experts)
        self.towers = nn.ModuleList(tower(config.hidden[-1], [config.tower], config.dropout) for _ in range(scenarios))

    def forward(self, x_BD: Tensor, scenario_B: Tensor) -> Tensor:
        """Logits [B]."""
        mixed_BH = mix(self.gate(x_BD), [expert(x_BD) for expert in self.experts])
        return RowGroups(scenario_B, len(self.towers)).through(self.towers, mixed_BH)[:, 0]

    def fold(self, scenario: int) -> Fold:
        """In one scenario."""
        return mixture(side_by_side(self.experts), linear(self.gate), linears(self.towers[scenario]))
