"""An asynchronous client of the endpoint: rankings and events with retries, and nothing else.

async with RankClient("http://127.0.0.1:8000") as client:
    answer = await client.rank(RankRequest(user_id="405", scenario="Comedy", items=["1", "8", "25"]))
"""

import asyncio
import os
from collections.abc import Sequence
from typing import Self

import httpx
from httpx_retries import Retry, RetryTransport

from llm4msr.bundle.messages import (
    EventBatch,
    EventsKept,
    ModelInfo,
    NewEvent,
    RankBatchRequest,
    RankBatchResponse,
    RankRequest,
    RankResponse,
)
from llm4msr.serve import api_token

RETRIED = (429, 500, 502, 503, 504)


class RankClient:
    """A call that failed is sent again: after 429 when the endpoint says, else soon.

    It may be: ranking changes nothing, and events that come twice count once.

    Args:
        address: of the endpoint, such as http://127.0.0.1:8000.
        token: the API token; by default the variable LLM4MSR_API_TOKEN, where it is set.
        retries: how often one call is sent again.
        timeout_s: for one call, with all its tries and the waits between them.
    """

    def __init__(self, address: str, token: str | None = None, retries: int = 4, timeout_s: float = 10.0):
        token = (os.environ.get(api_token.VARIABLE, "") if token is None else token).strip()
        retry = Retry(total=retries, allowed_methods=["GET", "POST"], status_forcelist=RETRIED, backoff_factor=0.1)
        self._timeout_s = timeout_s
        self._http = httpx.AsyncClient(
            base_url=address,
            timeout=timeout_s,
            headers={b"authorization": b"Bearer " + os.fsencode(token)} if token else {},
            transport=RetryTransport(transport=_BoundedTransport(timeout_s), retry=retry),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._http.aclose()

    async def rank(self, request: RankRequest, request_id: str = "") -> RankResponse:
        """Rank one request.

        Raises:
            httpx.HTTPStatusError: refused, or refused after all retries; `error.response` says why.
            httpx.TransportError: no connection after all retries, or no answer in time.
        """
        return RankResponse.model_validate_json(await self._post("/v1/rank", request.model_dump_json(), request_id))

    async def rank_batch(self, requests: Sequence[RankRequest], request_id: str = "") -> list[RankResponse]:
        """Rank several requests by one and the same model; raises as `rank` does."""
        body = RankBatchRequest(requests=list(requests)).model_dump_json()
        return RankBatchResponse.model_validate_json(await self._post("/v1/rank:batch", body, request_id)).responses

    async def events(self, events: Sequence[NewEvent]) -> EventsKept:
        """Tell what users took, 1,000 events at most; when this returns, they are on disk. Raises as `rank` does."""
        body = EventBatch(events=list(events)).model_dump_json()
        return EventsKept.model_validate_json(await self._post("/v1/events", body, ""))

    async def model(self) -> ModelInfo:
        """What is being served; raises as `rank` does."""
        return ModelInfo.model_validate_json(await self._send(self._http.build_request("GET", "/v1/model")))

    async def _post(self, path: str, body: str, request_id: str) -> bytes:
        headers = {b"content-type": b"application/json"}
        headers |= {b"x-request-id": request_id.encode()} if request_id else {}
        return await self._send(self._http.build_request("POST", path, content=body, headers=headers))

    async def _send(self, request: httpx.Request) -> bytes:
        try:
            async with asyncio.timeout(self._timeout_s):
                return (await self._http.send(request)).raise_for_status().content
        except TimeoutError:
            message = f"no answer from {request.url} within {self._timeout_s:g} s, tries and waits together"
            raise httpx.TimeoutException(message, request=request) from None


class _BoundedTransport(httpx.AsyncHTTPTransport):
    """Gives up at once when the endpoint asks for a longer wait than a call may take."""

    def __init__(self, timeout_s: float):
        super().__init__()
        self._timeout_s = timeout_s

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """One try."""
        response = await super().handle_async_request(request)
        if response.status_code in RETRIED and self._wait_s(response) > self._timeout_s:
            response.request = request
            await response.aread()
            response.raise_for_status()
        return response

    def _wait_s(self, response: httpx.Response) -> float:
        try:
            return Retry().parse_retry_after(response.headers.get("retry-after", "0"))
        except ValueError:
            return 0.0  # nonsense counts as none
