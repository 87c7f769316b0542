"""PLE (Tang et al., RecSys 2020, https://doi.org/10.1145/3383313.3412236): shared experts and each scenario's own,
kept apart and mixed layer after layer (CGC).

One layer of experts per width in `model.hidden`, half of `model.experts` shared and half the scenario's own.
Ours: the shared path of a row mixes the shared experts with those of its own scenario, not of all scenarios.
"""

from itertools import pairwise

import numpy as np
from torch import Tensor, nn

from llm4msr.arrays import Singles
from llm4msr.config.model import ModelConfig
from llm4msr.model.backbones.base import mix, mlp, tower
from llm4msr.model.backbones.row_groups import RowGroups
from llm4msr.model.fold import Fold, Linear, linears, mix_columns, relu, through


class Extraction(nn.Module):
    """One layer. Experts of one layer are one matrix: a path's stand side by side in it.

    Args:
        last: the shared path ends here.
    """

    def __init__(self, width: int, out: int, scenarios: int, config: ModelConfig, last: bool):
        super().__init__()
        own, shared = (config.experts + 1) // 2, max(config.experts // 2, 1)
        self.own = nn.ModuleList(mlp(width, [own * out], config.dropout) for _ in range(scenarios))
        self.shared = mlp(width, [shared * out], config.dropout)
        self.own_gates = nn.ModuleList(nn.Linear(width, own + shared) for _ in range(scenarios))
        self.shared_gate = None if last else nn.Linear(width, own + shared)
        self.out = out

    def forward(self, own_BD: Tensor, shared_BD: Tensor, rows: RowGroups) -> tuple[Tensor, Tensor]:
        """Both paths, [B, O]; after the last layer the shared one is the own one."""
        sides = rows.through(self.own, own_BD), self.shared(shared_BD)
        experts = [expert_BO for side_BE in sides for expert_BO in side_BE.split(self.out, dim=1)]
        own_BO = mix(rows.through(self.own_gates, own_BD), experts)
        return own_BO, own_BO if self.shared_gate is None else mix(self.shared_gate(shared_BD), experts)

    def fold(self, scenario: int) -> list[Linear]:
        """In one scenario: own experts, shared ones, the own path's gate, and the shared one's if that goes on."""
        gates = [self.own_gates[scenario]] + ([] if self.shared_gate is None else [self.shared_gate])
        return [layer for part in (self.own[scenario], self.shared, *gates) for layer in linears(part)]


class PLE(nn.Module):
    """Layers of shared experts and the scenario's own, then a tower per scenario."""

    def __init__(self, width: int, scenarios: int, config: ModelConfig):
        super().__init__()
        widths = list(pairwise([width, *config.hidden]))
        self.layers = nn.ModuleList(
            Extraction(a, b, scenarios, config, last=i == len(widths)) for i, (a, b) in enumerate(widths, start=1)
        )
        self.towers = nn.ModuleList(tower(config.hidden[-1], [config.tower], config.dropout) for _ in range(scenarios))

    def forward(self, x_BD: Tensor, scenario_B: Tensor) -> Tensor:
        """Logits [B]."""
        rows = RowGroups(scenario_B, len(self.towers))
        own_BD = shared_BD = x_BD
        for layer in self.layers:
            own_BD, shared_BD = layer(own_BD, shared_BD, rows)
        return rows.through(self.towers, own_BD)[:, 0]

    def fold(self, scenario: int) -> Fold:
        """In one scenario."""
        layers = [layer.fold(scenario) for layer in self.layers if isinstance(layer, Extraction)]
        bottom, *top = linears(self.towers[scenario])

        def rest(*outputs: Singles) -> Singles:
            paths: list[Singles] = []
            for layer in layers:
                own, shared, *gates = [part(x_DB) for part, x_DB in zip(layer, paths * 2, strict=False)] or outputs
                experts_XOB = relu(np.concatenate([own, shared])).reshape(len(gates[0]), -1, own.shape[1])
                paths = [mix_columns(gate_XB, experts_XOB) for gate_XB in gates]
            return through(top, bottom(paths[0]))[0]

        return Fold(layers[0], rest)
