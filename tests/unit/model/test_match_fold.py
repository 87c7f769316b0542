"""The match without torch gives the features of the match with it."""

import numpy as np
import pytest
import torch

from llm4msr.config import ModelConfig
from llm4msr.model.match_fold import FoldedPast, MatchFold
from llm4msr.model.matching import Match
from llm4msr.model.serving_match import MatchInput, RequestPast, request_features

PARTS = ("candidate", "cosines", "attention", "ids")
ITEMS, WIDTH = 20, 6


@pytest.mark.parametrize("events", [0, 1, 2, 3, 12])
@pytest.mark.parametrize("sharpness", [1, 1000])
@torch.no_grad()
def test_it_gives_what_torch_gives_whatever_the_past(events: int, sharpness: float):
    torch.manual_seed(events)
    config = ModelConfig(match=PARTS, code_dim=5, embedding_dim=4)
    unit_ID = torch.nn.functional.normalize(torch.randn(ITEMS, WIDTH), dim=1)
    unit_ID[[3, 4]] = 0
    match, table_VE = Match(config, unit_ID), torch.randn(ITEMS, config.embedding_dim)
    assert match.vectors is not None
    assert match.ids is not None
    for parameter in match.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    for attention in (match.vectors.attention, match.ids.attention):
        attention.query.weight.mul_(sharpness)  # scores far beyond what an exponential can hold
    item_E, here_E, liked_E = torch.randint(ITEMS, (events,)), torch.rand(events) < 0.5, torch.rand(events) < 0.7
    past = RequestPast(unit_ID[item_E], item_E, here_E, liked_E)
    given = MatchInput(unit_ID, [ITEMS], [past])
    expected_BM = request_features(match, given, table_VE, torch.arange(ITEMS)).numpy()

    arrays = (unit_ID[item_E], table_VE[item_E], here_E, liked_E)
    projected_BK = match.vectors.project(unit_ID).numpy()
    parts = MatchFold(match).features(
        FoldedPast(*(a.numpy() for a in arrays)), unit_ID.numpy(), projected_BK, table_VE.numpy()
    )
    np.testing.assert_allclose(np.concatenate([projected_BK, *parts], axis=1), expected_BM, atol=2e-5)
