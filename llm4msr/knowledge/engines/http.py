"""The engine that asks an OpenAI-style endpoint: a vLLM server, Ray Serve LLM, or a hosted one.

What the endpoint says of a prompt (400, 413, 422) is that row's error. Whatever else goes wrong, after its retries, is
the endpoint's and ends the pass: shards that are finished are kept, and the same command asks about the others.

Sources: OpenAI's API reference, "Create embeddings" and "Create chat completion".
"""

import asyncio
import base64
import json
import os
import socket
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import httpx
import msgspec
import numpy as np
from httpx_retries import Retry, RetryTransport

from llm4msr import storage
from llm4msr.arrays import Singles
from llm4msr.config import ExtractConfig
from llm4msr.errors import ConfigError, EndpointError, LLM4MSRError
from llm4msr.knowledge.engines import models
from llm4msr.knowledge.engines.base import Billed, JsonSchema, Task
from llm4msr.knowledge.engines.letters import text
from llm4msr.text import shorten

A = TypeVar("A")
T = TypeVar("T", bound=msgspec.Struct)

REFUSED = (400, 413, 422)
"""What an endpoint answers if it is the prompt that it cannot take."""
RETRIED = (429, *range(500, 600))
LONGEST_WAIT_S = 300.0
"""Between two tries, however long the endpoint asks for."""
MOST_BYTES, BYTES_PER_PROMPT = 1 << 20, 1 << 19
"""Of one answer: it is read into memory."""


class RefusedPromptError(LLM4MSRError):
    """The endpoint does not take this prompt."""


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: dict[str, Any] | None = None


class _Embedding(msgspec.Struct):
    index: int
    embedding: str | list[float | None]


class _Embeddings(msgspec.Struct):
    data: list[_Embedding]
    usage: _Usage | None = None


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message


class _Chat(msgspec.Struct):
    choices: list[_Choice]
    usage: _Usage | None = None


class HttpEngine:
    """An `Engine` that asks an endpoint, several requests at once; its width is that of the first vector."""

    def __init__(self, config: ExtractConfig, task: Task):
        """For vectors, the endpoint is asked for a first one, so that a wrong address or key shows before any row.

        Raises:
            ConfigError: the variable with the key is not set here.
            EndpointError: it cannot be reached, or does not answer as an endpoint.
        """
        self._config, self._key = config, _read_key(config.http_key_variable)
        self.cached_tokens, self.billed = 0, Billed()
        self._client = _open_client(config, self._key)
        self._runner = asyncio.Runner()
        self._width = 0
        if task == "vectors":
            self._ask([self._embed(["text"])])

    @property
    def width(self) -> int:
        """Width D of the endpoint's vectors."""
        return self._width

    def vectors(self, tokens: Sequence[list[int]]) -> Singles:
        """The endpoint's vectors, float32 [N, D].

        Raises:
            EndpointError: it cannot be reached, or does not answer as an endpoint.
            RefusedPromptError: it does not take one of the prompts.
        """
        inputs = [*tokens] if self._config.http_tokenizer else [*map(text, tokens)]
        size = self._config.http_prompts
        parts = self._ask([self._embed(inputs[at : at + size]) for at in range(0, len(inputs), size)])
        return np.concatenate([np.zeros((0, self._width), np.float32), *parts])

    def answers(
        self, tokens: Sequence[list[int]], max_tokens: int, schemas: Sequence[JsonSchema] | None = None
    ) -> list[str]:
        """Answers at temperature 0 to the texts whose letters these are; raises as `vectors` does."""
        each: Sequence[JsonSchema | None] = schemas or [None] * len(tokens)
        texts = self._ask([self._answer(text(ids), max_tokens, it) for ids, it in zip(tokens, each, strict=True)])
        return [answer.strip() for answer in texts]

    def _ask(self, requests: Sequence[Coroutine[Any, Any, A]]) -> list[A]:
        """What the requests give, in their order; the first that fails ends the others."""

        async def together() -> list[A]:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(request) for request in requests]
            return [task.result() for task in tasks]

        try:
            return self._runner.run(together())
        except BaseExceptionGroup as errors:
            ours = [error for error in errors.exceptions if isinstance(error, EndpointError)]
            raise (ours or errors.exceptions)[0] from None

    async def _embed(self, inputs: Sequence[str | list[int]]) -> Singles:
        """Vectors of the prompts of one request."""
        body: dict[str, object] = {"model": self._config.model, "input": inputs, "encoding_format": "base64"}
        if self._config.http_dimensions:
            body["dimensions"] = self._config.http_dimensions
        url = f"{self._config.http_url.rstrip('/')}/embeddings"
        answer = await self._post(url, body, _Embeddings, len(inputs))
        by_index = {one.index: one.embedding for one in answer.data}
        if sorted(by_index) != [*range(len(inputs))] or len(answer.data) != len(inputs):
            raise EndpointError(f"{url}: {len(answer.data)} vectors for {len(inputs)} prompts, or of other numbers")
        return self._of_one_width(url, [_numbers(url, by_index[at]) for at in range(len(inputs))])

    def _of_one_width(self, url: str, vectors: list[Singles]) -> Singles:
        widths = {len(vector) for vector in vectors}
        self._width = self._width or widths.pop()
        wanted = self._config.http_dimensions or self._width
        if others := (widths | {self._width}) - {wanted}:
            raise EndpointError(
                f"{url}: a vector of {others.pop()} numbers, expected were {wanted}; does one model answer there?"
            )
        return np.stack(vectors)

    async def _answer(self, prompt: str, max_tokens: int, schema: JsonSchema | None) -> str:
        """The chat model's answer to one prompt."""
        message = {"role": "user", "content": prompt}
        body: dict[str, object] = {"model": self._config.http_chat_model, "messages": [message]}
        body |= {"max_tokens": max_tokens, "temperature": 0}
        if schema is not None:
            named = {"name": "interests", "schema": schema}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        url = f"{(self._config.http_chat_url or self._config.http_url).rstrip('/')}/chat/completions"
        answer = await self._post(url, body, _Chat, 1)
        if not answer.choices:
            raise EndpointError(f"{url}: an answer without choices")
        return answer.choices[0].message.content or ""

    async def _post(self, url: str, body: dict[str, object], layout: type[T], prompts: int) -> T:
        """The endpoint's answer, which has been paid for."""
        try:
            async with self._client.stream("POST", url, json=body) as response:
                content = await _read(response, MOST_BYTES + prompts * BYTES_PER_PROMPT)
        except httpx.HTTPError as error:
            why = self._public(f"{type(error).__name__}: {error}".rstrip(": "))
            raise EndpointError(f"{url}: no answer after {self._config.http_retries} retries ({why})") from None
        if response.status_code != httpx.codes.OK:
            raise self._refusal(url, response, content)
        try:
            answer = msgspec.convert(json.loads(content), layout)
        except (ValueError, RecursionError) as error:  # what JSON does not allow, or another layout than OpenAI's
            why = self._public(str(error))
            raise EndpointError(f"{url}: not what an OpenAI-style endpoint answers ({why})") from None
        self._count(getattr(answer, "usage", None) or _Usage())
        return answer

    def _count(self, usage: _Usage) -> None:
        read, written = max(usage.prompt_tokens, 0), max(usage.completion_tokens, 0)
        self.billed = Billed(self.billed.read + read, self.billed.written + written)
        cached = (usage.prompt_tokens_details or {}).get("cached_tokens", 0)
        self.cached_tokens += min(max(cached, 0), read) if isinstance(cached, int) else 0

    def _refusal(self, url: str, response: httpx.Response, content: bytes) -> LLM4MSRError:
        status = f"{response.status_code} {response.reason_phrase}".strip()
        said = self._public(_message(content))
        if response.status_code in REFUSED:
            return RefusedPromptError(f"the endpoint refuses it with {status}: {said}")
        advice = {401: "extract.http_key_variable", 403: "extract.http_key_variable", 404: "extract.http_url and model"}
        check = f"; check {advice[response.status_code]}" if response.status_code in advice else ""
        return EndpointError(f"{url}: {status}: {said}{check}")

    def _public(self, message: str) -> str:
        """What the endpoint or the network says, bounded, fit to be shown, and without the key."""
        return shorten(message.replace(self._key, "***") if self._key else message, 300)


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


def _open_client(config: ExtractConfig, key: str) -> httpx.AsyncClient:
    """At most `http_requests` go on at once; the others wait for a connection."""
    limits = httpx.Limits(max_connections=config.http_requests, max_keepalive_connections=config.http_requests)
    retry = Retry(
        total=config.http_retries,
        allowed_methods=["POST"],
        status_forcelist=RETRIED,
        backoff_factor=0.5,
        backoff_jitter=0.5,
        max_backoff_wait=LONGEST_WAIT_S,
    )
    return httpx.AsyncClient(
        transport=RetryTransport(transport=httpx.AsyncHTTPTransport(limits=limits, trust_env=False), retry=retry),
        timeout=httpx.Timeout(config.http_timeout_s, pool=None),
        headers={b"authorization": b"Bearer " + os.fsencode(key)} if key else {},
        trust_env=False,
    )


def _read_key(variable: str) -> str:
    key = os.environ.get(variable, "").strip() if variable else ""
    if variable and not key:
        raise ConfigError(
            f"extract.http_key_variable = '{variable}': not set on {socket.gethostname()}; set it on every machine "
            "that asks, before Ray starts there"
        )
    return key


async def _read(response: httpx.Response, most: int) -> bytes:
    """The body of a response, which may be compressed; of one that is too long no more than `most` bytes."""
    content = bytearray()
    async for piece in response.aiter_bytes(1 << 16):
        content += piece
        if len(content) > most:
            raise EndpointError(f"{response.url}: an answer of more than {most} bytes")
    return bytes(content)


def _numbers(url: str, embedding: str | list[float | None]) -> Singles:
    """One vector, float32 [D]; what is no number stays none, and is its row's error."""
    try:
        if isinstance(embedding, str):
            vector = np.frombuffer(base64.b64decode(embedding, validate=True), "<f4").astype(np.float32)
        else:
            vector = np.array(embedding, np.float32)  # None becomes NaN
    except ValueError as error:
        raise EndpointError(f"{url}: a vector that cannot be read ({shorten(str(error))})") from None
    if not len(vector):
        raise EndpointError(f"{url}: a vector of no numbers")
    return vector


def _message(content: bytes) -> str:
    """What an endpoint says of an error: OpenAI's `error.message`, FastAPI's `detail`, or the text as it came."""
    try:
        body: Any = json.loads(content)
        error = body.get("error", body.get("detail", body))
        return str(error.get("message", error) if isinstance(error, dict) else error)
    except (ValueError, AttributeError, RecursionError):
        return content[:2000].decode(errors="replace")
