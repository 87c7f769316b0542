"""AITM (Xi et al., KDD 2021, https://doi.org/10.1145/3447548.3467071): a tower attends to what another one tells.

The paper's towers are the steps of a conversion, each told by the step before. Ours: towers are scenarios, which
have no order, so the known ones form a ring by number and the unknown scenario is told by the last of them. The
transfer is one step, not a chain, so that a row passes two towers and not all of them. The loss that keeps the
probabilities of successive steps in order has no meaning between scenarios and is left out.
"""

import numpy as np
import torch
from torch import Tensor, nn

from llm4msr.arrays import Singles
from llm4msr.config.model import ModelConfig
from llm4msr.model.backbones.base import mix, mlp, tower
from llm4msr.model.backbones.row_groups import RowGroups
from llm4msr.model.fold import Fold, linear, linears, mix_columns, relu, side_by_side, through


class AITM(nn.Module):
    """A network and a tower per scenario; a row's tower attends to what another scenario's network passes on."""

    def __init__(self, width: int, scenarios: int, config: ModelConfig):
        super().__init__()
        out = config.hidden[-1]
        self.bottoms = nn.ModuleList(mlp(width, config.hidden, config.dropout) for _ in range(scenarios))
        self.tells = nn.ModuleList(mlp(out, [out], config.dropout) for _ in range(scenarios))
        self.query, self.key, self.value = (nn.Linear(out, out) for _ in range(3))
        self.towers = nn.ModuleList(tower(out, [config.tower], config.dropout) for _ in range(scenarios))
        self.before = [scenarios - 1, scenarios - 1, *range(1, scenarios - 1)]

    def forward(self, x_BD: Tensor, scenario_B: Tensor) -> Tensor:
        """Logits [B]."""
        rows = RowGroups(scenario_B, len(self.towers))
        told_BH = rows.through(self.tells, rows.through([self.bottoms[s] for s in self.before], x_BD))
        pair_B2H = torch.stack([told_BH, rows.through(self.bottoms, x_BD)], dim=1)
        match_B2 = (self.query(pair_B2H) * self.key(pair_B2H)).sum(-1) / pair_B2H.shape[-1] ** 0.5
        return rows.through(self.towers, mix(match_B2, self.value(pair_B2H).unbind(1)))[:, 0]

    def fold(self, scenario: int) -> Fold:
        """In one scenario."""
        first, *deeper = side_by_side(self.bottoms[s] for s in (self.before[scenario], scenario))
        (tell,) = linears(self.tells[scenario])
        query, key, value = map(linear, (self.query, self.key, self.value))
        bottom, *top = linears(self.towers[scenario])

        def rest(hidden_2HB: Singles) -> Singles:
            told_HB, own_HB = relu(through(deeper, hidden_2HB))
            pair_2HB = np.stack([relu(tell(told_HB)), own_HB])
            match_2B = (query(pair_2HB) * key(pair_2HB)).sum(1) / np.float32(len(own_HB) ** 0.5)
            return through(top, bottom(mix_columns(match_2B, value(pair_2HB))))[0]

        return Fold([first], rest)
