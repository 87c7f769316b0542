"""SAR-Net (Shen et al., CIKM 2021, https://doi.org/10.1145/3459637.3481948): each scenario scales and shifts the
features; shared experts and the scenario's own expert are mixed by one gate.

Left out: the two attentions over a user's behaviours, since a row has no sequence, and the fairness coefficient,
which weighs rows of a promotion by logs that our data lacks. Ours: no batch norm in the experts.
"""

from torch import Tensor, nn

from llm4msr.config.model import ModelConfig
from llm4msr.model.backbones.base import Affine, mix, mlp, tower
from llm4msr.model.backbones.row_groups import RowGroups
from llm4msr.model.fold import Fold, Linear, array, linear, linears, mixture, side_by_side


class SarNet(nn.Module):
    """The scenario's affine map of the features, then shared experts and the scenario's own, one gate, one tower."""

    def __init__(self, width: int, scenarios: int, config: ModelConfig):
        super().__init__()
        self.transforms = nn.ModuleList(Affine(width) for _ in range(scenarios))
        self.shared = nn.ModuleList(mlp(width, config.hidden, config.dropout) for _ in range(config.experts))
        self.own = nn.ModuleList(mlp(width, config.hidden, config.dropout) for _ in range(scenarios))
        self.gate = nn.Linear(width, config.experts + 1)
        self.tower = tower(config.hidden[-1], [config.tower], config.dropout)

    def forward(self, x_BD: Tensor, scenario_B: Tensor) -> Tensor:
        """Logits [B]."""
        rows = RowGroups(scenario_B, len(self.own))
        x_BD = rows.through(self.transforms, x_BD)
        experts = [*(expert(x_BD) for expert in self.shared), rows.through(self.own, x_BD)]
        return self.tower(mix(self.gate(x_BD), experts))[:, 0]

    def fold(self, scenario: int) -> Fold:
        """In one scenario, whose affine map of the features is part of the layers that read them."""
        transform = self.transforms[scenario]
        assert isinstance(transform, Affine)
        scale_D, shift_D = array(transform.scale_D), array(transform.shift_D)[:, None]
        first, *deeper = side_by_side([*self.shared, self.own[scenario]])
        first, gate = (Linear(w * scale_D, b + w @ shift_D) for w, b in (first, linear(self.gate)))
        return mixture([first, *deeper], gate, linears(self.tower))
