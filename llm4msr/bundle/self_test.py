"""Requests with the scores that the trained net gave; every load of a bundle ranks them again and compares."""

from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ValidationError

from llm4msr.bundle.messages import RankRequest, RankResponse
from llm4msr.errors import StorageError

TOLERANCE = 1e-5
"""The most that a probability may differ between the net as it trained and as it serves, or on another machine."""


class Case(BaseModel):
    """One request and the probabilities of its items, in the request's order."""

    request: RankRequest
    scores: list[float]


class SelfTest(BaseModel):
    """Requests and the scores that the trained net gave."""

    cases: list[Case]


def repeat(file: Path, rank: Callable[[RankRequest], RankResponse]) -> None:
    """Rank what stands in the file of a bundle.

    Raises:
        StorageError: the file is damaged, or a score is another one.
    """
    try:
        cases = SelfTest.model_validate_json(file.read_bytes()).cases
    except (OSError, ValidationError) as error:
        raise StorageError(f"{file}: damaged ({str(error)[:200]}); export again") from None
    for case in cases:
        scores = {item.item_id: item.score for item in rank(case.request).ranked}
        expected = dict(zip(case.request.items, case.scores, strict=True))
        worst = max(abs(scores[item] - score) for item, score in expected.items())
        if not worst <= TOLERANCE:
            raise StorageError(
                f"{file.parent}: the self-test of user '{case.request.user_id}' in '{case.request.scenario}' is "
                f"off by {worst:.1g}, allowed is {TOLERANCE:g}: files of different models, or another version of "
                "torch; export again"
            )
