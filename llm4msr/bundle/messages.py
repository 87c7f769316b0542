"""The contract of ranking: what is asked and what is answered, the same in Python and over HTTP."""

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, FailFast, Field

from llm4msr.text import MAX_ID

CONTEXT_FIELDS = 64
USER_FEATURES, FEATURE_VALUES = 64, 64

Text = Annotated[str, Field(max_length=MAX_ID)]


class _Message(BaseModel):
    """Checked when it is made in Python; what comes over HTTP is checked by `serve/wire.py`."""

    model_config = ConfigDict(extra="forbid", frozen=True)


KnowledgeSource = Literal["stored", "events", "request", "none"]
"""Where what is known of a user came from."""


ScorerKind = Literal["folded", "torch"]
"""What scores: products of numpy, which the net was folded to, or the net itself where it does not fold."""


class HistoryEvent(_Message):
    """An item that the user took."""

    item_id: Text
    scenario: Text
    liked: bool = Field(True, strict=True)


class RecentEvent(NamedTuple):
    """What an endpoint was told that a user took."""

    item_id: str
    scenario: str
    liked: bool
    time: float
    """When the user took it, in seconds since 1970."""
    arrived: float
    """When the endpoint was told, likewise."""


class RankRequest(_Message):
    """Rank these items for this user in this scenario."""

    user_id: Text
    scenario: Text
    items: Annotated[list[Text], FailFast()] = Field(min_length=1, max_length=100_000)
    context: dict[Text, Text] = Field(default_factory=dict, max_length=CONTEXT_FIELDS)
    """Values of the context fields that the model was trained with; a field left out is unknown."""
    user_features: dict[Text, Text | Annotated[list[Text], Field(max_length=FEATURE_VALUES)]] = Field(
        default_factory=dict, max_length=USER_FEATURES
    )
    """Features of the user that the model was trained with, in the place of those that it keeps; for a user whom it
    does not have. A value that it never saw is unknown. Of several values of a feature the first known ones count, as
    many as a user of the data has at most."""
    top_k: int | None = Field(None, ge=1, strict=True)
    """How many to give back; all where it is left out."""
    history: Annotated[list[HistoryEvent], FailFast()] = Field(default_factory=list, max_length=1_000)
    """What the user took, the newest last. Items that the model does not know are left out."""
    history_mode: Literal["extend", "replace"] = "extend"
    """Whether the history comes after what the model keeps of the user, or instead of it."""


@dataclass(slots=True)
class RankedItem:
    """An item and the probability that the user likes it; a plain class, since an answer has hundreds of them."""

    item_id: str
    score: float


class Unknown(_Message):
    """What the model never saw; it ranks all the same, with what it learned for unknown ids."""

    user: bool
    scenario: bool
    items: list[str]
    history: int = 0
    """Events of the request's history that were left out, since their item is unknown."""


class RankResponse(_Message):
    """Items with the best first; equal scores keep the order of the request."""

    model_version: str
    knowledge_version: str
    """Which users' codes were used: those of the bundle, or newer ones."""
    request_id: str
    scenario: str
    ranked: list[RankedItem]
    unknown: Unknown
    knowledge: KnowledgeSource
    """Where the knowledge of the user's tastes behind these scores came from: what the model keeps (`stored`), newer
    events that the endpoint was told (`events`), the request's history (`request`), each alone or with those before it,
    or nowhere (`none`)."""


class RankBatchRequest(_Message):
    """Several requests at once."""

    requests: Annotated[list[RankRequest], FailFast()] = Field(min_length=1, max_length=256)


class RankBatchResponse(_Message):
    """Answers in the order of the requests."""

    responses: list[RankResponse]


EARLIEST, LATEST = 946_684_800, 4_102_444_800
"""The years 2000 and 2100 in seconds since 1970; milliseconds are later."""


class NewEvent(_Message):
    """A user took an item."""

    event_id: Annotated[str, Field(min_length=1, max_length=MAX_ID)]
    """Of this event alone, so that it may be sent again: of two with the same id, the later one is passed over."""
    user_id: Text
    item_id: Text
    scenario: Text
    liked: bool = Field(True, strict=True)
    time: float = Field(ge=EARLIEST, le=LATEST, strict=True)
    """When the user took it, in seconds since 1970; not in the future."""


class EventBatch(_Message):
    """What users took, in any order."""

    events: Annotated[list[NewEvent], FailFast()] = Field(min_length=1, max_length=1_000)


class EventsKept(_Message):
    """The events are on disk. Those of unknown items count as soon as a model knows them."""

    accepted: int
    duplicates: int
    """Events whose id was known; they changed nothing."""
    unknown_items: int
    """Events whose item the model in service does not know."""
    used: bool
    """Whether the model in service ranks by events; if not, they are kept for one that does."""


class UsersToForget(_Message):
    """Whose events to delete."""

    user_ids: Annotated[list[Text], FailFast()] = Field(min_length=1, max_length=1_000)


class EventsForgotten(_Message):
    """The events are deleted from the log, and within a second from what replicas hold."""

    deleted: int


class Calibration(_Message):
    """How far scores are from how often items are liked, before and after they were calibrated on validation rows.

    An error is the expected calibration error. Both are of the rows that were fitted to: on others, that after is
    larger.
    """

    method: Literal["platt"]
    """A line through the logits of each scenario."""
    rows: int
    """Validation rows."""
    error_before: float | None
    """Null where there are no rows."""
    error_after: float | None
    unchanged: list[str]
    """Scenarios with too few rows, whose scores are the model's own."""


class SecondInfo(_Message):
    """The second bundle, which ranks for some users or is compared with the first for them."""

    model_version: str
    """Empty while it cannot be loaded: the first ranks for its users."""
    knowledge_version: str
    share: float
    """Of the users."""
    shadow: bool
    """Whether what it says is thrown away."""
    salt: str


class ModelInfo(_Message):
    """What is being served."""

    model_version: str
    knowledge_version: str
    name: str
    backbone: str
    knowledge: str
    scorer: ScorerKind
    """What scores: products of numpy (`folded`), or torch where the net does not fold."""
    scenarios: list[str]
    context: list[str]
    user_features: list[str] = []
    """Those that a request may tell."""
    users: int
    users_with_knowledge: int
    """Users of whom a code is kept."""
    users_with_past: int = 0
    """Users of whom events are kept."""
    reads_history: bool = False
    """Whether the history in a request counts."""
    items: int
    calibration: Calibration | None = None
    """Null where scores are the model's own."""
    problem: str = ""
    """Why a newer bundle or newer codes are not served, of the second bundle too; empty where all is well."""
    second: SecondInfo | None = None
    """Null where there is one bundle."""
