"""Meta networks: a code of knowledge generates the weights of a layer (Wang et al., CIKM 2024,
https://arxiv.org/abs/2406.12529).

`W(c) = A_0 + sum_j c_j A_j`, `b(c) = b_0 + B c`. Since `W(c) x` is linear in `c` and in `x`, a training batch is
one matrix product over the outer products `c x` and no weight matrix per row is ever built. For many rows under
few codes (the scenarios', or the one user's whose candidates a request ranks) `generate` builds each `W(c)` once.

Shape suffixes: B rows, D inputs, O outputs, K code width, R rank, Z width of the LLM's vector.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llm4msr.model.backbones.row_groups import RowGroups


class KnowledgeCode(nn.Module):
    """`c = tanh(LayerNorm(P z))`: an LLM vector, standardised with the training users' statistics, as K numbers.

    Who has no vector gets the learned default code.
    """

    mean_Z: Tensor
    scale_Z: Tensor

    def __init__(self, mean_Z: Tensor, scale_Z: Tensor, code_dim: int):
        super().__init__()
        self.register_buffer("mean_Z", mean_Z)
        self.register_buffer("scale_Z", scale_Z)
        self.project = nn.Linear(len(mean_Z), code_dim, bias=False)
        self.norm = nn.LayerNorm(code_dim)
        self.default_K = nn.Parameter(torch.zeros(code_dim))

    def forward(self, z_BZ: Tensor, known_B: Tensor) -> Tensor:
        """float32 codes [B, K] from vectors of any float type and whether each is known.

        In float32 also under autocast: a mean many times the deviation would leave nothing of a bfloat16 difference.
        """
        with torch.autocast(z_BZ.device.type, enabled=False):
            code_BK = torch.tanh(self.norm(F.linear(z_BZ.float(), *self.affine())))
        return torch.where(known_B[:, None], code_BK, torch.tanh(self.default_K))

    def affine(self) -> tuple[Tensor, Tensor]:
        """Weights [K, Z] and biases [K] of `P z`: they standardise, for they are few and the vectors are many."""
        weight_KZ = self.project.weight / self.scale_Z
        return weight_KZ, -(weight_KZ @ self.mean_Z)


class MetaLayer(nn.Module):
    """A linear layer whose weights and biases a code generates; full, or of low rank.

    Low rank: `W(c) = A_0 + V diag(Q c) U`, with U of R x D and V of O x R.
    `zero` starts with `W(c) = 0` and `b(c) = 0` for every code.
    """

    def __init__(self, width: int, out: int, code_dim: int, rank: int, zero: bool):
        super().__init__()
        self.base = nn.Linear(width, out)
        self.bias = nn.Linear(code_dim, out, bias=False)
        self.rank = rank
        if rank:
            self.down, self.up = nn.Linear(width, rank, bias=False), nn.Linear(rank, out, bias=False)
            self.mix = nn.Linear(code_dim, rank, bias=False)
        else:
            self.weight_OKD = nn.Parameter(torch.randn(out, code_dim, width) * (code_dim * width) ** -0.5)
        if zero:
            for weight in (self.base.weight, self.base.bias, self.up.weight if rank else self.weight_OKD):
                nn.init.zeros_(weight)
        nn.init.zeros_(self.bias.weight)

    def forward(self, x_BD: Tensor, code_BK: Tensor) -> Tensor:
        """[B, O]: each row through the layer that its own code generates."""
        if self.rank:
            # as a product with an [R, O] matrix: what `self.up` would do is several times slower to differentiate
            varied_BO = (self.down(x_BD) * self.mix(code_BK)) @ self.up.weight.T.contiguous()
        else:
            outer_BKD = code_BK[:, :, None] * x_BD[:, None, :]
            varied_BO = F.linear(outer_BKD.flatten(1), self.weight_OKD.flatten(1))
        return self.base(x_BD) + self.bias(code_BK) + varied_BO

    def shared(self, x_BD: Tensor, code_NK: Tensor, owner_B: Tensor) -> Tensor:
        """[B, O]: row i under `code_NK[owner_B[i]]`; low rank only."""
        scale_BR = self.mix(code_NK).index_select(0, owner_B)
        varied_BO = F.linear(self.down(x_BD) * scale_BR, self.up.weight)
        return self.base(x_BD) + self.bias(code_NK).index_select(0, owner_B) + varied_BO

    def generate(self, code_SK: Tensor) -> tuple[Tensor, Tensor]:
        """Weights [S, O, D] and biases [S, O] for a few codes."""
        if self.rank:
            varied_SOD = (self.up.weight * self.mix(code_SK)[:, None]) @ self.down.weight
        else:
            varied_SOD = torch.einsum("sk,okd->sod", code_SK, self.weight_OKD)
        return self.base.weight + varied_SOD, self.base.bias + self.bias(code_SK)


class MetaStack(nn.Module):
    """Meta layers one after the other, SiLU between them; the last has no activation, and starts at zero if asked."""

    def __init__(self, width: int, out: int, code_dim: int, rank: int, layers: int, zero: bool = True):
        super().__init__()
        outs = [width] * (layers - 1) + [out]
        self.layers = nn.ModuleList(
            MetaLayer(width, o, code_dim, rank, zero=zero and i == layers - 1) for i, o in enumerate(outs)
        )

    def forward(self, x_BD: Tensor, code_BK: Tensor) -> Tensor:
        """[B, O], a code per row."""
        for i, layer in enumerate(self.layers):
            x_BD = layer(F.silu(x_BD) if i else x_BD, code_BK)
        return x_BD

    def grouped(self, x_BD: Tensor, code_SK: Tensor, group_B: Tensor) -> Tensor:
        """The same for many rows under few codes, row i under `code_SK[group_B[i]]`: weights are generated once."""
        return through_generated(self.generate(code_SK), x_BD, group_B)

    def generate(self, code_SK: Tensor) -> "GeneratedLayers":
        """The plain layers that a few codes stand for."""
        return [layer.generate(code_SK) for layer in self.layers if isinstance(layer, MetaLayer)]

    def shared(self, x_BD: Tensor, code_NK: Tensor, owner_B: Tensor) -> Tensor:
        """`grouped` at low rank: no weights are generated, what a code adds is computed once a code, not once a row.

        All rows then go through the same products whosever they are, which suits requests that are ranked together.
        """
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, MetaLayer)
            x_BD = layer.shared(F.silu(x_BD) if i else x_BD, code_NK, owner_B)
        return x_BD


GeneratedLayers = list[tuple[Tensor, Tensor]]
"""Weights [S, O, D] and biases [S, O] of each layer of a stack."""


def through_generated(layers: GeneratedLayers, x_BD: Tensor, group_B: Tensor) -> Tensor:
    """[B, O]: each row through the generated layers of its own group."""
    groups = len(layers[0][0])
    rows = RowGroups(group_B, groups) if groups > 1 else None
    parts = rows.split(x_BD) if rows else [x_BD]
    for i, (weight_SOD, bias_SO) in enumerate(layers):
        parts = [F.linear(F.silu(p) if i else p, weight_SOD[s], bias_SO[s]) for s, p in enumerate(parts)]
    return rows.join(parts) if rows else parts[0]
