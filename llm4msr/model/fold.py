"""A net in one scenario as few products of numpy: what is linear before its first activation can become one matrix.

A backbone that serves so has a method `fold(scenario)`, which gives a `Fold`: the layers that read the features, and
what follows from their outputs. Candidates are columns here, not rows: the outputs of a layer then lie in one piece
for each expert, and a softmax over experts runs along the candidates.

Shape suffixes: B candidates, D inputs, O outputs, X experts (or other layers side by side).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from torch import Tensor, nn

from llm4msr.arrays import Singles


class Linear(NamedTuple):
    """A linear layer, or several side by side: weights [..., O, D] and biases [..., O, 1]."""

    weight: Singles
    bias: Singles

    def __call__(self, x_DB: Singles) -> Singles:
        """[..., O, B]."""
        y_OB = self.weight @ x_DB
        y_OB += self.bias
        return y_OB


class Fold(NamedTuple):
    """A net in one scenario."""

    first: Sequence[Linear]
    """The layers that read the features."""
    rest: Callable[..., Singles]
    """From the outputs of these layers, [..., O, B] each, to logits [B]; it may overwrite them."""


@runtime_checkable
class Folds(Protocol):
    """A net that can be folded."""

    def fold(self, scenario: int) -> Fold:
        """As it is in the scenario of this number, in evaluation mode."""
        ...


def array(tensor: Tensor) -> Singles:
    """The numbers of a weight, without a copy where they are float32 on a CPU."""
    numbers: Singles = tensor.detach().float().cpu().numpy()
    return numbers


def linear(layer: nn.Linear) -> Linear:
    """The same layer."""
    return affine(layer.weight, layer.bias)


def affine(weight_OD: Tensor, bias_O: Tensor) -> Linear:
    """The layer of these weights."""
    return Linear(array(weight_OD), array(bias_O)[:, None])


def plain(weight_OD: Singles) -> Linear:
    """A layer without biases."""
    return Linear(weight_OD, np.zeros((len(weight_OD), 1), np.float32))


def identity(width: int) -> Linear:
    """A layer that gives the features."""
    return plain(np.eye(width, dtype=np.float32))


def linears(module: nn.Module) -> list[Linear]:
    """All linear layers of an `mlp`, a `tower` or alike."""
    return [linear(layer) for layer in module.modules() if isinstance(layer, nn.Linear)]


def side_by_side(nets: Iterable[nn.Module]) -> list[Linear]:
    """The layers of equally shaped nets, each with weights [X, O, D]."""
    return [Linear(*map(np.stack, zip(*layers, strict=True))) for layers in zip(*map(linears, nets), strict=True)]


def relu(x: Singles) -> Singles:
    """In place; beside a row of zeros, since numpy takes three times as long beside the number 0."""
    return np.maximum(x, np.zeros(x.shape[-1], np.float32), out=x)


def sigmoid(x: Singles) -> Singles:
    """Without an overflow; the smallest result is 2e-35."""
    y: Singles = np.exp(-np.maximum(x, -80))
    y += 1
    return np.reciprocal(y, out=y)


def through(layers: Iterable[Linear], x_DB: Singles) -> Singles:
    """Each layer after a ReLU: from the outputs of a first layer, before its ReLU, to those of the last."""
    for layer in layers:
        x_DB = layer(relu(x_DB))
    return x_DB


def norm_columns(norm: nn.LayerNorm, x_DB: Singles) -> Singles:
    """[D, B]: each column through a layer norm."""
    centered_DB = x_DB - x_DB.mean(0)
    centered_DB /= np.sqrt((centered_DB * centered_DB).mean(0) + norm.eps)
    normed_DB: Singles = centered_DB * array(norm.weight)[:, None] + array(norm.bias)[:, None]
    return normed_DB


def mix_columns(gate_XB: Singles, outputs_XOB: Singles) -> Singles:
    """[O, B]: the experts' outputs weighted with the softmax of the gate's logits, which it overwrites."""
    gate_XB -= gate_XB.max(0)
    np.exp(gate_XB, out=gate_XB)
    gate_XB /= gate_XB.sum(0)
    mixed_OB: Singles = (outputs_XOB * gate_XB[:, None]).sum(0)
    return mixed_OB


def mixture(experts: Sequence[Linear], gate: Linear, tower: Sequence[Linear]) -> Fold:
    """Experts side by side, mixed by a gate, then a tower."""
    first, *deeper = experts
    bottom, *top = tower

    def rest(hidden_XHB: Singles, gate_XB: Singles) -> Singles:
        mixed_HB = mix_columns(gate_XB, relu(through(deeper, hidden_XHB)))
        return through(top, bottom(mixed_HB))[0]

    return Fold([first, gate], rest)
