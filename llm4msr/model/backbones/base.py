"""Pieces that backbones share. A backbone maps features and scenarios to logits: `forward(x_BD, scenario_B)`.

Law: a row's score never depends on the other rows of its batch, so there are no batch statistics anywhere.
Scenario 0 is the unknown one and has parameters of its own, like every scenario.

Features are float32. Only where training multiplies in bfloat16 do they come as bfloat16, and autocast casts weights:
`RankerNet` says when.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

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
        return x * _kept(x, self.cut).mul_(65536 / (65536 - self.cut)).to(x.dtype)


class ReluDropout(Dropout):
    """ReLU, then dropout. On a CPU it overwrites its input, and keeps only its output for the gradient."""

    def forward(self, x: Tensor) -> Tensor:
        """Of the same shape."""
        if not self.training or not self.cut or x.device.type != "cpu":
            return super().forward(torch.relu(x))
        y: Tensor = _ReluDropout.apply(x, self.cut)
        return y


class _ReluDropout(torch.autograd.Function):
    """In place: what waits for a large layer on a CPU is memory, and so is what takes the time."""

    @staticmethod
    def forward(context: Any, x: Tensor, cut: int) -> Tensor:
        context.scale = 65536 / (65536 - cut)
        y = x.clamp_min_(0).mul_(_kept(x, cut).to(x.dtype)).mul_(context.scale)
        context.mark_dirty(y)
        context.save_for_backward(y)
        return y

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (y,) = context.saved_tensors
        return torch.ops.aten.threshold_backward(gradient, y, 0).mul_(context.scale), None


def _kept(x: Tensor, cut: int) -> Tensor:
    """float32 of the shape of `x`: 0 with a chance of cut/65536, else 1."""
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    drawn = bits.view(torch.int16)[: x.numel()].view(x.shape).float()  # compared as floats, which is vectorised
    return drawn.ge_(cut - 32768)


class Logit(nn.Linear):
    """The layer that ends in a logit, [B, 1]: always a float32 product, which for one column is also the fastest."""

    def __init__(self, width: int):
        super().__init__(width, 1)

    def forward(self, x_BD: Tensor) -> Tensor:
        """float32 [B, 1]."""
        if not torch.is_autocast_enabled(x_BD.device.type):
            return super().forward(x_BD)
        with torch.autocast(x_BD.device.type, enabled=False):
            return super().forward(x_BD.float())


def mlp(width: int, hidden: Sequence[int], dropout: float) -> nn.Sequential:
    """Linear, ReLU and dropout, once per hidden width."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, out in enumerate(hidden):  # weights are saved by these names: ReLU was a layer of its own once
        layers |= {f"{3 * i}": nn.Linear(width, out), f"{3 * i + 1}": ReluDropout(dropout)}
        width = out
    return nn.Sequential(layers)


def tower(width: int, hidden: Sequence[int], dropout: float) -> nn.Sequential:
    """An `mlp` that ends in a logit, [B, 1]."""
    return nn.Sequential(mlp(width, hidden, dropout), Logit(hidden[-1]))


def mix(gate_BX: Tensor, outputs: Iterable[Tensor]) -> Tensor:
    """[B, H]: the experts' outputs, each [B, H], weighted with the softmax of the gate's logits.

    One expert after the other: all of them in one tensor, weighted and summed, take several times as long to train.
    """
    outputs = list(outputs)
    weights_XB = gate_BX.float().T.softmax(0)  # over rows of few numbers a softmax is not vectorised
    first, *others = zip(weights_XB.to(outputs[0].dtype)[..., None], outputs, strict=True)
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
