"""What every section of the configuration is: frozen, typed, with keys that say how they enter a fingerprint."""

from enum import Enum

from pydantic import BaseModel, ConfigDict


class Key(Enum):
    """How the value of a key enters a fingerprint, if not as it is."""

    HOW = "says how to run, not what comes out: it enters no fingerprint"
    URI = "names a file whose content enters the fingerprint instead of its name"


class Section(BaseModel):
    """A frozen section that refuses unknown keys, and numbers that are not finite.

    The docstring below a key is its description, in the JSON schema too.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    def identity(self) -> dict[str, object]:
        """The keys that decide the result of the stage that reads this section, for its fingerprint."""
        unmarked = {
            n for n, key in type(self).model_fields.items() if not any(isinstance(m, Key) for m in key.metadata)
        }
        return self.model_dump(include=unmarked)
