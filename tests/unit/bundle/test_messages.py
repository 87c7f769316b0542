"""What a request may hold."""

from typing import Any

import pytest
from pydantic import ValidationError

from llm4msr.bundle.messages import RankBatchRequest, RankRequest
from llm4msr.text import MAX_ID

MANY = 200_000
GOOD = {"user_id": "u", "scenario": "s", "items": ["a"]}
EVENT = {"item_id": "a", "scenario": "s"}
WRONG = {
    "items": GOOD | {"items": [0] * MANY},
    "long items": GOOD | {"items": ["x" * (MAX_ID + 1)] * 300},
    "too many items": GOOD | {"items": ["a"] * MANY},
    "no items": GOOD | {"items": []},
    "a long id": GOOD | {"user_id": "x" * (MAX_ID + 1)},
    "none of them": GOOD | {"top_k": 0},
    "another field": GOOD | {"itmes": ["a"]},
    "many context fields": GOOD | {"context": {str(i): "" for i in range(65)}},
    "a number in the context": GOOD | {"context": {"a": 1}},
    "a number as a context field": GOOD | {"context": {1: "a"}},
    "a long context field": GOOD | {"context": {"x" * (MAX_ID + 1): "a"}},
    "a long text in the context": GOOD | {"context": {"a": "x" * (MAX_ID + 1)}},
    "all at once": {"user_id": 1, "scenario": 2, "items": [3] * 9, "context": {"a": 1}, "top_k": "x"},
    "many features": GOOD | {"user_features": {str(i): "" for i in range(65)}},
    "many values of a feature": GOOD | {"user_features": {"a": [""] * MANY}},
    "a number as a feature": GOOD | {"user_features": {"a": 1}},
    "a history of numbers": GOOD | {"history": [0] * MANY},
    "a history of nothing": GOOD | {"history": [{}] * MANY},
    "a long history": GOOD | {"history": [EVENT] * 1_001},
    "another field of an event": GOOD | {"history": [EVENT | {"itme": "a"}]},
    "events that are not there": GOOD | {"history": None},
    "a taste in words": GOOD | {"history": [EVENT | {"liked": "yes"}]},
    "another mode": GOOD | {"history_mode": "x" * MANY},
    "nothing": {},
}


@pytest.mark.parametrize("body", WRONG.values(), ids=WRONG)
def test_a_message_is_not_wrong_in_more_than_ten_ways(body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as one:
        RankRequest.model_validate(body)
    assert one.value.error_count() <= 10
    for requests in ([body] * 256, [GOOD, body] * 100, [None] * MANY, [GOOD] * 257):
        with pytest.raises(ValidationError) as batch:
            RankBatchRequest.model_validate({"requests": requests})
        assert batch.value.error_count() <= 10


def test_the_longest_ids_are_taken() -> None:
    longest = "x" * MAX_ID
    assert RankRequest.model_validate({"user_id": longest, "scenario": longest, "items": [longest]}).user_id == longest


def test_an_event_of_a_history_is_a_liked_one_unless_it_says_otherwise() -> None:
    told = RankRequest.model_validate(GOOD | {"history": [EVENT, EVENT | {"liked": False}]})
    assert [event.liked for event in told.history] == [True, False]
    assert (told.history_mode, RankRequest.model_validate(GOOD).history) == ("extend", [])
    assert len(RankRequest.model_validate(GOOD | {"history": [EVENT] * 1_000}).history) == 1_000
