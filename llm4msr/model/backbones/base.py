"""Pieces that backbones share. A backbone maps features and scenarios to logits: `forward(x_BD, scenario_B)`.

Law: a row's score never depends on the other rows of its batch, so there are no batch statistics anywhere.
Scenario 0 is the unknown one and has parameters of its own, like every scenario.

Features are float32. Only where training multiplies in bfloat16 do they come as bfloat16, and autocast casts weights:
`RankerNet` says when.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
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


class RowGroups:
    """Rows brought into the order of their groups (scenarios), so that each group's rows are one matrix.

    Rows that are in that order, as a request's candidates and the ranker's batches are, stay where they are.
    """

    def __init__(self, group_B: Tensor, groups: int):
        self.group_B = group_B
        if torch.compiler.is_exporting():
            return  # whose rows have no group yet
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
        if torch.compiler.is_exporting():  # a graph has no groups of unknown sizes: all layers, then each row's own
            every_BGO = torch.stack([layer(rows_BD) for layer in layers], dim=1)
            return every_BGO.gather(1, self.group_B[:, None, None].expand(-1, 1, every_BGO.shape[2]))[:, 0]
        every = torch.is_grad_enabled() or not len(rows_BD)
        parts = zip(layers, self.split(rows_BD), strict=True)
        return self.join([layer(part) for layer, part in parts if every or len(part)])

    def linear(self, rows_BD: Tensor, weight_GOD: Tensor, bias_GO: Tensor) -> Tensor:
        """[B, O]: each row through the linear layer of its own group, in the number format of the rows."""
        ordered_BD = self.ordered(rows_BD)
        return self.join([_GroupLinear.apply(ordered_BD, weight_GOD, bias_GO, self.sizes)])


class PaddedGroups(RowGroups):
    """Groups filled up with their last row to one of few sizes; `join` leaves out what was added.

    For products in bfloat16 on a CPU: oneDNN compiles a program for each size of a matrix, which takes many times as
    long as to run it, and the sizes of groups are others in every batch.
    """

    def __init__(self, group_B: Tensor, groups: int):
        super().__init__(group_B, groups)
        size_G, self.sizes = torch.tensor(self.sizes), [_rounded_up(size) for size in self.sizes]
        padded_G = torch.tensor(self.sizes)
        group_P = torch.repeat_interleave(padded_G)
        place_P = torch.arange(len(group_P)) - (padded_G.cumsum(0) - padded_G)[group_P]
        last_P = size_G[group_P] - 1
        row_P = (size_G.cumsum(0) - size_G)[group_P] + torch.minimum(place_P, last_P)
        self.order_B = row_P if self.order_B is None else self.order_B[row_P]
        real_B = (place_P <= last_P).nonzero()[:, 0]
        self._place_B = torch.empty_like(real_B)
        self._place_B[self.order_B[real_B]] = real_B

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The rows in the batch's order again, without those that were added."""
        return torch.cat(list(parts)).index_select(0, self._place_B)


def _rounded_up(size: int) -> int:
    """To a multiple of 16, or to five binary digits where that is more."""
    step = 1 << max(size.bit_length() - 5, 4)
    return -(-size // step) * step


class _GroupLinear(torch.autograd.Function):
    """One step of the gradient for the layers of all groups, whose weights are cast together."""

    @staticmethod
    def forward(context: Any, rows_BD: Tensor, weight_GOD: Tensor, bias_GO: Tensor, sizes: list[int]) -> Tensor:
        weight_GOD, bias_GO = weight_GOD.to(rows_BD.dtype), bias_GO.to(rows_BD.dtype)
        out_BO = rows_BD.new_empty(len(rows_BD), bias_GO.shape[1])
        for row_ND, weight_OD, bias_O, out_NO in zip(
            rows_BD.split(sizes), weight_GOD, bias_GO, out_BO.split(sizes), strict=True
        ):
            torch.addmm(bias_O, row_ND, weight_OD.T, out=out_NO)
        context.save_for_backward(rows_BD, weight_GOD)
        context.sizes = sizes
        return out_BO

    @staticmethod
    def backward(context: Any, gradient_BO: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        rows_BD, weight_GOD = context.saved_tensors
        gradients_NO = gradient_BO.split(context.sizes)
        to_rows_BD, to_weight_GOD = torch.empty_like(rows_BD), torch.empty_like(weight_GOD)
        for gradient_NO, row_ND, weight_OD, to_row_ND, to_weight_OD in zip(
            gradients_NO,
            rows_BD.split(context.sizes),
            weight_GOD,
            to_rows_BD.split(context.sizes),
            to_weight_GOD,
            strict=True,
        ):
            torch.mm(gradient_NO, weight_OD, out=to_row_ND)
            torch.mm(gradient_NO.T, row_ND, out=to_weight_OD)
        to_bias_GO = torch.stack([gradient_NO.sum(0) for gradient_NO in gradients_NO])
        return to_rows_BD, to_weight_GOD.float(), to_bias_GO.float(), None
