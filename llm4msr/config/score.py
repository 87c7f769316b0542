"""Lists of the best items for each user, made offline."""

from typing import Annotated, Literal

from pydantic import Field

from llm4msr.config.section import Key, Section


class ScoreConfig(Section):
    """The lists of each user's best items that `llm4msr score` publishes."""

    top_k: int = Field(100, ge=1, le=10_000)
    """Items of a list, at most."""
    scenarios: Literal["all", "history"] | Annotated[tuple[str, ...], Field(min_length=1)] = "all"
    """Which scenarios each user gets a list in: `all` that the model knows, so that a user who comes to one for the
    first time finds a list there; or those of the user's own `history` alone, which costs less; or those that you
    name."""
    candidates: Annotated[str, Key.URI] = ""
    """The items that lists are made of: URI of a table, CSV or Parquet, with the columns `scenario` and `item_id`; a
    row without a scenario counts in every one. Empty = in each scenario those that its training rows like."""
    leave_out: Literal["seen", "liked", "nothing"] = "seen"
    """Which candidates a user's lists lack: what the user has any row of, in whatever scenario and split (`seen`), only
    what the user liked (`liked`), or none."""
    output: Annotated[str, Key.HOW] = ""
    """Folder or URI below which the lists are published; empty = `score` below `storage`."""
