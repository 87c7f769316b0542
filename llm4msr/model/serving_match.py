"""The match as it serves: all candidates of a request share one past, so what is the past's alone is computed once.

The features are those of `matching.Match`, by the same weights.

Shape suffixes: B candidates, E events of the past, D width of an item's vector (or embedding), X largest cosines.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from llm4msr.model.matching import Match, TargetAttention, VectorMatch


class RequestPast(NamedTuple):
    """What the user of a request took before; all items are known ones."""

    unit_ED: Tensor
    """float32: the items' vectors, of unit length, zero where there is none; [E, 0] if the model matches none."""
    place_E: Tensor
    """int64: places of the items' ids in the embedding table."""
    here_E: Tensor
    """bool: whether that was in the scenario of the request."""
    liked_E: Tensor
    """bool: whether the user liked the item."""


class MatchInput(NamedTuple):
    """The candidates of several requests one after the other, and each request's past."""

    unit_BD: Tensor
    """float32, of the candidates: as `RequestPast.unit_ED`."""
    counts: Sequence[int]
    """Candidates of each request."""
    pasts: Sequence[RequestPast]


def request_features(match: Match, given: MatchInput, table_VD: Tensor, place_B: Tensor) -> Tensor:
    """float32 [B, M].

    Args:
        match: as it was trained.
        given: candidates and pasts.
        table_VD: embeddings of all features.
        place_B: places of the candidates' ids in it.
    """
    rows, counts = [], list(given.counts)
    for unit_BD, places, past in zip(given.unit_BD.split(counts), place_B.split(counts), given.pasts, strict=True):
        parts = [] if match.vectors is None else _of_vectors(match.vectors, unit_BD, past)
        if match.ids is not None:
            liked_ED = table_VD.index_select(0, past.place_E[past.liked_E])
            parts.append(_of_ids(match.ids.attention, table_VD.index_select(0, places), liked_ED))
        rows.append(torch.cat(parts, dim=1))
    return torch.cat(rows)


def _of_vectors(match: VectorMatch, candidate_BD: Tensor, past: RequestPast) -> list[Tensor]:
    parts, liked_ED = [], past.unit_ED[past.liked_E & past.unit_ED.any(1)]
    if "candidate" in match.parts or "attention" in match.parts:
        projected_BK = match.project(candidate_BD)
    if "candidate" in match.parts:
        parts.append(projected_BK)
    if "cosines" in match.parts:
        parts.append(_cosines(candidate_BD, past, liked_ED))
    if "attention" in match.parts:
        mean_BD, share_B = _attend(match.attention, candidate_BD, liked_ED)
        mean_BK, cosine_B = match.project(mean_BD), (mean_BD * candidate_BD).sum(1)
        parts += [mean_BK, mean_BK * projected_BK, torch.stack([cosine_B, share_B], dim=1)]
    return parts


def _cosines(candidate_BD: Tensor, past: RequestPast, liked_ED: Tensor) -> Tensor:
    """[B, 6]: what `matching.cosines` gives."""
    liked_E, here_E = past.liked_E, past.here_E
    groups_XE = torch.stack([liked_E, liked_E & here_E, liked_E & ~here_E, ~liked_E]).float()
    of_means_BX = candidate_BD @ F.normalize(groups_XE @ past.unit_ED, dim=1).T
    if not len(liked_ED):
        return F.pad(of_means_BX, (0, 2))
    top_BX = (candidate_BD @ liked_ED.T).topk(min(3, len(liked_ED)), dim=1).values.clamp(min=-1)
    return torch.cat([of_means_BX, top_BX[:, :1], top_BX.mean(1, keepdim=True)], dim=1)


def _of_ids(attention: TargetAttention, candidate_BD: Tensor, liked_ED: Tensor) -> Tensor:
    """[B, 2 D + 2]: what `matching.IdMatch` gives."""
    mean_BD, share_B = _attend(attention, candidate_BD, liked_ED)
    both_BD = mean_BD * candidate_BD
    return torch.cat([mean_BD, both_BD, both_BD.sum(1, keepdim=True), share_B[:, None]], dim=1)


def _attend(attention: TargetAttention, candidate_BD: Tensor, past_ED: Tensor) -> tuple[Tensor, Tensor]:
    """What `TargetAttention` gives: the mean [B, D], and the past's share of the weights [B]."""
    score_BE = candidate_BD @ (past_ED @ attention.query.weight).T
    weight_BE = F.pad(score_BE, (1, 0)).softmax(1)[:, 1:]
    return weight_BE @ past_ED, weight_BE.sum(1)
