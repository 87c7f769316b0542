"""The contract of ranking: what is asked and what is answered, the same in Python and over HTTP."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from llm4msr.schema import MAX_ID

TOKEN = "LLM4MSR_API_TOKEN"
"""The environment variable that holds the API token; without it everybody may ask."""

Text = Annotated[str, Field(max_length=MAX_ID)]


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RankRequest(_Message):
    """Rank these items for this user in this scenario."""

    user_id: Text
    scenario: Text
    items: list[Text] = Field(min_length=1, max_length=100_000)
    context: dict[Text, Text] = Field(default_factory=dict, max_length=64)
    """Values of the context fields that the model was trained with; a field left out is unknown."""
    top_k: int | None = Field(None, ge=1)
    """How many to give back; all where it is left out."""


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


class RankResponse(_Message):
    """Items with the best first; equal scores keep the order of the request."""

    model_version: str
    knowledge_version: str
    """Which users' codes were used: those of the bundle, or newer ones."""
    request_id: str
    scenario: str
    ranked: list[RankedItem]
    unknown: Unknown
    knowledge: Literal["used", "none"]
    """Whether the LLM's knowledge of this user entered the scores."""


class RankBatchRequest(_Message):
    """Several requests at once."""

    requests: list[RankRequest] = Field(min_length=1, max_length=256)


class RankBatchResponse(_Message):
    """Answers in the order of the requests."""

    responses: list[RankResponse]


class ModelInfo(_Message):
    """What is being served."""

    model_version: str
    knowledge_version: str
    name: str
    backbone: str
    knowledge: str
    scenarios: list[str]
    context: list[str]
    users: int
    users_with_knowledge: int
    items: int
    problem: str = ""
    """Why a newer bundle or newer codes are not served, empty where all is well."""
