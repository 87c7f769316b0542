"""One plain network for all scenarios; it knows the scenario as one feature among the others of `x`."""

from torch import Tensor, nn

from llm4msr.config.model import ModelConfig
from llm4msr.model.backbones.base import tower
from llm4msr.model.fold import Fold, linears, through


class Single(nn.Module):
    """One network for all scenarios."""

    def __init__(self, width: int, scenarios: int, config: ModelConfig):
        super().__init__()
        self.net = tower(width, [*config.hidden, config.tower], config.dropout)

    def forward(self, x_BD: Tensor, scenario_B: Tensor) -> Tensor:
        """Logits [B]."""
        return self.net(x_BD)[:, 0]

    def fold(self, scenario: int) -> Fold:
        """The same in every scenario."""
        first, *rest = linears(self.net)
        return Fold([first], lambda hidden_HB: through(rest, hidden_HB)[0])
