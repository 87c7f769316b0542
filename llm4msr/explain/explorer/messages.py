"""What the explorer's page asks, and what it is answered."""

from typing import Annotated, Literal

from pydantic import BaseModel, FailFast, Field

from llm4msr.text import MAX_ID

MAX_TITLE, MAX_TITLES = 500, 400
"""Characters of a title, and titles of a scenario."""
SHOWN_TITLES = 200
"""A scenario's latest titles that the page gets; as many can be added to them."""

Id = Annotated[str, Field(max_length=MAX_ID)]
Title = Annotated[str, Field(max_length=MAX_TITLE)]
Strength = Annotated[float, Field(ge=0, le=1.5, allow_inf_nan=False)]
Rival = Literal["plain", "bare"]
"""The plain model, or this one without what it knows of user and scenarios."""


class RunDetails(BaseModel):
    """The run that is explored."""

    name: str
    scenarios: list[str]
    editable: bool
    levels: list[str]
    """Those of `user` and `scenario` that can be turned."""
    titles_read: int
    """How many of the latest titles of a scenario count; 0 = all that are shown."""
    history_note: str
    """What an edited history does, or why there can be none."""
    rivals: list[Rival]
    """What the model can be compared with, the best first."""
    takes_events: bool
    """Whether the endpoint keeps events of users."""
    calibrated: bool
    """Whether the endpoint calibrates its scores; those shown here are the model's own."""


class ScenarioHistory(BaseModel):
    """What a user liked in one scenario, oldest first."""

    scenario: Id
    titles: Annotated[list[Title], FailFast()] = Field(max_length=MAX_TITLES)


class RankingRequest(BaseModel):
    """Whom to rank for, with how much of each level: 0 is without, 1 is as trained."""

    user_id: Id
    scenario: Id
    user_strength: Strength = 1.0
    scenario_strength: Strength = 1.0
    history: Annotated[list[ScenarioHistory] | None, FailFast()] = Field(None, max_length=1000)
    """An edited history; without it the user's own counts."""
    rival: Rival = "bare"


class Near(BaseModel):
    """A liked item of the history that is near a candidate."""

    title: str
    near: float


class RankedItem(BaseModel):
    """One candidate in both rankings; ranks count from 1, and scores are probabilities."""

    title: str
    rank_without: int
    rank_with: int
    score_without: float
    score_with: float
    held_out: Literal["", "liked", "negative"]
    """Whether a test row of the user has it, and how that ended."""
    nearest: list[Near]
    """The liked items that the match finds nearest; empty for a model without one."""


class Ranking(BaseModel):
    """The candidates, this model's best first."""

    lines: list[RankedItem]
    knowledge: Literal["own", "edited", "none"]
    """What was known of the user: their own, what the edited history tells, or nothing."""
    prompt: str
    """The prompt of an edited history, where an LLM reads it."""
    nearness: str
    """What `Near.near` is."""


class UserSummary(BaseModel):
    """A user in the results of a search."""

    user_id: str
    rows: int
    """Training rows."""
    main: str
    """The scenario of most of these rows."""
    known: bool


class LateEvent(BaseModel):
    """What the endpoint was told of a user since."""

    title: str
    scenario: str
    liked: bool
    time: float
    """Seconds since 1970."""


class UserDetails(BaseModel):
    """One user. Titles are whole, as the page sends them back; it shows them shortened."""

    user_id: str
    known: bool
    history: list[ScenarioHistory]
    scenario: str
    """The scenario to show first."""
    prompt: str
    answer: str
    interests: dict[str, list[str]]
    events: list[LateEvent] | None
    """The latest first; null where they could not be read."""
