"""Pieces that backbones share. A backbone maps features and scenarios to logits: `forward(x_BD, scenario_B)`.

Law: a row's score never depends on the other rows of its batch, so there are no batch statistics anywhere.
Scenario 0 is the unknown one and has parameters of its own, like every scenario.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Dropout(nn.Module):
    """`nn.Dropout`, several times faster on a CPU: it spends 16 random bits on a number, not a draw of its own.

    The share is rounded to a multiple of 1/65536, and what stays is scaled by the rounded share.
    """

    def __init__(self, share: float):
        super().__init__()
        self.cut = min(round(share * 65536), 65535)

    def forward(self, x: Tensor) -> Tensor:
        """Of the same shape; in evaluation `x` itself."""
        if not self.training or not self.cut:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.cut / 65536)
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        drawn = bits.view(torch.int16)[: x.numel()].view(x.shape).float()  # compared as floats, which is vectorised
        return x * drawn.ge_(self.cut - 32768).mul_(65536 / (65536 - self.cut))


def mlp(width: int, hidden: Sequence[int], dropout: float) -> nn.Sequential:
    """Linear, ReLU and dropout, once per hidden width."""
    layers: list[nn.Module] = []
    for out in hidden:
        layers += [nn.Linear(width, out), nn.ReLU(), Dropout(dropout)]
        width = out
    return nn.Sequential(*layers)


def tower(width: int, hidden: Sequence[int], dropout: float) -> nn.Sequential:
    """An `mlp` that ends in a logit, [B, 1]."""
    return nn.Sequential(mlp(width, hidden, dropout), nn.Linear(hidden[-1], 1))


def mix(gate_BX: Tensor, outputs: Iterable[Tensor]) -> Tensor:
    """[B, H]: the experts' outputs, each [B, H], weighted with the softmax of the gate's logits.

    One expert after the other: all of them in one tensor, weighted and summed, take several times as long to train.
    """
    weights_XB = gate_BX.T.softmax(0)  # over rows of few numbers a softmax is not vectorised
    first, *others = zip(weights_XB[..., None], outputs, strict=True)
    mixed_BH = first[0] * first[1]
    for weight_B1, output_BH in others:
        mixed_BH = torch.addcmul(mixed_BH, weight_B1, output_BH)
    return mixed_BH


class GateUnit(nn.Module):
    """PEPNet's gate: a factor between 0 and 2 for each of `out` numbers."""

    def __init__(self, width: int, hidden: int, out: int):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, out))

    def forward(self, x_BD: Tensor) -> Tensor:
        """[B, O]."""
        return 2 * torch.sigmoid(self.net(x_BD))


class Affine(nn.Module):
    """`x * scale + shift`, a pair of numbers for each feature; starts as the identity."""

    def __init__(self, width: int):
        super().__init__()
        self.scale_D = nn.Parameter(torch.ones(width))
        self.shift_D = nn.Parameter(torch.zeros(width))

    def forward(self, x_BD: Tensor) -> Tensor:
        """[B, D]."""
        return torch.addcmul(self.shift_D, x_BD, self.scale_D)


class RowGroups:
    """Rows brought into the order of their groups (scenarios), so that each group's rows are one matrix.

    Rows that are in that order, as a request's candidates and the ranker's batches are, stay where they are.
    """

    def __init__(self, group_B: Tensor, groups: int):
        self.sizes: list[int] = torch.bincount(group_B, minlength=groups).tolist()
        in_order = bool((group_B[1:] >= group_B[:-1]).all())
        self.order_B = None if in_order else torch.argsort(group_B, stable=True)

    def ordered(self, rows_BD: Tensor) -> Tensor:
        """The rows, those of a group together."""
        return rows_BD if self.order_B is None else rows_BD.index_select(0, self.order_B)

    def split(self, rows_BD: Tensor) -> list[Tensor]:
        """One [rows, D] matrix per group, empty ones included."""
        return list(self.ordered(rows_BD).split(self.sizes))

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The rows in the batch's order again."""
        if self.order_B is None:
            return torch.cat(list(parts)) if len(parts) > 1 else parts[0]
        joined = torch.cat(list(parts))
        return torch.empty_like(joined).index_copy(0, self.order_B, joined)

    def through(self, layers: Iterable[Callable[[Tensor], Tensor]], rows_BD: Tensor) -> Tensor:
        """[B, O]: each row through the layer of its own group alone.

        A group without rows is left out, but not where gradients are taken: distributed training needs one, if
        only of zeros, for every parameter in every step.
        """
        every = torch.is_grad_enabled() or not len(rows_BD)
        parts = zip(layers, self.split(rows_BD), strict=True)
        return self.join([layer(part) for layer, part in parts if every or len(part)])
