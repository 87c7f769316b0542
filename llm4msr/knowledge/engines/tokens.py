"""From a prompt to the tokens that every engine reads: the model's chat template around it, and text that stays text.

A title can spell `<|im_end|>`, and a tokenizer makes of that the token that ends the user's turn. So a prompt must hold
the control tokens of the chat template and no others. Where it holds more, its text is tokenised apart from the
template, and whatever spells a control token is tokenised letter by letter. Some templates mark turns in plain text,
such as `[/INST]`; where data holds such a mark, it gets a blank after its first letter.
"""

import json
import re
from collections.abc import Sequence
from datetime import datetime
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from llm4msr import storage
from llm4msr.errors import LLM4MSRError, StorageError
from llm4msr.knowledge.engines import models
from llm4msr.knowledge.prompts.templates import ANSWER_BEGINS
from llm4msr.text import first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TODAY = datetime(2024, 7, 26)
"""What a chat template takes for today: vectors of one prompt must not differ from day to day."""
_PLACEHOLDER = "PromptStandsHere"
GENERIC = {"PreTrainedTokenizerFast", "TokenizersBackend"}
"""Names of the one class that is all in tokenizer.json, in older and newer models."""
MARKUP = re.compile(r"<[^\s<>{}%]{1,60}>|\[/?[A-Z_]{2,40}\]")
"""What chat templates mark turns with that is no token of its own in some models, such as `[/INST]`."""


class PromptTooLongError(LLM4MSRError):
    """A prompt has more tokens than allowed."""


class ControlTokenError(LLM4MSRError):
    """A prompt's text holds a control token that cannot be read as text."""


def too_long(tokens: str, allowed: int) -> PromptTooLongError:
    """The error of a prompt of so many tokens."""
    return PromptTooLongError(
        f"prompt of {tokens} tokens, allowed are {allowed}; "
        "shorten the template, lower extract.titles_per_scenario or raise extract.max_prompt_tokens"
    )


class PromptTokenizer:
    """Turns a prompt into token ids, within the model's chat template if it has one.

    What stands after a prompt's `templates.ANSWER_BEGINS` goes to the beginning of the answer.
    """

    def __init__(self, folder: Path, max_tokens: int, framed: bool = True):
        """Open the tokenizer of the model in `folder`; unless `framed`, its chat template is left out.

        Raises:
            StorageError: the folder holds none that can be loaded, or its chat template cannot be used.
        """
        try:
            with models.quiet():
                self.tokenizer = _load(folder)
        except Exception as error:  # damaged files lead to errors of many kinds
            why = f"{type(error).__name__}: {first_line(error)}"
            raise StorageError(f"{folder}: the tokenizer cannot be loaded ({why}); copy the model again") from None
        self.max_tokens = max_tokens
        self._template = self.tokenizer.chat_template if framed else None
        self._before, self._after = self._read_frame(folder)
        added = self.tokenizer.added_tokens_decoder.items()
        self._controls = {number: str(token) for number, token in added if _is_control(str(token), token.special)}
        if not framed:  # an encoder's vocabulary has not every letter, and what it has not is no control token
            self._controls = {number: text for number, text in self._controls.items() if not self._is_unknown(text)}
        self._frame_controls = lru_cache(64)(self._find_frame_controls)
        self._frame_ids, self._spelling = lru_cache(64)(self._find_frame_ids), lru_cache(1 << 12)(self._spell)

    def __call__(self, prompt: str, answer: str = "") -> list[int]:
        """Token ids of the prompt, and of the LLM's own answer after it where there is one.

        Raises:
            PromptTooLongError: more than `max_tokens`.
            ControlTokenError: a control token in the prompt cannot be read as text.
        """
        (ids,) = self.encode_batch([prompt], [answer])
        return self.check_length(ids)

    def encode_batch(self, prompts: Sequence[str], answers: Sequence[str]) -> list[list[int]]:
        """Token ids of several prompts, however long they are: much faster than one call of the tokenizer for each.

        Raises:
            ControlTokenError: a control token in a prompt cannot be read as text.
        """
        if not prompts:
            return []
        parts = [(*self._split(prompt), answer) for prompt, answer in zip(prompts, answers, strict=True)]
        texts = [f"{self._before}{text}{self._after}{begun}{answer}" for text, begun, answer in parts]
        batch: list[list[int]] = self.tokenizer(texts, add_special_tokens=not self._template).input_ids
        return [
            ids if self._is_plain(ids, *part) else self._encode_apart(*part)
            for ids, part in zip(batch, parts, strict=True)
        ]

    def check_length(self, ids: list[int]) -> list[int]:
        """The same ids, unless they are too many.

        Raises:
            PromptTooLongError: more than `max_tokens`.
        """
        if len(ids) > self.max_tokens:
            raise too_long(str(len(ids)), self.max_tokens)
        return ids

    def count(self, ids: Sequence[int]) -> int:
        """How many tokens they are."""
        return len(ids)

    @property
    def frame(self) -> str:
        """Identity of what stands before and after each prompt's text."""
        return storage.digest(self._before, self._after)[:12]

    def _read_frame(self, folder: Path) -> tuple[str, str]:
        """What the chat template puts before and after the user's message; empty texts where there is no template."""
        if not self._template:
            return "", ""
        try:
            first, *others = (self._render() for _ in range(8))
        except Exception as error:
            why = f"{type(error).__name__}: {first_line(error)}"
            raise StorageError(f"{folder}: the chat template cannot be used ({why})") from None
        if {*others} != {first}:
            raise StorageError(f"{folder}: the chat template gives another text each time, so no vector could be kept")
        if first.count(_PLACEHOLDER) != 1:
            raise StorageError(
                f"{folder}: the chat template shows the user's message {first.count(_PLACEHOLDER)} times or changed; "
                "once and unchanged is needed"
            )
        before, _, after = first.partition(_PLACEHOLDER)
        return before, after

    def _is_unknown(self, text: str) -> bool:
        """Whether this token stands for what the vocabulary has not, and for nothing else."""
        return [name for name, token in self.tokenizer.special_tokens_map.items() if token == text] == ["unk_token"]

    def _split(self, prompt: str) -> tuple[str, str]:
        """The user's message, and what the template begins the answer with."""
        text, _, begun = prompt.partition(ANSWER_BEGINS)
        return (text.strip() if self._template else text), begun

    def _render(self) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                [{"role": "user", "content": _PLACEHOLDER}],
                tokenize=False,
                add_generation_prompt=True,
                date_string=TODAY.strftime("%d %b %Y"),
                strftime_now=TODAY.strftime,
            )
        )

    def _is_plain(self, ids: list[int], text: str, begun: str, answer: str) -> bool:
        """Whether the tokens hold no control besides the template's, and the text none of its other marks."""
        data = text + answer
        return self._controls_in(ids) == self._frame_controls(begun) and not any(mark in data for mark in self._marks)

    def _controls_in(self, ids: Sequence[int]) -> list[int]:
        return [number for number in ids if number in self._controls]

    def _find_frame_controls(self, begun: str) -> list[int]:
        """Control tokens of a prompt whose text is a word."""
        text = f"{self._before}word{self._after}{begun}"
        return self._controls_in(self.tokenizer(text, add_special_tokens=not self._template).input_ids)

    @cached_property
    def _marks(self) -> list[str]:
        """Texts that mark turns in the chat template without being tokens of their own."""
        source = self._template
        sources = source.values() if isinstance(source, dict) else [source or ""]
        marks = {mark for text in (*sources, self._before, self._after) for mark in MARKUP.findall(text)}
        end = self._after.strip()
        if len(end) > 3 and "\n" not in end and not end.isalpha():
            marks.add(end)  # such as `ASSISTANT:`
        return sorted(marks - set(self._controls.values()))

    def _encode_apart(self, text: str, begun: str, answer: str) -> list[int]:
        """Token ids with text and answer tokenised apart from the template, as text."""
        before, between, after = self._frame_ids(begun)
        ids = [*before, *self._encode_text(text), *between, *self._encode_text(answer), *after]
        if self._controls_in(ids) != self._frame_controls(begun):
            raise ControlTokenError("the text holds a control token of the model that cannot be read as text")
        return ids

    def _encode_text(self, text: str) -> list[int]:
        for mark in self._marks:
            text = text.replace(mark, f"{mark[0]} {mark[1:]}")
        return [number for token in self._encode_bare([text]) for number in self._spelling(token)] if text else []

    def _spell(self, token: int) -> list[int]:
        """The token itself, or the letters of a control token."""
        if token not in self._controls:
            return [token]
        letters = self._encode_bare(list(self._controls[token]))
        return [letter for letter in letters if letter not in self._controls]

    def _encode_bare(self, texts: list[str]) -> list[int]:
        """Token ids of all texts in a row, without special tokens around or, where the tokenizer can, in them."""
        batch = self.tokenizer(texts, add_special_tokens=False, split_special_tokens=True).input_ids
        return [number for ids in batch for number in ids]

    def _find_frame_ids(self, begun: str) -> tuple[list[int], list[int], list[int]]:
        """Token ids before the text, between text and answer, and after the answer."""

        def plain(text: str) -> list[int]:
            ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids if text else []
            return ids

        if self._template:
            return plain(self._before), plain(self._after + begun), []
        word = plain("word")
        whole: list[int] = self.tokenizer("word", add_special_tokens=True).input_ids
        at = next((i for i in range(len(whole)) if whole[i : i + len(word)] == word), len(whole))
        return whole[:at], plain(begun), whole[at + len(word) :]


def _load(folder: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer that `AutoTokenizer` chooses; to choose, that loads PyTorch and the classes of all models first."""
    from transformers import PreTrainedTokenizerFast

    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if config.get("tokenizer_class") in GENERIC and "auto_map" not in config and (folder / "tokenizer.json").exists():
        return PreTrainedTokenizerFast.from_pretrained(folder)
    from transformers import AutoTokenizer

    chosen: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return chosen


def _is_control(text: str, special: bool) -> bool:
    """Whether a token that was added to the vocabulary means more than its text, as blanks and whole words do not."""
    return bool(text.strip(" \t\r\n\u2581\u0120")) and (special or bool(re.search(r"[<>\[\]|{}]", text)))
