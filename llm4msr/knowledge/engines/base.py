"""What an engine is: a frozen LLM that turns prompts into last-layer hidden states, and into text."""

from collections.abc import Sequence
from typing import Any, Literal, Protocol

from llm4msr.arrays import Singles

Pooling = Literal["last", "mean"]
Task = Literal["answers", "vectors"]

REPETITION_PENALTY = 1.15
"""For answers: small models decoded greedily fall into loops without it."""


class Engine(Protocol):
    """One frozen LLM in one process. Engines of the same model give the same vectors (cosine > 0.999)."""

    cached_tokens: int
    """Prompt tokens of the last call that were not computed, since an earlier prompt began with them."""

    @property
    def width(self) -> int:
        """Width D of the hidden state."""
        ...

    def vectors(self, tokens: Sequence[list[int]]) -> Singles:
        """Hidden states after the final norm, pooled over each token list: float32 [N, D]."""
        ...

    def answers(
        self, tokens: Sequence[list[int]], max_tokens: int, schemas: Sequence[dict[str, Any]] | None = None
    ) -> list[str]:
        """The text that the LLM gives to each token list, decoded greedily.

        `schemas` are JSON schemas, one for each list, that an engine holds the answers to if it can.
        """
        ...
