"""What an engine is: a frozen LLM that turns prompts into last-layer hidden states, and into text."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from llm4msr.errors import LLM4MSRError
from llm4msr.prompts import ANSWER_BEGINS

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

    def vectors(self, tokens: Sequence[list[int]]) -> npt.NDArray[np.float32]:
        """Hidden states after the final norm, pooled over each token list: float32 [N, D]."""
        ...

    def answers(
        self, tokens: Sequence[list[int]], max_tokens: int, schemas: Sequence[dict[str, Any]] | None = None
    ) -> list[str]:
        """The text that the LLM gives to each token list, decoded greedily.

        `schemas` are JSON schemas, one for each list, that an engine holds the answers to if it can.
        """
        ...


class PromptTooLongError(LLM4MSRError):
    """A prompt has more tokens than allowed."""


class PromptTokenizer:
    """Turns a prompt into the tokens that every engine reads: the model's chat template around it, if it has one."""

    def __init__(self, folder: Path, max_tokens: int):
        from transformers import AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.max_tokens = max_tokens

    def __call__(self, prompt: str, answer: str = "") -> list[int]:
        """Token ids of the prompt, and of the LLM's own answer after it where there is one.

        Raises:
            PromptTooLongError: more than `max_tokens`.
        """
        (ids,) = self.many([prompt], [answer])
        return self.checked(ids)

    def many(self, prompts: Sequence[str], answers: Sequence[str]) -> list[list[int]]:
        """The same of several prompts, however long; one call of the tokenizer is several times faster than many."""
        if not prompts:
            return []
        texts = [self._text(prompt) + answer for prompt, answer in zip(prompts, answers, strict=True)]
        ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=not self.tokenizer.chat_template).input_ids
        return ids

    def checked(self, ids: list[int]) -> list[int]:
        """The same ids, unless they are too many.

        Raises:
            PromptTooLongError: more than `max_tokens`.
        """
        if len(ids) > self.max_tokens:
            raise PromptTooLongError(
                f"prompt of {len(ids)} tokens, allowed are {self.max_tokens}; "
                "lower extract.titles_per_scenario or raise extract.max_prompt_tokens"
            )
        return ids

    def _text(self, prompt: str) -> str:
        text, _, begun = prompt.partition(ANSWER_BEGINS)
        if self.tokenizer.chat_template:
            messages = [{"role": "user", "content": text}]
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return text + begun
