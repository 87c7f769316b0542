"""What a request tells of its user's features, as places in the embedding table. Shape suffix: S slots of a user."""

from collections.abc import Mapping, Sequence

import numpy as np

from llm4msr.arrays import AnyInts
from llm4msr.errors import ConfigError
from llm4msr.model.embedding import Field, slot_starts
from llm4msr.text import shorten


class UserFeatures:
    """Puts features that are told in the place of those that are kept.

    Args:
        fields: all features of the net, in the order of the slots.
        words: the vocabulary of each feature of users but the id; number 1 is its first word.
    """

    def __init__(self, fields: Sequence[Field], words: Mapping[str, Sequence[str]]):
        self.nobody_S = slot_starts([*fields], "user")
        """The slots of a user of whom nothing is known."""
        self.by_name: dict[str, tuple[slice, dict[str, int]]] = {}
        """The slots of each feature, and the place of each word."""
        at = 0
        for field in (field for field in fields if field.side == "user"):
            if field.name in words:
                first = 1 + int(self.nobody_S[at])
                numbers = {word: place for place, word in enumerate(words[field.name], first)}
                self.by_name[field.name] = slice(at, at + field.slots), numbers
            at += field.slots

    @property
    def names(self) -> list[str]:
        """Features that a request may tell."""
        return [*self.by_name]

    def check(self, told: Mapping[str, str | list[str]]) -> None:
        """Refuse features that the model was not trained with.

        Raises:
            ConfigError: names one.
        """
        if unknown := told.keys() - self.by_name.keys():
            known = ", ".join(self.by_name) or "none"
            raise ConfigError(f"user_features: unknown feature '{shorten(min(unknown))}'; this model knows: {known}")

    def put(self, user_S: AnyInts, told: Mapping[str, str | list[str]]) -> AnyInts:
        """The slots with what is told; other features stay, and those that the model does not know are passed over."""
        if not told:
            return user_S
        slots_S = np.array(user_S)
        for name in told.keys() & self.by_name.keys():
            at, numbers = self.by_name[name]
            values = told[name]
            known = [numbers[word] for word in ([values] if isinstance(values, str) else values) if word in numbers]
            slots_S[at] = self.nobody_S[at]
            slots_S[at][: len(known)] = known[: at.stop - at.start]
        return slots_S
