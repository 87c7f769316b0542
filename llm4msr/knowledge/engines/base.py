"""What an engine is: a frozen LLM that turns prompts into vectors (pooled hidden states), and into text.

For a new pooling of hidden states: name it in `Pooling` here and in `extract.pooling` (`config/knowledge.py`), and
compute it in each engine's `vectors`. How a user's vector is pooled from those of items is `knowledge/pooling.py`.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

from llm4msr.arrays import Singles

Pooling = Literal["last", "mean"]
"""Over a prompt's tokens: the last token's hidden state, or the mean of all."""
Task = Literal["answers", "vectors"]
"""What a pass of the LLM gives."""
JsonSchema = dict[str, object]

REPETITION_PENALTY = 1.15
"""For answers: small models decoded greedily fall into loops without it."""


class Billed(NamedTuple):
    """Tokens that an endpoint counts, and charges for."""

    read: int = 0
    written: int = 0


class Tokenizer(Protocol):
    """From a prompt to what an engine reads, as a list of numbers."""

    @property
    def frame(self) -> str:
        """Identity of what stands before and after each prompt's text."""
        ...

    def __call__(self, prompt: str, answer: str = "") -> list[int]:
        """Of one prompt, and of the LLM's own answer after it; a prompt of too many tokens is an error."""
        ...

    def encode_batch(self, prompts: Sequence[str], answers: Sequence[str]) -> list[list[int]]:
        """Of several prompts, however long they are."""
        ...

    def check_length(self, ids: list[int]) -> list[int]:
        """The same, unless they are too many tokens."""
        ...

    def count(self, ids: Sequence[int]) -> int:
        """How many tokens they are."""
        ...


class Engine(Protocol):
    """One frozen LLM in one process. Engines of the same model give the same vectors (cosine > 0.999).

    It reads N prompts as lists of token ids, which a `Tokenizer` gives; D is the width of its hidden state.
    """

    cached_tokens: int
    """Prompt tokens of the last call that were not computed, since an earlier prompt began with them."""
    billed: Billed
    """Of the last call."""
    refused: dict[int, str]
    """Why prompts of the last call were not read, by their places: their vectors are NaN, their answers empty."""

    @property
    def width(self) -> int:
        """D."""
        ...

    def vectors(self, tokens: Sequence[list[int]]) -> Singles:
        """Hidden states after the final norm, pooled over each prompt's tokens: float32 [N, D]."""
        ...

    def answers(
        self, tokens: Sequence[list[int]], max_tokens: int, schemas: Sequence[JsonSchema] | None = None
    ) -> list[str]:
        """The LLM's answer to each prompt, decoded greedily, without blanks at its ends.

        Args:
            tokens: the prompts.
            max_tokens: of an answer.
            schemas: one for each prompt, which an engine holds its answer to if it can.
        """
        ...
