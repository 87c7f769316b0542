"""The engine that asks an OpenAI-style endpoint: a vLLM server, Ray Serve LLM, or a hosted one.

What the endpoint says of a prompt (400, 413, 422) is that row's error. Whatever else goes wrong, after its retries, is
the endpoint's and ends the pass: shards that are finished are kept, and the same command asks about the others.

Sources: OpenAI's API reference, "Create embeddings" and "Create chat completion".
"""

import asyncio
import base64
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np

from llm4msr import storage
from llm4msr.arrays import Singles
from llm4msr.config import ExtractConfig
from llm4msr.errors import EndpointError
from llm4msr.knowledge.engines import models
from llm4msr.knowledge.engines.base import Billed, JsonSchema, Task
from llm4msr.knowledge.engines.endpoint import Endpoint, RefusedPromptError
from llm4msr.knowledge.engines.letters import text
from llm4msr.text import shorten

A = TypeVar("A")

MOST_BYTES, BYTES_PER_PROMPT, BYTES_PER_TOKEN = 1 << 16, 1 << 19, 1 << 8
"""Of one answer, which is read into memory: for what stands around, and of each vector or token."""
MOST_TOKENS = 1 << 40
"""That one answer may say it used."""


class _Answer(msgspec.Struct, kw_only=True):
    usage: Any = None
    """As endpoints see fit."""


class _Embedding(msgspec.Struct):
    index: int
    embedding: str | list[float | None]


class _Embeddings(_Answer):
    data: list[_Embedding]


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message


class _Chat(_Answer):
    choices: list[_Choice]


class HttpEngine:
    """An `Engine` that asks an endpoint, several requests at once; its width is that of the first vector."""

    def __init__(self, config: ExtractConfig, task: Task):
        """For vectors, the endpoint is asked for a first one, so that a wrong address or key shows before any row.

        Raises:
            ConfigError: the variable with the key is not set here, or holds no key.
            EndpointError: it cannot be reached, or does not answer as an endpoint.
        """
        self._config, self._endpoint, self._runner = config, Endpoint(config), asyncio.Runner()
        self.cached_tokens, self.billed, self.refused = 0, Billed(), dict[int, str]()
        self._width, self._without = 0, set[str]()
        if task == "vectors":
            self._ask([self._embed(0, ["text"])])
            if self.refused:
                why = f"{self.refused[0]}; check extract.model and http_dimensions"
                raise EndpointError(f"{self._url_of_vectors}: {why}")

    @property
    def width(self) -> int:
        """Width D of the endpoint's vectors."""
        return self._width

    def vectors(self, tokens: Sequence[list[int]]) -> Singles:
        """The endpoint's vectors, float32 [N, D].

        Raises:
            EndpointError: it cannot be reached, or does not answer as an endpoint.
        """
        inputs = [*tokens] if self._config.http_tokenizer else [*map(text, tokens)]
        size = self._config.http_prompts
        parts = self._ask([self._embed(at, inputs[at : at + size]) for at in range(0, len(inputs), size)])
        return np.concatenate([np.zeros((0, self._width), np.float32), *parts])

    def answers(
        self, tokens: Sequence[list[int]], max_tokens: int, schemas: Sequence[JsonSchema] | None = None
    ) -> list[str]:
        """Answers at temperature 0 to the texts whose letters these are; raises as `vectors` does."""
        each: Sequence[JsonSchema | None] = schemas or [None] * len(tokens)
        asked = enumerate(zip(map(text, tokens), each, strict=True))
        texts = self._ask([self._answer(at, prompt, max_tokens, schema) for at, (prompt, schema) in asked])
        return [answer.strip() for answer in texts]

    def _ask(self, requests: Sequence[Coroutine[Any, Any, A]]) -> list[A]:
        """What the requests give, in their order; the first that fails ends the others."""

        async def together() -> list[A]:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(request) for request in requests]
            return [task.result() for task in tasks]

        self.refused = {}
        try:
            return self._runner.run(together())
        except BaseExceptionGroup as errors:
            ours = [error for error in errors.exceptions if isinstance(error, EndpointError)]
            raise (ours or errors.exceptions)[0] from None

    async def _embed(self, first: int, inputs: Sequence[str | list[int]]) -> Singles:
        """Vectors of the prompts from the `first` on; those of a request that is refused are asked for by halves."""
        body: dict[str, object] = {"model": self._config.model, "input": inputs, "encoding_format": "base64"}
        if self._config.http_dimensions:
            body["dimensions"] = self._config.http_dimensions
        url = self._url_of_vectors
        try:
            answer = await self._endpoint.post(url, body, _Embeddings, MOST_BYTES + len(inputs) * BYTES_PER_PROMPT)
        except RefusedPromptError as error:
            if len(inputs) == 1:
                self.refused[first] = str(error)
                return np.full((1, self._width), np.nan, np.float32)
            half = len(inputs) // 2
            parts = [await self._embed(first, inputs[:half]), await self._embed(first + half, inputs[half:])]
            return np.concatenate(parts)
        self._count(answer.usage)
        by_index = {one.index: one.embedding for one in answer.data}
        if sorted(by_index) != [*range(len(inputs))] or len(answer.data) != len(inputs):
            raise EndpointError(f"{url}: {len(answer.data)} vectors for {len(inputs)} prompts, or of other numbers")
        return self._of_one_width(url, [_numbers(url, by_index[at]) for at in range(len(inputs))])

    @property
    def _url_of_vectors(self) -> str:
        return f"{self._config.http_url.rstrip('/')}/embeddings"

    def _of_one_width(self, url: str, vectors: list[Singles]) -> Singles:
        widths = {len(vector) for vector in vectors}
        self._width = self._width or widths.pop()
        wanted = self._config.http_dimensions or self._width
        if others := (widths | {self._width}) - {wanted}:
            raise EndpointError(
                f"{url}: a vector of {others.pop()} numbers, expected were {wanted}; does one model answer there?"
            )
        return np.stack(vectors)

    async def _answer(self, at: int, prompt: str, max_tokens: int, schema: JsonSchema | None) -> str:
        """The chat model's answer to the prompt at this place; none if it refuses it.

        Reasoning models take neither `max_tokens`, which has another name there, nor a temperature.
        """
        message = {"role": "user", "content": prompt}
        body: dict[str, object] = {"model": self._config.http_chat_model, "messages": [message]}
        body |= {"max_completion_tokens" if "max_tokens" in self._without else "max_tokens": max_tokens}
        body |= {} if "temperature" in self._without else {"temperature": 0}
        if schema is not None:
            named = {"name": "interests", "schema": schema}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        url = f"{(self._config.http_chat_url or self._config.http_url).rstrip('/')}/chat/completions"
        try:
            answer = await self._endpoint.post(url, body, _Chat, MOST_BYTES + max_tokens * BYTES_PER_TOKEN)
        except RefusedPromptError as error:
            if error.setting in ("max_tokens", "temperature") and error.setting in body:
                self._without.add(error.setting)
                return await self._answer(at, prompt, max_tokens, schema)
            self.refused[at] = str(error)
            return ""
        self._count(answer.usage)
        if not answer.choices:
            raise EndpointError(f"{url}: an answer without choices")
        return answer.choices[0].message.content or ""

    def _count(self, usage: object) -> None:
        """Add what an answer cost."""
        read, written = _tokens(usage, "prompt_tokens"), _tokens(usage, "completion_tokens")
        self.billed = Billed(self.billed.read + read, self.billed.written + written)
        self.cached_tokens += min(_tokens(usage, "prompt_tokens_details", "cached_tokens"), read)


def revision(config: ExtractConfig) -> str:
    """Identity of what an endpoint reads with, as far as one can tell from here.

    Raises:
        StorageError: the tokenizer cannot be found or read.
    """
    named = [config.http_url.rstrip("/"), config.model, config.http_revision, str(config.http_dimensions)]
    if config.http_tokenizer:
        named.append(models.revision(tokenizer_folder(config), weights=False))
    return storage.digest(*named)[:16]


def tokenizer_folder(config: ExtractConfig) -> Path:
    """Where the tokenizer lies on this machine, fetched without weights if need be."""
    return models.resolve(config.http_tokenizer, weights=False)


def _numbers(url: str, embedding: str | list[float | None]) -> Singles:
    """One vector, float32 [D]; what is no number stays none, and is its row's error."""
    try:
        if isinstance(embedding, str):
            vector = np.frombuffer(base64.b64decode(embedding, validate=True), "<f4").astype(np.float32)
        else:
            with np.errstate(over="ignore"):  # what no float32 holds is infinite
                vector = np.array(embedding, np.float32)  # None becomes NaN
    except ValueError as error:
        raise EndpointError(f"{url}: a vector that cannot be read ({shorten(str(error))})") from None
    if not len(vector):
        raise EndpointError(f"{url}: a vector of no numbers")
    return vector


def _tokens(usage: Any, *names: str) -> int:
    """How many tokens it says there are, by the names on the way to the number; 0 where it says nothing."""
    for name in names:
        usage = usage.get(name) if isinstance(usage, dict) else None
    return min(max(usage, 0), MOST_TOKENS) if isinstance(usage, int) else 0
