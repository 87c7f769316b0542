"""HAMUR (Li et al., CIKM 2023, https://arxiv.org/abs/2309.06217): a network per scenario, and in it an adapter
whose weights one network for all scenarios generates for each row.

A generated weight is `V C U`, where only the small core C differs by row: `W x` is computed from the right, and W
is never built. Ours: the adapter's norm works on a row (layer norm, each scenario's own), not on the batch, and
there is no other norm; one adapter cell, after the last hidden layer.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from llm4msr.arrays import Singles
from llm4msr.config.model import ModelConfig
from llm4msr.model.backbones.base import mlp, tower
from llm4msr.model.backbones.row_groups import RowGroups
from llm4msr.model.fold import Fold, array, linear, linears, norm_columns, relu, sigmoid, through

CORE = 8
"""Rank of a generated weight."""


class GeneratedLinear(nn.Module):
    """`V C U x + b`, with a core C for each row."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.down, self.up = nn.Linear(width, CORE, bias=False), nn.Linear(CORE, out)

    def forward(self, x_BD: Tensor, core_BCC: Tensor) -> Tensor:
        """[B, O]."""
        return self.up((self.down(x_BD).float()[..., None] * core_BCC).sum(1))

    def fold(self) -> Callable[[Singles, Singles], Singles]:
        """The same of columns, [D, B] and [C, C, B] to [O, B]."""
        down_CD, up = array(self.down.weight), linear(self.up)
        return lambda x_DB, core_CCB: up(np.einsum("ib,ijb->jb", down_CD @ x_DB, core_CCB))


class Hamur(nn.Module):
    """A network per scenario, and after it an adapter whose weights are generated for each row."""

    def __init__(self, width: int, scenarios: int, config: ModelConfig):
        super().__init__()
        out, inner = config.hidden[-1], config.tower
        self.bottoms = nn.ModuleList(mlp(width, config.hidden, config.dropout) for _ in range(scenarios))
        self.hyper = nn.Sequential(mlp(width, [inner], config.dropout), nn.Linear(inner, CORE * CORE))
        self.down, self.up = GeneratedLinear(out, inner), GeneratedLinear(inner, out)
        self.norms = nn.ModuleList(nn.LayerNorm(out) for _ in range(scenarios))
        self.towers = nn.ModuleList(tower(out, [config.tower], config.dropout) for _ in range(scenarios))

    def forward(self, x_BD: Tensor, scenario_B: Tensor) -> Tensor:
        """Logits [B]."""
        rows = RowGroups(scenario_B, len(self.towers))
        core_BCC = self.hyper(x_BD).float().unflatten(1, (CORE, CORE))  # sums of bfloat16 would be slow
        hidden_BH = rows.through(self.bottoms, x_BD)
        adapted_BH = self.up(torch.sigmoid(self.down(hidden_BH, core_BCC)), core_BCC)
        return rows.through(self.towers, hidden_BH + rows.through(self.norms, adapted_BH))[:, 0]

    def fold(self, scenario: int) -> Fold:
        """In one scenario."""
        (bottom, *deeper), (hyper, core) = linears(self.bottoms[scenario]), linears(self.hyper)
        (first, *top), norm = linears(self.towers[scenario]), self.norms[scenario]
        down, up = self.down.fold(), self.up.fold()
        assert isinstance(norm, nn.LayerNorm)

        def rest(hidden_HB: Singles, hyper_HB: Singles) -> Singles:
            core_CCB = core(relu(hyper_HB)).reshape(CORE, CORE, -1)
            hidden_HB = relu(through(deeper, hidden_HB))
            adapted_HB = up(sigmoid(down(hidden_HB, core_CCB)), core_CCB)
            return through(top, first(hidden_HB + norm_columns(norm, adapted_HB)))[0]

        return Fold([bottom, hyper], rest)
