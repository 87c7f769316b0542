"""A value for a key of the config, with the reason."""

from dataclasses import dataclass

Value = str | int | tuple[str, ...]


@dataclass(frozen=True)
class Guess:
    """What a key gets, and why in one line."""

    key: str
    value: Value
    why: str
    is_sure: bool = True


@dataclass(frozen=True)
class Note:
    """A line of explanation where no key is set."""

    text: str


@dataclass(frozen=True)
class Draft:
    """A config as sections of guesses, and what only the user can decide or mend before it runs."""

    path: str
    """`source.path`: the folder of the tables."""
    seen: str
    """What was read to guess it, in a sentence."""
    table: list[Guess | Note]
    """`[source.table]`."""
    split: list[Guess | Note]
    decisions: list[str]
    matches: bool = False
    """Whether the model shall compare a user's past with each candidate."""
    kind: str = "table"
