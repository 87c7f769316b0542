"""MMoE (Ma et al., KDD 2018, https://doi.org/10.1145/3219819.3220007): experts, mixed by each scenario's gate."""

from torch import Tensor, nn

from llm4msr.config.model import ModelConfig
from llm4msr.model.backbones.base import mix, mlp, tower
from llm4msr.model.backbones.row_groups import RowGroups
from llm4msr.model.fold import Fold, linears, mixture, side_by_side


class MMoE(nn.Module):
    """Shared experts, a gate and a tower per scenario."""

    def __init__(self, width: int, scenarios: int, config: ModelConfig):
        super().__init__()
        self.experts = nn.ModuleList(mlp(width, config.hidden, config.dropout) for _ in range(config.experts))
        self.gates = nn.ModuleList(nn.Linear(width, config.experts) for _ in range(scenarios))
        self.towers = nn.ModuleList(tower(config.hidden[-1], [config.tower], config.dropout) for _ in range(scenarios))

    def forward(self, x_BD: Tensor, scenario_B: Tensor) -> Tensor:
        """Logits [B]."""
        rows = RowGroups(scenario_B, len(self.towers))
        mixed_BH = mix(rows.through(self.gates, x_BD), [expert(x_BD) for expert in self.experts])
        return rows.through(self.towers, mixed_BH)[:, 0]

    def fold(self, scenario: int) -> Fold:
        """In one scenario."""
        (gate,) = linears(self.gates[scenario])
        return mixture(side_by_side(self.experts), gate, linears(self.towers[scenario]))
