"""An OpenAI-style endpoint over HTTP: what is asked again, how much is read of an answer, and what may be shown of it.

Neither redirects are followed nor the environment's proxies used, so the key goes to the configured address alone.

Source: OpenAI's API reference, "Error codes".
"""

import asyncio
import json
import os
import re
import socket
from typing import Any, TypeVar

import httpx
import msgspec
from httpx_retries import Retry, RetryTransport

from llm4msr.config import ExtractConfig
from llm4msr.errors import ConfigError, EndpointError, LLM4MSRError
from llm4msr.text import shorten

T = TypeVar("T", bound=msgspec.Struct)

REFUSED = (400, 413, 422)
"""What an endpoint answers if it is the prompt that it cannot take."""
RETRIED = (429, *range(500, 600))
CHECK = {
    300: "extract.http_url, since no redirect is followed",
    401: "extract.http_key_variable",
    403: "extract.http_key_variable",
    404: "extract.http_url and model",
}
"""What to look at, by status; 300 stands for all from there to 399."""
LONGEST_WAIT_S = 300.0
"""Between two tries, however long the endpoint asks for."""


class RefusedPromptError(LLM4MSRError):
    """The endpoint does not take this prompt, or one of the `settings` beside it."""

    def __init__(self, message: str, setting: str = ""):
        super().__init__(message)
        self.setting = setting
        """The name of the setting, where the endpoint says that it is that."""


class Endpoint:
    """Posts JSON, at most `http_requests` at once.

    Raises:
        ConfigError: the variable with the key is not set here, or holds no key.
    """

    def __init__(self, config: ExtractConfig):
        self._key, self._retries = _read_key(config.http_key_variable), config.http_retries
        retry = Retry(
            total=config.http_retries,
            allowed_methods=["POST"],
            status_forcelist=RETRIED,
            backoff_factor=0.5,
            backoff_jitter=0.5,
            max_backoff_wait=LONGEST_WAIT_S,
        )
        tries = _WholeAnswers(config.http_requests, config.http_timeout_s)
        self._client = httpx.AsyncClient(
            transport=RetryTransport(transport=tries, retry=retry),
            timeout=None,  # each try has its own
            headers={"accept-encoding": "identity"} | ({"authorization": f"Bearer {self._key}"} if self._key else {}),
            trust_env=False,
        )

    async def post(self, url: str, body: dict[str, object], layout: type[T], most_bytes: int) -> T:
        """The endpoint's answer, which has been paid for; one of more than `most_bytes` is not read.

        Raises:
            EndpointError: it cannot be reached, or does not answer as an endpoint.
            RefusedPromptError: it does not take one of the prompts.
        """
        try:
            response = await self._client.post(url, json=body, extensions={"most_bytes": most_bytes})
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            why = self._public(f"{type(error).__name__}: {error}".rstrip(": "))
            raise EndpointError(f"{url}: no answer after {self._retries} retries ({why})") from None
        if response.status_code != httpx.codes.OK:
            raise self._refusal(url, response)
        try:
            return msgspec.convert(json.loads(response.content), layout)
        except (ValueError, RecursionError) as error:  # what JSON does not allow, or another layout than OpenAI's
            why = self._public(str(error))
            raise EndpointError(f"{url}: not what an OpenAI-style endpoint answers ({why})") from None

    def _refusal(self, url: str, response: httpx.Response) -> LLM4MSRError:
        status = f"{response.status_code} {response.reason_phrase}".strip()
        said = self._public(_message(response.content))
        if response.status_code in REFUSED:
            return RefusedPromptError(f"the endpoint refuses it with {status}: {said}", _setting(response.content))
        kind = 300 if response.status_code // 100 == 3 else response.status_code
        check = f"; check {CHECK[kind]}" if kind in CHECK else ""
        return EndpointError(f"{url}: {status}: {said}{check}")

    def _public(self, message: str) -> str:
        """What the endpoint or the network says, bounded, fit to be shown, and without the key."""
        return shorten(message.replace(self._key, "***") if self._key else message, 300)


class _WholeAnswers(httpx.AsyncBaseTransport):
    """One try of a request, until its answer is whole: one that breaks off, or takes too long, is as good as none.

    Nothing is unpacked, since few bytes can hold gigabytes.
    """

    def __init__(self, at_once: int, seconds: float):
        limits = httpx.Limits(max_connections=at_once, max_keepalive_connections=at_once)
        self._wire = httpx.AsyncHTTPTransport(limits=limits, trust_env=False)
        self._turns, self._seconds = asyncio.Semaphore(at_once), seconds

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """The answer, of whose head only what is needed is left.

        Raises:
            httpx.HTTPError: there is none, or not within the time.
            EndpointError: it is longer than the request's `most_bytes`, or compressed.
        """
        try:
            async with self._turns, asyncio.timeout(self._seconds):
                response = await self._wire.handle_async_request(request)
                try:
                    content = await _read(request, response)
                finally:
                    await response.aclose()
        except TimeoutError:
            message = f"no whole answer within {self._seconds:g} s"
            raise httpx.ReadTimeout(message, request=request) from None
        headers = {name: response.headers[name] for name in ("retry-after",) if name in response.headers}
        return httpx.Response(response.status_code, headers=headers, content=content)


async def _read(request: httpx.Request, response: httpx.Response) -> bytes:
    """The body of a response."""
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise EndpointError(f"{request.url}: a compressed answer, though none was asked for")
    content, most = bytearray(), request.extensions["most_bytes"]
    async for piece in response.aiter_raw():
        content += piece
        if len(content) > most:
            raise EndpointError(f"{request.url}: an answer of more than {most} bytes")
    return bytes(content)


def _read_key(variable: str) -> str:
    key = os.environ.get(variable, "").strip() if variable else ""
    if variable and not key:
        raise ConfigError(
            f"extract.http_key_variable = '{variable}': not set on {socket.gethostname()}; set it on every machine "
            "that asks, before Ray starts there"
        )
    if not re.fullmatch(r"[!-~]*", key):  # the error of a header that holds them would show it
        raise ConfigError(f"extract.http_key_variable = '{variable}': holds a blank, or what is no ASCII; give the key")
    return key


def _setting(content: bytes) -> str:
    """The setting that the endpoint says it does not support (OpenAI's `error.param`), or nothing."""
    try:
        error: Any = json.loads(content)["error"]
        return str(error["param"]) if str(error["code"]).startswith("unsupported") else ""
    except (ValueError, LookupError, TypeError, RecursionError):
        return ""


def _message(content: bytes) -> str:
    """What an endpoint says of an error: OpenAI's `error.message`, FastAPI's `detail`, or the text as it came."""
    try:
        body: Any = json.loads(content)
        error = body.get("error", body.get("detail", body))
        return str(error.get("message", error) if isinstance(error, dict) else error)
    except (ValueError, AttributeError, RecursionError):
        return content.decode(errors="replace")
