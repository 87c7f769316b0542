"""How requests are read, and what is said of those that are wrong."""

import json

import pytest

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


def test_an_error_names_the_place_and_repeats_little_of_what_was_sent(server: Server) -> None:
    for change, place in (({"user_id": ["u"]}, "user_id"), ({"items": list(range(50))}, "items.0")):
        answer = server.post(json.dumps({"user_id": "u", "scenario": "s", "items": ["a"]} | change))
        (error,) = answer.json()["detail"]
        assert (answer.status_code, error["loc"]) == (422, ["body", *place.split(".")])
        assert error["msg"].startswith("Expected `str`, got ")
    for field in ("<script>" * 100, "\u202e"):
        answer = server.post(json.dumps({field: 1}))
        assert (answer.status_code, len(answer.content) < 400) == (422, True)
        assert "\u202e" not in answer.json()["detail"][0]["msg"]
