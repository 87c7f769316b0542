"""JSON to requests: the same contract as in Python, each key once, and the first error ends it."""

import json
from typing import Any

import msgspec
import pytest
from fastapi import HTTPException
from hypothesis import given
from hypothesis import strategies as st

from llm4msr.bundle.messages import (
    EventBatch,
    NewEvent,
    RankBatchRequest,
    RankedItem,
    RankRequest,
    RankResponse,
    UsersToForget,
)
from llm4msr.serve import wire
from tests.unit.serve.conftest import RESPONSE

HEAD = '"user_id":"u","scenario":"s","items":["a"]'
NAMES = {"Batch": "RankBatchRequest", "Request": "RankRequest", "Event": "HistoryEvent"}
WORDS = {"title", "default", "description", "$defs"}
TEXTS = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('"\\[{:,'), max_size=9)


def bare(schema: Any) -> Any:
    """A JSON schema without its words, and without the type of what can only be one of some texts."""
    if not isinstance(schema, dict):
        return schema
    dropped = WORDS | ({"type"} if "enum" in schema else set())
    return {key: bare(value) for key, value in schema.items() if key not in dropped}


@pytest.mark.parametrize(
    ("message", "given", "names"),
    [
        (RankBatchRequest, wire.Batch, NAMES),
        (EventBatch, wire.Events, {"Events": "EventBatch", "Told": "NewEvent"}),
        (UsersToForget, wire.Users, {"Users": "UsersToForget"}),
    ],
)
def test_what_is_read_is_what_is_described(message: Any, given: Any, names: dict[str, str]) -> None:
    described, read = message.model_json_schema(), json.dumps(msgspec.json.schema(given))
    for ours, theirs in names.items():
        read = read.replace(f'"#/$defs/{ours}"', f'"#/$defs/{theirs}"')
    for ours, theirs in names.items():
        assert bare(json.loads(read)["$defs"][ours]) == bare(described.get("$defs", {}).get(theirs, described))


EVENT = {"event_id": "e", "user_id": "u", "item_id": "i", "scenario": "s", "time": 1_700_000_000}
NO_EVENTS = [{"time": 1_700_000_000_000}, {"time": "2024-01-01"}, {"time": -1}, {"time": None}, {"event_id": ""}]
NO_EVENTS += [
    {"event_id": "x" * 8193},
    {"user_id": 5},
    {"liked": 1},
    {"itme": "i"},
    {"item_id": ["i"]},
    {"time": 1e999},
]


def test_events_are_read_as_python_reads_them() -> None:
    events = [EVENT, EVENT | {"liked": False, "time": 1_700_000_000.5}]
    read = wire.read_events(json.dumps({"events": events}).encode())
    assert read == [NewEvent.model_validate(event) for event in events]
    assert wire.read_users(b'{"user_ids": ["a", "b"]}') == ["a", "b"]


@pytest.mark.parametrize("change", NO_EVENTS, ids=repr)
def test_what_is_no_event_is_refused_with_its_place(change: dict[str, Any]) -> None:
    with pytest.raises(HTTPException) as refused:
        wire.read_events(json.dumps({"events": [EVENT, EVENT | change]}).encode())
    assert refused.value.status_code == 422
    assert len(str(refused.value.detail)) < 400


def test_a_batch_of_events_is_bounded_and_names_each_key_once() -> None:
    for body in ('{"events":[]}', json.dumps({"events": [EVENT] * 1001}), '{"events":[%s,"user_id":"u"}]}'):
        with pytest.raises(HTTPException, match="422"):
            wire.read_events(body.replace("%s", json.dumps(EVENT)[:-1]).encode())
    assert len(wire.read_events(json.dumps({"events": [EVENT] * 1000}).encode())) == 1000


@given(st.fixed_dictionaries({"user_id": TEXTS, "scenario": TEXTS, "items": st.lists(TEXTS, min_size=1)}), st.data())
def test_a_request_is_read_as_python_reads_it(request: dict[str, Any], data: st.DataObject) -> None:
    event = st.fixed_dictionaries({"item_id": TEXTS, "scenario": TEXTS}, optional={"liked": st.booleans()})
    options = {"context": st.dictionaries(TEXTS, TEXTS), "top_k": st.none() | st.integers(1)}
    options["user_features"] = st.dictionaries(TEXTS, TEXTS | st.lists(TEXTS, max_size=9))
    options |= {"history": st.lists(event), "history_mode": st.sampled_from(["extend", "replace"])}
    request |= data.draw(st.fixed_dictionaries({}, optional=options))
    for escaped in (True, False):
        body = json.dumps(request, ensure_ascii=escaped).encode()
        assert wire.read_request(body) == [RankRequest(**request)]
        assert wire.read_batch(b'{"requests":[%s,%s]}' % (body, body)) == 2 * [RankRequest(**request)]


TWICE = [
    HEAD + ',"user_id":"u"',
    HEAD + ',"user\\u005fid":"u"',
    HEAD + ',"top_k":1,"top_k":2',
    HEAD + ',"context":{"a":"1","a":"2"}',
    HEAD + ',"context":{"\\"":"1","\\u0022":"2"}',
    HEAD + ',"context":{"\\\\":"1","\\u005c":"2"}',
    HEAD + ',"user_features":{"a":["1"],"a":"2"}',
    HEAD + ',"history":[{"item_id":"a","item_id":"b","scenario":"s"}]',
    HEAD + ',"history":[],"history":[{"item_id":"\\"","scenario":"\\\\"}]',
]


@pytest.mark.parametrize("fields", TWICE)
def test_a_key_stands_once(fields: str) -> None:
    for read, body in ((wire.read_request, "{%s}"), (wire.read_batch, '{"requests":[{%s}]}')):
        with pytest.raises(HTTPException, match="422: the body has a key that stands twice"):
            read((body % fields).encode())


def test_the_first_error_ends_the_reading() -> None:
    wrong = json.dumps({"user_id": "u", "scenario": "s", "items": [0] * 1_990})
    batch = f'{{"requests":[{{{HEAD}}},{",".join([wrong] * 255)}]}}'
    for read, body, place in ((wire.read_request, wrong, []), (wire.read_batch, batch, ["requests", "1"])):
        with pytest.raises(HTTPException) as refused:
            read(body.encode())
        (error,) = refused.value.detail
        assert error == {"loc": ["body", *place, "items", "0"], "msg": "Expected `str`, got `int`", "type": "invalid"}


def test_a_response_is_written_as_pydantic_writes_it() -> None:
    response = RESPONSE.model_copy(update={"ranked": [RankedItem('"ü\\', 0.1 + 0.2), RankedItem("", 1e-9)]})
    assert RankResponse.model_validate_json(wire.write(response)) == response
    assert json.loads(wire.write(response)) == json.loads(response.model_dump_json())
