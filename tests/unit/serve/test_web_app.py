"""How requests are read, and what is said of those that are wrong."""

import asyncio
import json
from typing import Any

import pytest
from fastapi import HTTPException, Request
from starlette.types import Message

from llm4msr.config import ServeConfig
from llm4msr.serve.strict_json import MAX_LISTS, MAX_OBJECTS, StrictRequest
from tests.unit.serve.conftest import Server

IDS = {b"plain-1": 200, "é漢".encode(): 200, b"x" * 128: 200, b"x" * 129: 422, b"\xe9": 422, b"a\xffb": 422}
IDS |= {("漢" * 128).encode(): 200, ("é" * 129).encode(): 422}
IDS |= {b"a\x1b[31m": 400, "a\u202eb".encode(): 422, "a\u2028b".encode(): 422, b"a\tb": 422}


@pytest.mark.parametrize("given", IDS, ids=lambda given: repr(given[:9]))
def test_request_ids_are_readable_text(server: Server, given: bytes) -> None:
    answer = server.post(x_request_id=given)
    assert answer.status_code == IDS[given]
    assert server.ids == ([given.decode()] if answer.status_code == 200 else [])


NO_REQUESTS = {
    "broken": b"{",
    "empty": b"",
    "a bare NaN": b"NaN",
    "deep lists": b"[" * 2_000,
    "deep objects": b'{"a":' * 400,
    "deep context": b'{"user_id":"u","scenario":"s","items":["a"],"context":' + b'{"a":' * 200 + b"1" + b"}" * 201,
    "key twice": b'{"user_id":"a","user_id":"b","scenario":"s","items":["a"]}',
    "key twice below": b'{"user_id":"a","scenario":"s","items":["a"],"context":{"c":"1","c":"2"}}',
    "NaN": b'{"user_id":"u","scenario":"s","items":["a"],"top_k":NaN}',
    "infinite": b'{"user_id":"u","scenario":"s","items":["a"],"top_k":1e999}',
    "huge": b'{"user_id":"u","scenario":"s","items":["a"],"top_k":-' + b"9" * 1_900 + b"}",
    "surrogate": b'{"user_id":"\\ud800","scenario":"s","items":["a"]}',
    "surrogate key": b'{"\\ud800":1,"\\ud800":2}',
    "latin-1": '{"user_id":"é","scenario":"s","items":["a"]}'.encode("latin-1"),
    "UTF-16": '{"user_id":"u","scenario":"s","items":["a"]}'.encode("utf-16"),
    "UTF-32": '{"user_id":"u","scenario":"s","items":["a"]}'.encode("utf-32"),
    "overlong": b'{"user_id":"\xc0\xaf","scenario":"s","items":["a"]}',
    "true is no number": b'{"user_id":"u","scenario":"s","items":["a"],"top_k":true}',
    "a text is no number": b'{"user_id":"u","scenario":"s","items":["a"],"top_k":"3"}',
    "a list": b"[1,2]",
    "text": b'"text"',
}


@pytest.mark.parametrize("body", NO_REQUESTS.values(), ids=NO_REQUESTS)
def test_what_is_no_request_is_refused(server: Server, body: bytes) -> None:
    for path in ("v1/rank", "v1/rank:batch"):
        answer = server.post(body, path)
        assert answer.status_code == 422
        assert len(answer.content) < 3_000
    assert server.calls == 0


def test_a_body_that_is_not_said_to_be_json_or_is_compressed_is_told_how_to_be_sent(server: Server) -> None:
    for content_type in ("application/x-www-form-urlencoded", "text/plain"):
        answer = server.post(content_type=content_type)
        assert answer.status_code == 422
        assert "send it with content-type: application/json" in answer.json()["detail"]
    answer = server.post(content_encoding="gzip")
    assert answer.status_code == 422
    assert "content-encoding: gzip is not read here; send the body as it is" in answer.json()["detail"]
    assert server.post(content_encoding="identity").status_code == 200


def request_for(items: list[Any]) -> Request:
    return request_of({"user_id": "u", "scenario": "s", "items": items})


def request_of(content: Any) -> Request:
    body = json.dumps(content).encode()

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return StrictRequest({"type": "http", "headers": []}, receive)


def test_lists_are_counted_before_they_are_made_and_brackets_in_texts_are_none() -> None:
    for items in ([[]] * MAX_LISTS, [[[[[]]]]] * MAX_LISTS, ["[", '"', "\\", *[[]] * MAX_LISTS]):
        with pytest.raises(HTTPException, match="more than 2000 lists"):
            asyncio.run(request_for(items).json())
    for item in ("[" * MAX_LISTS, '"[\\"[' * MAX_LISTS, "\\"):
        assert asyncio.run(request_for([item, "["]).json())["items"] == [item, "["]
    assert len(asyncio.run(request_for([[]] * (MAX_LISTS - 1)).json())["items"]) == MAX_LISTS - 1


def test_a_full_batch_may_bring_long_histories_and_more_than_that_is_refused_in_words_of_its_own() -> None:
    history = [{"item_id": "i1", "scenario": "s"}] * ServeConfig().max_history
    request = {"user_id": "u", "scenario": "s", "items": ["a"], "context": {"device": "tv"}, "history": history}
    batch = {"requests": [request] * 256}
    assert asyncio.run(request_of(batch).json()) == batch
    with pytest.raises(HTTPException, match="413: the body has more than 60000 objects; send fewer requests"):
        asyncio.run(request_for([{}] * MAX_OBJECTS).json())


def test_an_error_names_the_place_and_repeats_nothing_that_was_sent(server: Server) -> None:
    body = {"user_id": ["u"], "scenario": {"deep": 1}, "items": list(range(50)), "<script>" * 20: float("nan")}
    answer = server.post(json.dumps(body))
    assert answer.status_code == 422
    errors = answer.json()["detail"]
    assert [error["loc"][1] for error in errors[:2]] == ["user_id", "scenario"]
    assert [error["loc"][1:] for error in errors[2:]] == [["items", "0"], ["<script>" * 7 + "<script…"]]
    assert "uuu" not in answer.text
    assert len(answer.content) < 2_000
