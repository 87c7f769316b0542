"""Each row of a batch through the layers of its own group, where a group is a scenario."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from llm4msr.model.backbones.base import Dropout, Logit


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
        layers = list(layers)
        if torch.is_grad_enabled() and (steps := _side_by_side(layers)):
            return self._together(steps, rows_BD)
        every = torch.is_grad_enabled() or not len(rows_BD)
        parts = zip(layers, self.split(rows_BD), strict=True)
        return self.join([layer(part) for layer, part in parts if every or len(part)])

    def linear(self, rows_BD: Tensor, weight_GOD: Tensor, bias_GO: Tensor) -> Tensor:
        """[B, O]: each row through the linear layer of its own group, in the number format of the rows."""
        return self.join([_GroupLinear.apply(self.ordered(rows_BD), weight_GOD, bias_GO, self.sizes)])

    def _together(self, steps: Iterable[Sequence[Callable[[Tensor], Tensor]]], rows_BD: Tensor) -> Tensor:
        """One step of the gradient for the layers of all groups: what a small batch costs is steps, not products."""
        x_BD = self.ordered(rows_BD)
        for layers in steps:
            linears = [layer for layer in layers if isinstance(layer, nn.Linear)]
            if linears:
                x_BD = _cast(x_BD, linears[0])
                weight_GOD = torch.stack([layer.weight for layer in linears])
                bias_GO = torch.stack([layer.bias for layer in linears])
                x_BD = _GroupLinear.apply(x_BD, weight_GOD, bias_GO, self.sizes)
            else:
                x_BD = layers[0](x_BD)
        return self.join([x_BD])


def _cast(x_BD: Tensor, layer: nn.Linear) -> Tensor:
    """In the number format in which the layer multiplies."""
    device = x_BD.device.type
    lower = torch.is_autocast_enabled(device) and not isinstance(layer, Logit)
    return x_BD.to(torch.get_autocast_dtype(device) if lower else layer.weight.dtype)


def _side_by_side(nets: Sequence[Callable[[Tensor], Tensor]]) -> list[tuple[Callable[[Tensor], Tensor], ...]]:
    """The layers of equally shaped nets of linear layers and dropout, each beside its like; of other nets none."""
    layers = [_layers(net) for net in nets]
    if len({len(of_net) for of_net in layers}) != 1:
        return []
    steps = list(zip(*layers, strict=True))
    return steps if all(len(kinds := set(map(_kind, step))) == 1 and None not in kinds for step in steps) else []


def _layers(net: Callable[[Tensor], Tensor]) -> list[Callable[[Tensor], Tensor]]:
    return [layer for part in net for layer in _layers(part)] if isinstance(net, nn.Sequential) else [net]


def _kind(layer: Callable[[Tensor], Tensor]) -> tuple[Any, ...] | None:
    """What layers that can be one step share; a class derived from them may do something else."""
    if type(layer) in (nn.Linear, Logit) and isinstance(layer, nn.Linear) and layer.bias is not None:
        return type(layer), layer.weight.shape
    return (type(layer), layer.cut) if isinstance(layer, Dropout) else None


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
