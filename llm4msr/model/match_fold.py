"""The match as it serves without torch: products of the candidates with what a request's past has been made of.

The features are those of `serving_match`, by the same weights.

Shape suffixes: B candidates, E events of the past, L those that the user liked, D width of an item's vector, I of an
id's embedding, K code width, X queries.
"""

from functools import reduce
from typing import NamedTuple

import numpy as np
from torch import nn

from llm4msr.arrays import Bools, Singles
from llm4msr.model.fold import Linear, array, linears
from llm4msr.model.matching import Match, TargetAttention

LARGE = 80.0
"""A score up to which no exponential overflows, nor a sum of thousands of them."""


class FoldedPast(NamedTuple):
    """What the user of a request took before."""

    unit_ED: Singles
    """The items' vectors, of unit length, zero where there is none; [E, 0] if the model matches none."""
    id_EI: Singles
    """Embeddings of the items' ids."""
    here_E: Bools
    """Whether that was in the scenario of the request."""
    liked_E: Bools
    """Whether the user liked the item."""


class MatchFold:
    """The features of a match that are not a candidate's alone."""

    def __init__(self, match: Match):
        vectors = match.vectors
        self.reads_vectors = vectors is not None and bool({"cosines", "attention"} & {*vectors.parts})
        self._has_cosines = vectors is not None and "cosines" in vectors.parts
        self._query_DD = self._query_II = None
        if vectors is not None and "attention" in vectors.parts:
            self._query_DD = _query(vectors.attention)
            (project,), norm = linears(vectors.project), vectors.project[1]
            assert isinstance(norm, nn.LayerNorm)
            self._project = Linear(*(part - part.mean(0) for part in project))  # the norm's first step
            self._scale_K, self._shift_K, self._eps = array(norm.weight), array(norm.bias), float(norm.eps)
        if match.ids is not None:
            self._query_II = _query(match.ids.attention)

    def features(self, past: FoldedPast, unit_BD: Singles, projected_BK: Singles, id_BI: Singles) -> list[Singles]:
        """Parts [B, ...], in their order.

        Args:
            past: of the user.
            unit_BD: the candidates' vectors, as `FoldedPast.unit_ED`; read if `reads_vectors`.
            projected_BK: the same as the match projects them.
            id_BI: embeddings of their ids.
        """
        parts: list[Singles] = []
        if self.reads_vectors:
            liked_LD = past.unit_ED[past.liked_E & past.unit_ED.any(axis=1)]
            cosine_BL = unit_BD @ liked_LD.T
        if self._has_cosines:
            parts += [unit_BD @ _means(past).T, _largest(cosine_BL)]
        if self._query_DD is not None:
            weight_BL = _weights(unit_BD @ (liked_LD @ self._query_DD).T)
            mean_BK = self._norm(weight_BL @ (liked_LD @ self._project.weight.T) + self._project.bias.T)
            parts += [mean_BK, mean_BK * projected_BK, _row_sums(weight_BL, cosine_BL), _row_sums(weight_BL)]
        if self._query_II is not None:
            liked_LI = past.id_EI[past.liked_E]
            weight_BL = _weights(id_BI @ (liked_LI @ self._query_II).T)
            mean_BI = weight_BL @ liked_LI
            both_BI = mean_BI * id_BI
            parts += [mean_BI, both_BI, _row_sums(mean_BI, id_BI), _row_sums(weight_BL)]
        return parts

    def _norm(self, x_BK: Singles) -> Singles:
        """What the projection's norm makes of features without their mean; overwrites them."""
        x_BK /= np.sqrt(_row_sums(x_BK, x_BK) / x_BK.shape[1] + self._eps)
        x_BK *= self._scale_K
        x_BK += self._shift_K
        return x_BK


def _query(attention: TargetAttention) -> Singles:
    return array(attention.query.weight)


def _means(past: FoldedPast) -> Singles:
    """[4, D]: of what was liked, here and elsewhere too, and of what was not; of unit length."""
    liked_E, here_E = past.liked_E, past.here_E
    groups_XE = np.array([liked_E, liked_E & here_E, liked_E & ~here_E, ~liked_E], np.float32)
    sum_XD = groups_XE @ past.unit_ED
    mean_XD: Singles = sum_XD / np.maximum(np.linalg.norm(sum_XD, axis=1, keepdims=True), 1e-12)
    return mean_XD


def _largest(cosine_BL: Singles) -> Singles:
    """[B, 2]: the largest, and the mean of the three largest."""
    total = cosine_BL.shape[1]
    if not total:
        return np.zeros((len(cosine_BL), 2), np.float32)
    top_BX = np.maximum(np.partition(cosine_BL, -min(3, total), axis=1)[:, -min(3, total) :], -1)
    return np.stack([reduce(np.maximum, top_BX.T), reduce(np.add, top_BX.T) / top_BX.shape[1]], axis=1)


def _weights(score_BL: Singles) -> Singles:
    """A softmax beside an empty place of score 0; overwrites the scores."""
    empty_B1: Singles | float = 1.0
    if score_BL.max(initial=0) > LARGE:
        peak_B1 = score_BL.max(axis=1, initial=0, keepdims=True)
        score_BL -= peak_B1
        empty_B1 = np.exp(-peak_B1)
    np.exp(score_BL, out=score_BL)
    score_BL /= _row_sums(score_BL) + empty_B1
    return score_BL


def _row_sums(x_BD: Singles, *factor_BD: Singles) -> Singles:
    """[B, 1]: of the numbers, or of their products with others. Along short rows numpy's own sum is slow."""
    if factor_BD:
        return np.einsum("bd,bd->b", x_BD, *factor_BD)[:, None]
    return x_BD @ np.ones((x_BD.shape[1], 1), np.float32)
