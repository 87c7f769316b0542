"""What brought a candidate up: the liked items of the past that a model's match finds nearest to it.

Shape suffixes: B candidates, E liked events of their one user, D width of a vector.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from llm4msr.model.inputs import Batch
from llm4msr.model.net import RankerNet

MOST = 3
"""Items that are named of each candidate."""
LEAST = 0.05
"""What is less near is not named."""
COSINE, SHARE = "cosine", "share of attention"


def nearness(net: RankerNet) -> str:
    """What the numbers are; empty for a model without a match."""
    if net.match is None:
        return ""
    return COSINE if net.match.vectors is not None else SHARE


def nearest(net: RankerNet, batch: Batch) -> list[list[tuple[int, float]]]:
    """Item number and nearness of at most `MOST` liked items of each candidate, the nearest first.

    By the cosine of their vectors where the model matches those, else by the weight that its attention over ids gives.
    All candidates have the same past.
    """
    match, past = net.match, batch.past
    if match is None or past is None:
        return [[] for _ in batch.slots_BS]
    item_E, first = _once(past.item_BN[0], past.liked_BN[0])
    if match.vectors is not None:
        unit_ID = match.vectors.unit_ID
        near_BE = unit_ID[past.candidate_B].float() @ unit_ID[item_E].float().T
        is_near_BE = match.vectors.known_I[past.candidate_B][:, None] & match.vectors.known_I[item_E]
    else:
        assert match.ids is not None
        weight = net.embedding.table.weight
        query_BD = match.ids.attention.query(weight[net.embedding.item_ids(batch.slots_BS)])
        score_BE = query_BD @ weight[past.place_BN[0, first]].T
        near_BE = F.pad(score_BE, (1, 0)).softmax(1)[:, 1:]  # beside the empty place
        is_near_BE = torch.ones_like(near_BE, dtype=torch.bool)
    return [_largest(near_E, is_near_E, item_E) for near_E, is_near_E in zip(near_BE, is_near_BE, strict=True)]


def _once(item_N: Tensor, liked_N: Tensor) -> tuple[Tensor, Tensor]:
    """Each liked item once, and where it stands."""
    places = {int(item): place for place, item in enumerate(item_N) if liked_N[place] and item > 0}
    return torch.tensor([*places], dtype=torch.int64), torch.tensor([*places.values()], dtype=torch.int64)


def _largest(near_E: Tensor, is_near_E: Tensor, item_E: Tensor) -> list[tuple[int, float]]:
    near_E = near_E.masked_fill(~is_near_E, -torch.inf)
    values, places = near_E.topk(min(MOST, len(near_E)))
    found = zip(item_E[places].tolist(), values.tolist(), strict=True)
    return [(item, value) for item, value in found if value >= LEAST]
