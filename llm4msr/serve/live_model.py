"""The model that a replica has in service, and how a newer one takes its place without a restart.

A `Ranker` is swapped as a whole, a bundle together with the newest users' codes for it: when Ray Serve hands over a
new `user_config`, or when `llm4msr refresh` has published codes. Whoever took `ranker` before keeps that one.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from llm4msr.bundle.files import latest_codes
from llm4msr.bundle.ranker import Ranker, load_error
from llm4msr.errors import LLM4MSRError

log = logging.getLogger("ray.serve")


class InService(NamedTuple):
    """A bundle that is served, and its codes."""

    bundle: str
    codes: str
    """URI; empty for the bundle's own."""
    with_own_codes: Ranker
    ranker: Ranker
    """The one that answers, with `codes`."""
    problem: str = ""
    """Why the bundle's own codes are used though there are newer ones: at the start no older ones can serve on."""


class LiveModel:
    """The model in service.

    Args:
        on_refusal: called for each bundle or set of codes that could not be loaded, with the model version that
            stays in service.
        allow_backbones: as in `Ranker.load`.
        otherwise: whose ranker serves until a first bundle can be loaded.
    """

    def __init__(
        self,
        on_refusal: Callable[[str], None],
        allow_backbones: Sequence[str] = (),
        otherwise: "LiveModel | None" = None,
    ):
        self._on_refusal, self._allow_backbones, self._otherwise = on_refusal, allow_backbones, otherwise
        self._in_service: InService | None = None
        self._bundle = ""
        """The bundle that was asked for last; another one may be in service still."""
        self._loading: asyncio.Task[None] | None = None
        self._following: asyncio.Task[None] | None = None
        self.problem = ""
        """Why a newer bundle or newer codes are not in service, empty where all is well."""

    @property
    def ranker(self) -> Ranker:
        """The ranker in service."""
        if self._in_service is not None:
            return self._in_service.ranker
        assert self._otherwise is not None, "Ray Serve configures a replica before any request"
        return self._otherwise.ranker

    async def load(self, bundle: str) -> bool:
        """Bring a bundle and its newest codes into service unless they are already; says whether the ranker changed.

        If they cannot be loaded, for whatever reason, the old ones stay in service. Of two loads the later one counts.

        Raises:
            StorageError: they cannot be loaded, and there are no old ones, nor another model in their place.
        """
        before = self._in_service
        if self._loading is None or self._loading.done() or bundle != self._bundle:
            if self._loading is not None:
                self._loading.cancel()  # its thread runs to its end, but its result is dropped
            self._bundle = bundle
            self._loading = asyncio.create_task(self._swap(bundle))
        awaited = None
        while awaited is not self._loading:  # a load may be replaced by another one while we wait for it
            awaited = self._loading
            await asyncio.wait([awaited])
        awaited.result()
        return before is None or self.ranker is not before.ranker

    def follow(self, seconds: float) -> None:
        """From now on look for newer codes about every so many seconds, each replica at moments of its own."""

        async def follow_forever() -> None:
            while True:
                await asyncio.sleep(seconds * random.uniform(0.8, 1.2))
                await self.take_latest_codes()

        if self._following is None and seconds:
            self._following = asyncio.create_task(follow_forever())

    def unfollow(self) -> None:
        """Look no more: nobody needs this model."""
        if self._following is not None:
            self._following.cancel()

    async def take_latest_codes(self) -> None:
        """Swap to the codes that endpoints shall use now; a bundle that could not be loaded before is tried again."""
        await self.load(self._bundle)

    async def _swap(self, bundle: str) -> None:
        result = await asyncio.to_thread(_load, bundle, self._in_service, self._allow_backbones)
        if isinstance(result, InService):
            self._in_service = result
        elif self._in_service is None and self._otherwise is None:
            raise result
        self.problem = result.problem if isinstance(result, InService) else _describe(result)
        if self.problem:
            self._on_refusal(self.ranker.model_version)
            log.error(f"serving {self.ranker.model_version} all the same: {self.problem}")


def _load(bundle: str, current: InService | None, allow_backbones: Sequence[str]) -> InService | LLM4MSRError:
    """What shall be in service for this bundle now, or why it cannot be. Runs in a thread, which no signal reaches."""
    try:
        same = current is not None and current.bundle == bundle
        own = current.with_own_codes if current and same else Ranker.load(bundle, allow_backbones=allow_backbones)
        try:
            codes = latest_codes(bundle)
            if current and same and codes == current.codes:
                return current._replace(problem="")
            return InService(bundle, codes, own, own.with_codes(codes) if codes else own)
        except Exception as error:
            if current is not None:
                raise
            return InService(bundle, "", own, own, _describe(error))
    except LLM4MSRError as error:
        return error
    except BaseException as error:  # a foreign backbone may raise anything, and a library may panic
        return load_error(bundle, error)


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:1000]
