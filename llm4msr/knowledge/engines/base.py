"""What an engine is: a frozen LLM that turns prompts into vectors (pooled hidden states), and into text.

For a new pooling of hidden states: name it in `Pooling` here and in `extract.pooling` (`config/knowledge.py`), and
compute it in each engine's `vectors`. How a user's vector is pooled from those of items is `knowledge/pooling.py`.
"""

from collections.abc import Sequence
from typing import Literal, Protocol

from llm4msr.arrays import Singles

Pooling = Literal["last", "mean"]
"""Over a prompt's tokens: the last token's hidden state, or the mean of all."""
Task = Literal["answers", "vectors"]
"""What a pass of the LLM gives."""
JsonSchema = dict[str, object]

REPETITION_PENALTY = 1.15
"""For answers: small models decoded greedily fall into loops without it."""


class Engine(Protocol):
    """One frozen LLM in one process. Engines of the same model give the same vectors (cosine > 0.999).

    It reads N prompts as lists of token ids, which a `PromptTokenizer` gives; D is the width of its hidden state.
    """

    cached_tokens: int
    """Prompt tokens of the last call that were not computed, since an earlier prompt began with them."""

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
