"""MMoE (Ma et al., KDD 2018, https://doi.org/10.1145/3219819.3220007): experts, mixed by each scenario's gate."""

import torch
from torch import Tensor, nn

from llm4msr.backbones.base import Towers, mlp
from llm4msr.config import ModelConfig


class MMoE(nn.Module):
    """See the module."""

    def __init__(self, width: int, scenarios: int, config: ModelConfig):
        super().__init__()
        self.experts = nn.ModuleList(mlp(width, config.hidden, config.dropout) for _ in range(config.experts))
        self.gates = nn.Linear(width, scenarios * config.experts)
        self.towers = Towers(scenarios, config.hidden[-1], config.tower, config.dropout)
        self.scenarios = scenarios

    def forward(self, x_BD: Tensor, scenario_B: Tensor) -> Tensor:
        """Logits [B]."""
        gates_BSX = self.gates(x_BD).view(len(x_BD), self.scenarios, len(self.experts))
        row_B = torch.arange(len(x_BD), device=x_BD.device)
        gate_BX = gates_BSX[row_B, scenario_B].softmax(-1)
        experts_BXH = torch.stack([expert(x_BD) for expert in self.experts], dim=1)
        return self.towers((gate_BX[..., None] * experts_BXH).sum(1), scenario_B)
