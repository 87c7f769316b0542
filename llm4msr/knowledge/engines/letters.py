"""Prompts for an endpoint that reads text: the numbers of their letters stand in for tokens, which it makes itself.

What would mark a turn in some chat template, such as `<|im_end|>` or `[/INST]`, gets a blank after its first letter,
since nobody here knows which of them the model behind the endpoint would take for a control token.
"""

import math
from collections.abc import Sequence

from llm4msr.knowledge.engines.tokens import MARKUP, too_long
from llm4msr.knowledge.prompts.templates import ANSWER_BEGINS

CHARACTERS_PER_TOKEN = 4.0
"""Where the model's tokenizer is not at hand."""


class Letters:
    """A `Tokenizer` without a vocabulary; `text` gives the text back."""

    frame = "text"

    def __init__(self, max_tokens: int):
        """`max_tokens` of a prompt, of `CHARACTERS_PER_TOKEN` letters each."""
        self.max_tokens = max_tokens

    def __call__(self, prompt: str, answer: str = "") -> list[int]:
        """The prompt's letters, and those of the answer after it.

        Raises:
            PromptTooLongError: more than `max_tokens`.
        """
        (ids,) = self.encode_batch([prompt], [answer])
        return self.check_length(ids)

    def encode_batch(self, prompts: Sequence[str], answers: Sequence[str]) -> list[list[int]]:
        """The letters of several prompts, however long they are."""
        return [_letters(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]

    def check_length(self, ids: list[int]) -> list[int]:
        """The same letters, unless they are too many.

        Raises:
            PromptTooLongError: more than `max_tokens`.
        """
        if self.count(ids) > self.max_tokens:
            raise too_long(f"about {self.count(ids)}", self.max_tokens)
        return ids

    def count(self, ids: Sequence[int]) -> int:
        """About how many tokens they are."""
        return math.ceil(len(ids) / CHARACTERS_PER_TOKEN)


def text(ids: Sequence[int]) -> str:
    """The text of these letters."""
    return "".join(map(chr, ids))


def _letters(prompt: str, answer: str) -> list[int]:
    data, _, begun = prompt.partition(ANSWER_BEGINS)
    parts = (MARKUP.sub(lambda mark: f"{mark[0][0]} {mark[0][1:]}", part).strip() for part in (data, begun + answer))
    return [*map(ord, "\n".join(filter(None, parts)))]
