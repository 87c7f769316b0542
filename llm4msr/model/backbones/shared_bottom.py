"""Shared-Bottom (Caruana, Multitask Learning, 1997): one network for all scenarios, a tower for each."""

from torch import Tensor, nn

from llm4msr.config.model import ModelConfig
from llm4msr.model.backbones.base import mlp, tower
from llm4msr.model.backbones.row_groups import RowGroups
from llm4msr.model.fold import Fold, linears, through


class SharedBottom(nn.Module):
    """One network for all scenarios, then a tower per scenario."""

    def __init__(self, width: int, scenarios: int, config: ModelConfig):
        super().__init__()
        self.bottom = mlp(width, config.hidden, config.dropout)
        self.towers = nn.ModuleList(tower(config.hidden[-1], [config.tower], config.dropout) for _ in range(scenarios))

    def forward(self, x_BD: Tensor, scenario_B: Tensor) -> Tensor:
        """Logits [B]."""
        return RowGroups(scenario_B, len(self.towers)).through(self.towers, self.bottom(x_BD))[:, 0]

    def fold(self, scenario: int) -> Fold:
        """In one scenario."""
        first, *rest = linears(self.bottom) + linears(self.towers[scenario])
        return Fold([first], lambda hidden_HB: through(rest, hidden_HB)[0])
