"""Requests and responses as JSON.

msgspec checks limits while it reads and stops at the first thing that is wrong, so a wrong body costs no more than a
right one. `bundle/messages.py` says what a request holds; what stands here says the same to msgspec, and a test
compares the two.
"""

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from fastapi import HTTPException
from msgspec import UNSET, Meta, UnsetType

from llm4msr.bundle.messages import (
    CONTEXT_FIELDS,
    EARLIEST,
    FEATURE_VALUES,
    LATEST,
    USER_FEATURES,
    HistoryEvent,
    NewEvent,
    RankRequest,
)
from llm4msr.text import MAX_ID, shorten

Text = Annotated[str, Meta(max_length=MAX_ID)]
Values = Annotated[list[Text], Meta(max_length=FEATURE_VALUES)]


class _Given(msgspec.Struct, forbid_unknown_fields=True):
    """Fields as they were sent; those that were not are UNSET, so that writing them again leaves them out too."""


class Event(_Given, gc=False):
    """A `HistoryEvent`."""

    item_id: Text
    scenario: Text
    liked: bool | UnsetType = UNSET


class Request(_Given):
    """A `RankRequest`."""

    user_id: Text
    scenario: Text
    items: Annotated[list[Text], Meta(min_length=1, max_length=100_000)]
    context: Annotated[dict[Text, Text], Meta(max_length=CONTEXT_FIELDS)] | UnsetType = UNSET
    user_features: Annotated[dict[Text, Text | Values], Meta(max_length=USER_FEATURES)] | UnsetType = UNSET
    top_k: Annotated[int, Meta(ge=1)] | UnsetType | None = UNSET
    history: Annotated[list[Event], Meta(max_length=1_000)] | UnsetType = UNSET
    history_mode: Literal["extend", "replace"] | UnsetType = UNSET

    def message(self) -> RankRequest:
        """For the ranker. Nothing is checked again."""
        history = [
            HistoryEvent.model_construct(item_id=e.item_id, scenario=e.scenario, liked=e.liked is not False)
            for e in self.history or ()
        ]
        given = {name: value for name in self.__struct_fields__ if (value := getattr(self, name)) is not UNSET}
        return RankRequest.model_construct(**(DEFAULTS | given | {"history": history}))


class Batch(_Given):
    """A `RankBatchRequest`."""

    requests: Annotated[list[Request], Meta(min_length=1, max_length=256)]


class Told(_Given, gc=False):
    """A `NewEvent`."""

    event_id: Annotated[str, Meta(min_length=1, max_length=MAX_ID)]
    user_id: Text
    item_id: Text
    scenario: Text
    time: Annotated[float, Meta(ge=EARLIEST, le=LATEST)]
    liked: bool | UnsetType = UNSET

    def message(self) -> NewEvent:
        """Nothing is checked again."""
        given = {name: getattr(self, name) for name in self.__struct_fields__}
        return NewEvent.model_construct(**(given | {"liked": self.liked is not False}))


class Events(_Given):
    """An `EventBatch`."""

    events: Annotated[list[Told], Meta(min_length=1, max_length=1_000)]


class Users(_Given):
    """`UsersToForget`."""

    user_ids: Annotated[list[Text], Meta(min_length=1, max_length=1_000)]


Given = TypeVar("Given", Request, Batch, Events, Users)
DEFAULTS: dict[str, Any] = {"context": {}, "user_features": {}, "top_k": None, "history_mode": "extend"}
"""Of a `RankRequest`; pydantic takes long to look them up."""
_READ_REQUEST, _READ_BATCH = msgspec.json.Decoder(Request).decode, msgspec.json.Decoder(Batch).decode
_READ_EVENTS, _READ_USERS = msgspec.json.Decoder(Events).decode, msgspec.json.Decoder(Users).decode
_BOM = b"\xef\xbb\xbf"


def read_request(body: bytes) -> list[RankRequest]:
    """The one request in a body.

    Raises:
        HTTPException: 422, the body is no such request; says where and why, and repeats little of what was sent.
    """
    return [_read(_READ_REQUEST, body).message()]


def read_batch(body: bytes) -> list[RankRequest]:
    """The requests of a batch; raises as `read_request` does."""
    return [request.message() for request in _read(_READ_BATCH, body).requests]


def read_events(body: bytes) -> list[NewEvent]:
    """The events of a batch; raises as `read_request` does."""
    return [event.message() for event in _read(_READ_EVENTS, body).events]


def read_users(body: bytes) -> list[str]:
    """The ids of users to forget; raises as `read_request` does."""
    return _read(_READ_USERS, body).user_ids


def _read(decode: Callable[[bytes], Given], body: bytes) -> Given:
    try:
        given = decode(body.removeprefix(_BOM))
    except msgspec.ValidationError as error:
        raise _refusal(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise HTTPException(422, f"the body is no JSON in UTF-8: {shorten(str(error), 200)}") from None
    if _quotes(msgspec.json.encode(given)) != _quotes(body):  # all texts are kept, but of the same key's the last alone
        raise HTTPException(422, "the body has a key that stands twice in an object")
    return given


def _quotes(json: bytes) -> int:
    """How many begin or end a text; those within a text are written as a backslash and a quote."""
    return json.replace(b"\\\\", b"").replace(b'\\"', b"").count(b'"')


def _refusal(message: str) -> HTTPException:
    """As FastAPI refuses a body, from a message such as "Expected `str`, got `int` - at `$.items[0]`"."""
    what, _, where = message.rpartition(" - at ")
    place = [shorten(part) for part in re.findall(r"\w+|\.{3}", where.partition("$")[2][:100])]
    error = {"loc": ["body", *place], "msg": shorten(what or message, 200), "type": "invalid"}
    return HTTPException(422, [error])


write = msgspec.json.Encoder(enc_hook=vars).encode
"""Responses, which the ranker has built from checked parts, as JSON; `vars` gives the fields of pydantic's messages."""
