"""`ServingNet` in one scenario as a matrix: a user's request makes one of all that is linear in a candidate.

    candidate's numbers and 1, [B, P + 1] -> x' = x + user_meta(x, code) -> first layers [O, B] -> logits [B]

No candidate's x' is ever computed: the first layers, the user's generated layer and the features that all candidates
share are multiplied with each other, which leaves a matrix [O, P + 1] from a candidate's numbers to the first layers.

Shape suffixes: B candidates, P numbers of a candidate, C numbers that all of them share, D = P + C features, O outputs
of first layers, K code width, R rank of the user's layer.
"""

from itertools import pairwise, starmap

import numpy as np
import torch

from llm4msr.arrays import Bools, Singles
from llm4msr.model.fold import Fold, Folds, affine, array, linear, sigmoid
from llm4msr.model.matching import match_width
from llm4msr.model.meta import MetaLayer
from llm4msr.model.net import Fusion
from llm4msr.model.serving_net import ServingNet


def can_fold(net: ServingNet) -> bool:
    """Whether the backbone has a fold, and no activation stands before it."""
    is_linear = not net.has_user_level or (net.config.meta_layers == 1 and net.config.meta_residual)
    return is_linear and isinstance(net.backbone, Folds)


class ServingFold:
    """A net in one scenario.

    Args:
        net: one that `can_fold`.
        scenario: its number.
    """

    @torch.no_grad()
    def __init__(self, net: ServingNet, scenario: int):
        fold = _fold(net, scenario)
        varies_D = _varies(net)
        weight_OD = np.concatenate([layer.weight.reshape(-1, len(varies_D)) for layer in fold.first])
        bias_O = np.concatenate([layer.bias.ravel() for layer in fold.first])
        self._user = None
        if net.has_user_level:
            layer = net.user_meta.layers[0]
            assert isinstance(layer, MetaLayer)
            self._user = _UserLevel(layer, weight_OD, varies_D)
            bias_O = bias_O + weight_OD @ array(layer.base.bias)
            weight_OD = weight_OD + weight_OD @ array(layer.base.weight)
        self._constant_OP = np.concatenate([weight_OD[:, varies_D], bias_O[:, None]], axis=1)
        self._shared_OC = np.ascontiguousarray(weight_OD[:, ~varies_D])
        self._shapes = [layer.bias.shape[:-1] for layer in fold.first]
        ends = np.cumsum([0, *(layer.bias.size for layer in fold.first)]).tolist()
        self._parts = list(starmap(slice, pairwise(ends)))
        self._rest = fold.rest
        self._slope, self._bias = (array(line_S)[scenario] for line_S in (net.slope_S, net.bias_S))

    def matrix(self, shared_C: Singles, code_K: Singles) -> Singles:
        """For a user of this code, [O, P + 1]; `shared_C` are the features that all candidates share."""
        shared_O = self._shared_OC @ shared_C
        if self._user is None:
            matrix_OP = self._constant_OP.copy()
        else:
            matrix_OP = self._user.matrix(shared_C, code_K)
            matrix_OP += self._constant_OP
        matrix_OP[:, -1] += shared_O
        return matrix_OP

    def logits(self, matrix_OP: Singles, candidate_BP: Singles) -> Singles:
        """[B], of candidates whose last number is 1."""
        output_OB = matrix_OP @ candidate_BP.T
        parts = zip(self._parts, self._shapes, strict=True)
        logits_B = self._rest(*(output_OB[part].reshape(*shape, -1) for part, shape in parts))
        return logits_B * self._slope + self._bias


class _UserLevel:
    """What a code adds to the matrix: a product of two, of which one depends on the code."""

    def __init__(self, layer: MetaLayer, weight_OD: Singles, varies_D: Bools):
        self._bias_OK = weight_OD @ array(layer.bias.weight)
        self._mix_RK = array(layer.mix.weight) if layer.rank else None
        self._left_OR = weight_OD @ array(layer.up.weight) if layer.rank else weight_OD
        right = array(layer.down.weight if layer.rank else layer.weight_OKD.transpose(0, 1))
        self._varying, self._shared = right[..., varies_D], right[..., ~varies_D]

    def matrix(self, shared_C: Singles, code_K: Singles) -> Singles:
        """[O, P + 1]."""
        if self._mix_RK is None:
            varying_RP, shared_R = (np.tensordot(code_K, right, 1) for right in (self._varying, self._shared))
            shared_R = shared_R @ shared_C
        else:
            scale_R = self._mix_RK @ code_K
            varying_RP, shared_R = self._varying * scale_R[:, None], self._shared @ shared_C * scale_R
        matrix_OP: Singles = self._left_OR @ np.concatenate([varying_RP, shared_R[:, None]], axis=1)
        matrix_OP[:, -1] += self._bias_OK @ code_K
        return matrix_OP


def _varies(net: ServingNet) -> Bools:
    """Which features differ between the candidates of a request, bool [D]; they share all others."""
    of_items = [field.side == "item" for field in net.fields for _ in range(net.config.embedding_dim)]
    code = [False] * (net.config.code_dim if net.config.knowledge == "feature" else 0)
    return np.array(of_items + code + [True] * match_width(net.config))


def _fold(net: ServingNet, scenario: int) -> Fold:
    """The backbone, and beside it the scenario's layers."""
    assert isinstance(net.backbone, Folds)
    backbone = net.backbone.fold(scenario)
    if not net.has_scenario_level:
        return backbone
    beside, *deeper = [affine(weight_SOD[scenario], bias_SO[scenario]) for weight_SOD, bias_SO in net.scenario_layers()]
    fusion = _fold_fusion(net.fusion)

    def rest(*outputs: Singles) -> Singles:
        of_backbone, (out_OB, *of_fusion) = outputs[: len(backbone.first)], outputs[len(backbone.first) :]
        for layer in deeper:
            out_OB = layer(_silu(out_OB))
        return fusion.rest(backbone.rest(*of_backbone), out_OB, *of_fusion)

    return Fold([*backbone.first, beside, *fusion.first], rest)


def _fold_fusion(fusion: Fusion) -> Fold:
    """Its rest reads the backbone's logits and the output of the scenario's layers before those of its own first."""
    if fusion.kind == "concat":
        (own, *weights), bias = array(fusion.merge.weight)[0], array(fusion.merge.bias)
        return Fold([], lambda logits_B, out_OB: own * logits_B + np.array(weights) @ _silu(out_OB) + bias)
    if fusion.kind == "gate":
        gate = linear(fusion.gate)
        return Fold([gate], lambda logits_B, out_OB, gate_OB: logits_B + sigmoid(gate_OB[0]) * out_OB[0])
    return Fold([], lambda logits_B, out_OB: logits_B + out_OB[0])


def _silu(x: Singles) -> Singles:
    return x * sigmoid(x)
