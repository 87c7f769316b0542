"""A bundle of a model that matches pasts scores as the trained net does, with all that is known of a user."""

from pathlib import Path
from typing import Any

import pytest

from llm4msr import Ranker, RankRequest
from tests.support.matching import PARTS, PAST_EVENTS, publish_matching, trained_scores

CANDIDATES = ["i3", "i1", "nobody's", "i9", "i2", "i14"]


def served_scores(ranker: Ranker, user: str, scenario: str, items: list[str]) -> list[float]:
    request = RankRequest(user_id=user, scenario=scenario, items=items)
    scores = {item.item_id: item.score for item in ranker.rank(request).ranked}
    return [scores[item] for item in items]


@pytest.mark.parametrize(
    ("total", "model"),
    [
        *((1, {"match": (part,), "knowledge": "none"}) for part in PARTS),
        (1, {"knowledge": "none"}),
        (1, {"knowledge": "feature", "backbone": "star"}),
        (4, {"knowledge": "both"}),
        (4, {"match": ("ids",), "knowledge": "none"}),
    ],
)
def test_scores_are_those_of_the_trained_net_that_sees_all_events_of_a_user(
    tmp_path: Path, total: int, model: dict[str, Any]
):
    made = publish_matching(tmp_path, total, **model)
    ranker = Ranker.load(str(made.output.folder))
    without = 0
    for user in ["u0", "u3", "u11", "nobody"]:
        for scenario in ("home", "search", "elsewhere"):
            past = made.events.get(user, [])[-PAST_EVENTS:]
            expected = trained_scores(made, user, scenario, CANDIDATES, past)
            assert served_scores(ranker, user, scenario, CANDIDATES) == pytest.approx(expected, abs=1e-5)
            without += expected != pytest.approx(trained_scores(made, user, scenario, CANDIDATES, []), abs=1e-3)
    assert without >= (0 if model.get("match") == ("candidate",) else 6)
    requests = [RankRequest(user_id=u, scenario="home", items=CANDIDATES[: 1 + at]) for at, u in enumerate(made.events)]
    for request, together in zip(requests, ranker.rank_many(requests, [""] * len(requests)), strict=True):
        alone = {item.item_id: item.score for item in ranker.rank(request).ranked}
        assert {item.item_id: item.score for item in together.ranked} == pytest.approx(alone, abs=1e-5)


def test_of_who_is_to_be_forgotten_no_past_is_kept(tmp_path: Path):
    made = publish_matching(tmp_path, forget=["u5"])
    ranker = Ranker.load(str(made.output.folder))
    assert made.output.manifest.info["users_with_past"] == len(ranker.pasts) == len(made.events) - 1
    assert ranker.pasts.find("u5") is None
    expected = trained_scores(made, "u5", "home", CANDIDATES, [])
    assert served_scores(ranker, "u5", "home", CANDIDATES) == pytest.approx(expected, abs=1e-5)
