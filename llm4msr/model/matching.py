"""How a candidate matches what its user took before: features that the backbone and the meta layers read beside others.

Each part is a switch (`model.match`). Those of item vectors (`candidate`, `cosines`, `attention`) need knowledge, the
one of item ids (`ids`) needs none. A user without a past has zeros wherever the past would enter.

Target attention is that of Zhou et al., "Deep Interest Network", KDD 2018, https://arxiv.org/abs/1706.06978, with a
softmax in which an empty past has a place of its own.

Shape suffixes: B rows, N events of the past, E those of all rows that count, D width of an item's vector (or
embedding), K width of a code, I items, M features of the match.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llm4msr.config.model import ModelConfig
from llm4msr.model.inputs import Past

COSINES = 6
SHARPNESS = 4.0
"""What cosines are multiplied with at first, before attention's softmax."""


def match_width(config: ModelConfig) -> int:
    """How many features the match has: M."""
    of_vectors = {"candidate": config.code_dim, "cosines": COSINES, "attention": 2 * config.code_dim + 2}
    widths = of_vectors | {"ids": 2 * config.embedding_dim + 2}
    return sum(widths[part] for part in config.match)


class Match(nn.Module):
    """Features of the match [B, M].

    Args:
        config: says which parts there are.
        items_ID: the items' vectors, of unit length, zero where there is none; needed for parts of item vectors.
    """

    def __init__(self, config: ModelConfig, items_ID: Tensor | None):
        super().__init__()
        self.vectors = None
        if config.matches_vectors:
            assert items_ID is not None
            self.vectors = VectorMatch(config, items_ID)
        self.ids = IdMatch(config.embedding_dim) if "ids" in config.match else None

    @property
    def projects(self) -> bool:
        """Whether any part reads the candidate's vector through the projection."""
        return self.vectors is not None and bool({"candidate", "attention"} & {*self.vectors.parts})

    def forward(self, past: Past, scenario_B: Tensor, table: nn.Embedding, place_B: Tensor) -> Tensor:
        """float32 [B, M], also under autocast: a cosine in bfloat16 has three digits.

        Args:
            past: of each row, with the candidate.
            scenario_B: the rows' scenarios.
            table: embeddings of all features.
            place_B: places of the candidates' ids in it.
        """
        with torch.autocast(scenario_B.device.type, enabled=False):
            parts = [] if self.vectors is None else self.vectors(past, scenario_B)
            if self.ids is not None:
                parts.append(self.ids(past, table, place_B))
            return torch.cat(parts, dim=1)


class Chosen(NamedTuple):
    """Events of pasts that count, one after the other: most pasts are far shorter than the longest."""

    row_E: Tensor
    column_E: Tensor
    shape: torch.Size
    """[B, N]."""

    @classmethod
    def of(cls, is_chosen_BN: Tensor) -> "Chosen":
        """Those where it is true."""
        row_E, column_E = is_chosen_BN.nonzero(as_tuple=True)
        return cls(row_E, column_E, is_chosen_BN.shape)

    def take(self, values_BN: Tensor) -> Tensor:
        """[E]: the values of these events."""
        return values_BN[self.row_E, self.column_E]

    def spread(self, values_E: Tensor, rest: float) -> Tensor:
        """[B, N]: a value for each event, and the `rest` for those that do not count."""
        return values_E.new_full(self.shape, rest).index_put((self.row_E, self.column_E), values_E)

    def sum(self, vectors_ED: Tensor, group_E: Tensor | None = None, groups: int = 1) -> Tensor:
        """[B, G, D]: the sum of each row's vectors in each group; there are G `groups`."""
        place_E = self.row_E if group_E is None else self.row_E * groups + group_E
        rows, width = self.shape[0], vectors_ED.shape[1]
        return vectors_ED.new_zeros(rows * groups, width).index_add(0, place_E, vectors_ED).view(rows, groups, width)


class VectorMatch(nn.Module):
    """The parts that come from items' vectors, of unit length; they are no weights, and are not saved."""

    unit_ID: Tensor
    known_I: Tensor

    def __init__(self, config: ModelConfig, items_ID: Tensor):
        super().__init__()
        self.parts = config.match
        self.register_buffer("unit_ID", items_ID, persistent=False)
        self.register_buffer("known_I", self.unit_ID.any(1), persistent=False)
        width = items_ID.shape[1]
        if "candidate" in self.parts or "attention" in self.parts:
            self.project = nn.Sequential(nn.Linear(width, config.code_dim), nn.LayerNorm(config.code_dim))
        if "attention" in self.parts:
            self.attention = TargetAttention(width, SHARPNESS)

    def forward(self, past: Past, scenario_B: Tensor) -> list[Tensor]:
        """The features of each part, [B, ...] each."""
        candidate_BD = F.embedding(past.candidate_B, self.unit_ID).float()
        parts = []
        if "candidate" in self.parts:
            parts.append(self.project(candidate_BD))
        known_BN = self.known_I[past.item_BN]
        if "cosines" in self.parts:
            events = Chosen.of(known_BN)
            parts.append(cosines(candidate_BD, self._vectors(events, past), events, past, scenario_B))
        if "attention" in self.parts:
            events = Chosen.of(known_BN & past.liked_BN)
            mean_BD, share_B = self.attention(candidate_BD, self._vectors(events, past), events)
            mean_BK, cosine_B = self.project(mean_BD), (mean_BD * candidate_BD).sum(1)
            told_B2 = torch.stack([cosine_B, share_B], dim=1)
            parts.append(torch.cat([mean_BK, mean_BK * self.project(candidate_BD), told_B2], dim=1))
        return parts

    def _vectors(self, events: Chosen, past: Past) -> Tensor:
        return F.embedding(events.take(past.item_BN), self.unit_ID).float()


def cosines(candidate_BD: Tensor, past_ED: Tensor, events: Chosen, past: Past, scenario_B: Tensor) -> Tensor:
    """Cosines of the candidate with the past [B, 6]; 0 where there is nothing to compare with.

    With the means of what was liked (all, in the row's scenario if that is known, in the others) and of what was not,
    and the largest and the mean of the three largest with what was liked. All vectors are of unit length.
    """
    is_here_BN = (past.scenario_BN == scenario_B[:, None]) & (scenario_B > 0)[:, None]  # two unknown ones may differ
    liked_E, here_E = events.take(past.liked_BN), events.take(is_here_BN)
    group_E = torch.where(liked_E, (~here_E).long(), 2)
    here_BD, elsewhere_BD, disliked_BD = events.sum(past_ED, group_E, 3).unbind(1)
    sums_BXD = torch.stack([here_BD + elsewhere_BD, here_BD, elsewhere_BD, disliked_BD], dim=1)
    of_means_BX = (F.normalize(sums_BXD, dim=2) * candidate_BD[:, None]).sum(2)
    cosine_E = (candidate_BD[events.row_E] * past_ED).sum(1).masked_fill(~liked_E, -torch.inf)
    top_BX = events.spread(cosine_E, -torch.inf).topk(min(3, events.shape[1]), dim=1).values
    is_there_BX, top_BX = top_BX > -torch.inf, top_BX.clamp(min=-1)
    sum_B = (top_BX * is_there_BX).sum(1)
    largest_B = top_BX[:, 0] * is_there_BX[:, 0]
    return torch.cat([of_means_BX, torch.stack([largest_B, sum_B / is_there_BX.sum(1).clamp(min=1)], 1)], dim=1)


class IdMatch(nn.Module):
    """Target attention over the embeddings of the ids of liked items."""

    def __init__(self, width: int):
        super().__init__()
        self.attention = TargetAttention(width, 1.0)

    def forward(self, past: Past, table: nn.Embedding, place_B: Tensor) -> Tensor:
        """[B, 2 D + 2]; `table` and `place_B` as in `Match`."""
        events = Chosen.of(past.liked_BN & (past.item_BN > 0))
        place_E, rows = events.take(past.place_BN), len(place_B)
        embedding_XD = F.embedding(torch.cat([place_B, place_E]), table.weight, sparse=table.sparse)
        candidate_BD, past_ED = embedding_XD[:rows], embedding_XD[rows:]
        mean_BD, share_B = self.attention(candidate_BD, past_ED, events)
        both_BD = mean_BD * candidate_BD
        return torch.cat([mean_BD, both_BD, both_BD.sum(1, keepdim=True), share_B[:, None]], dim=1)


class TargetAttention(nn.Module):
    """A mean of the past, weighted by how it suits the candidate: `softmax(h W c)` beside an empty place of score 0.

    `W` starts as a multiple of the identity, so that it is similarity that counts at first.
    """

    def __init__(self, width: int, sharpness: float):
        super().__init__()
        self.query = nn.Linear(width, width, bias=False)
        with torch.no_grad():
            self.query.weight.copy_(sharpness * torch.eye(width))

    def forward(self, candidate_BD: Tensor, past_ED: Tensor, events: Chosen) -> tuple[Tensor, Tensor]:
        """The mean [B, D], and the share of all weights that the past has [B]: zeros where nothing counts."""
        score_E = (self.query(candidate_BD).index_select(0, events.row_E) * past_ED).sum(1)
        score_BN = F.pad(events.spread(score_E, -torch.inf), (1, 0))  # the empty place is never masked: nothing is NaN
        weight_BN = score_BN.softmax(1)[:, 1:]
        weighted_ED = events.take(weight_BN)[:, None] * past_ED
        return events.sum(weighted_ED)[:, 0], weight_BN.sum(1)
