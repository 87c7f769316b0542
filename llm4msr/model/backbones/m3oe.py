"""M3oE (Zhang et al., SIGIR 2024, https://doi.org/10.1145/3626772.3657686): shared experts and the scenario's own
expert on top of a star layer, fused by learned weights.

Ours: one task, so no task experts. A row passes its own scenario's expert alone, so there is no weight between
that one and the other scenarios' mean; what scenarios have in common is left to the shared experts. The fusing
weight, one for each scenario, is trained with all else, not searched on validation rows. No layer norms.
"""

import torch
from torch import Tensor, nn

from llm4msr.arrays import Singles
from llm4msr.config.model import ModelConfig
from llm4msr.model.backbones.base import mix, mlp, tower
from llm4msr.model.backbones.row_groups import RowGroups
from llm4msr.model.backbones.star import StarLayer
from llm4msr.model.fold import Fold, Linear, linears, mix_columns, relu, side_by_side, through


class M3oE(nn.Module):
    """A star layer, then shared experts and the scenario's own, weighted by a learned balance."""

    def __init__(self, width: int, scenarios: int, config: ModelConfig):
        super().__init__()
        first, out = config.hidden[0], config.hidden[-1]
        self.star = StarLayer(width, first, scenarios)
        self.after_star = mlp(first, config.hidden[1:] or [out], config.dropout)
        self.beside_star = mlp(width, [out], config.dropout)
        self.shared = nn.ModuleList(mlp(out, [out], config.dropout) for _ in range(config.experts))
        self.gates = nn.ModuleList(nn.Linear(out, config.experts) for _ in range(scenarios))
        self.own = nn.ModuleList(mlp(out, [out], config.dropout) for _ in range(scenarios))
        self.balance_S = nn.Parameter(torch.zeros(scenarios))
        self.towers = nn.ModuleList(tower(out, [config.tower], config.dropout) for _ in range(scenarios))

    def forward(self, x_BD: Tensor, scenario_B: Tensor) -> Tensor:
        """Logits [B]."""
        rows = RowGroups(scenario_B, len(self.towers))
        hidden_BH = self.after_star(self.star(x_BD, rows)) + self.beside_star(x_BD)
        shared_BH = mix(rows.through(self.gates, hidden_BH), [expert(hidden_BH) for expert in self.shared])
        weight_B1 = torch.sigmoid(self.balance_S)[scenario_B, None]
        return rows.through(self.towers, shared_BH + weight_B1 * rows.through(self.own, hidden_BH))[:, 0]

    def fold(self, scenario: int) -> Fold:
        """In one scenario; no activation stands between the star layer and the one after it."""
        star, (after, *deeper), (beside,) = (
            self.star.fold(scenario),
            linears(self.after_star),
            linears(self.beside_star),
        )
        both = Linear(after.weight @ star.weight, after(star.bias))
        (shared,), (own,) = side_by_side(self.shared), linears(self.own[scenario])
        (gate,) = linears(self.gates[scenario])
        balance = float(torch.sigmoid(self.balance_S[scenario]))
        bottom, *top = linears(self.towers[scenario])

        def rest(star_HB: Singles, beside_HB: Singles) -> Singles:
            hidden_HB = relu(through(deeper, star_HB)) + relu(beside_HB)
            mixed_HB = mix_columns(gate(hidden_HB), relu(shared(hidden_HB)))
            return through(top, bottom(mixed_HB + balance * relu(own(hidden_HB))))[0]

        return Fold([both, beside], rest)
