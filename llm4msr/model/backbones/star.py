"""STAR (Sheng et al., CIKM 2021, https://doi.org/10.1145/3459637.3481941): shared weights times each scenario's own.

Ours: the partitioned normalisation works on a row's features (layer norm), not on the batch's statistics, so
that a row scores the same alone and in any batch; and the last layer has no activation.
"""

from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llm4msr.arrays import Singles
from llm4msr.config.model import ModelConfig
from llm4msr.model.backbones.base import ReluDropout, tower
from llm4msr.model.backbones.row_groups import RowGroups
from llm4msr.model.fold import Fold, Linear, affine, array, linears, plain, through


class StarLayer(nn.Module):
    """`(W * W_s) x + b + b_s`; the scenarios' own parts start as the identity of each operation."""

    def __init__(self, width: int, out: int, scenarios: int):
        super().__init__()
        self.shared = nn.Linear(width, out)
        self.weight_SOD = nn.Parameter(torch.ones(scenarios, out, width))
        self.bias_SO = nn.Parameter(torch.zeros(scenarios, out))

    def forward(self, x_BD: Tensor, rows: RowGroups) -> Tensor:
        """[B, O], each row through the layer of its own scenario."""
        if torch.is_grad_enabled():
            return rows.linear(x_BD, self.shared.weight * self.weight_SOD, self.shared.bias + self.bias_SO)
        return rows.through([partial(self.of_scenario, scenario=s) for s in range(len(self.bias_SO))], x_BD)

    def of_scenario(self, x_BD: Tensor, scenario: int) -> Tensor:
        """[B, O] for rows of one scenario."""
        weight_OD, bias_O = self.weight_SOD[scenario], self.bias_SO[scenario]
        return F.linear(x_BD, self.shared.weight * weight_OD, self.shared.bias + bias_O)

    def fold(self, scenario: int) -> Linear:
        """The layer of one scenario."""
        return affine(self.shared.weight * self.weight_SOD[scenario], self.shared.bias + self.bias_SO[scenario])


class ScenarioNorm(nn.Module):
    """A scenario's affine map of what the shared layer norm gives; the two maps are made one, which saves a pass."""

    def __init__(self, width: int):
        super().__init__()
        self.scale_D = nn.Parameter(torch.ones(width))
        self.shift_D = nn.Parameter(torch.zeros(width))

    def forward(self, x_BD: Tensor, norm: nn.LayerNorm) -> Tensor:
        """[B, D]."""
        return F.layer_norm(x_BD, norm.normalized_shape, *self.affine(norm), norm.eps)

    def affine(self, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
        """Scale and shift of both maps, [D] each."""
        return norm.weight * self.scale_D, torch.addcmul(self.shift_D, norm.bias, self.scale_D)


class Star(nn.Module):
    """Per scenario a norm and a tower, whose weights are the shared ones times its own; plus a shared logit."""

    def __init__(self, width: int, scenarios: int, config: ModelConfig):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.norms = nn.ModuleList(ScenarioNorm(width) for _ in range(scenarios))
        widths = [width, *config.hidden, config.tower]
        self.layers = nn.ModuleList(StarLayer(a, b, scenarios) for a, b in pairwise(widths))
        self.last = StarLayer(config.tower, 1, scenarios)
        self.auxiliary = tower(width, [config.tower], config.dropout)
        self.dropout = ReluDropout(config.dropout)

    def forward(self, x_BD: Tensor, scenario_B: Tensor) -> Tensor:
        """Logits [B]."""
        rows = RowGroups(scenario_B, len(self.norms))
        x_BD = hidden_BH = rows.through([partial(norm, norm=self.norm) for norm in self.norms], x_BD)
        for layer in self.layers:
            hidden_BH = self.dropout(layer(hidden_BH, rows))
        return (self.last(hidden_BH.float(), rows) + self.auxiliary(x_BD))[:, 0]

    def fold(self, scenario: int) -> Fold:
        """In one scenario; of its norm only the division by the deviation is not linear."""
        norm, width = self.norms[scenario], len(self.norm.weight)
        assert isinstance(norm, ScenarioNorm)
        scale_D, shift_D = map(array, norm.affine(self.norm))
        tower = [layer.fold(scenario) for layer in (*self.layers, self.last) if isinstance(layer, StarLayer)]
        auxiliary = linears(self.auxiliary)
        weight_OD, bias_O1 = map(np.concatenate, zip(tower[0], auxiliary[0], strict=True))
        center_DD = np.eye(width, dtype=np.float32) - np.float32(1 / width)
        both = plain((weight_OD * scale_D) @ center_DD)
        bias_O1, own = bias_O1 + weight_OD @ shift_D[:, None], len(tower[0].weight)

        def rest(hidden_HB: Singles, centered_DB: Singles) -> Singles:
            variance_B = np.einsum("db,db->b", centered_DB, centered_DB) / width
            hidden_HB /= np.sqrt(variance_B + self.norm.eps)
            hidden_HB += bias_O1
            logits_B: Singles = through(tower[1:], hidden_HB[:own])[0] + through(auxiliary[1:], hidden_HB[own:])[0]
            return logits_B

        return Fold([both, plain(center_DD)], rest)
