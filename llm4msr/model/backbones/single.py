"""One plain network for all scenarios; it knows the scenario as one feature among the others of `x`."""

from torch import Tensor, nn

from llm4msr.config.model import ModelConfig
from llm4msr.model.backbones.base import tower


class Single(nn.Module):
    """One network for all scenarios."""

    def __init__(self, width: int, scenarios: int, config: ModelConfig):
        super().__init__()
        self.net = tower(width, [*config.hidden, config.tower], config.dropout)

    def forward(self, x_BD: Tensor, scenario_B: Tensor) -> Tensor:
        """Logits [B]."""
        return self.net(x_BD)[:, 0]
