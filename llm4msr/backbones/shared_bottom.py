"""Shared-Bottom (Caruana, Multitask Learning, 1997): one network for all scenarios, a tower for each."""

from torch import Tensor, nn

from llm4msr.backbones.base import Towers, mlp
from llm4msr.config import ModelConfig


class SharedBottom(nn.Module):
    """See the module."""

    def __init__(self, width: int, scenarios: int, config: ModelConfig):
        super().__init__()
        self.bottom = mlp(width, config.hidden, config.dropout)
        self.towers = Towers(scenarios, config.hidden[-1], config.tower, config.dropout)

    def forward(self, x_BD: Tensor, scenario_B: Tensor) -> Tensor:
        """Logits [B]."""
        return self.towers(self.bottom(x_BD), scenario_B)
