"""The model that a replica has in service, and how a newer one takes its place without a restart.

A `Ranker` is swapped as a whole: a bundle together with the newest users' codes for it, when Ray Serve hands over a
new `user_config` or `llm4msr refresh` has published codes. Whoever took `ranker` before keeps what it took.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from llm4msr.bundle.files import latest
from llm4msr.bundle.ranker import Ranker, not_loaded
from llm4msr.errors import LLM4MSRError

log = logging.getLogger("ray.serve")


class InService(NamedTuple):
    """What is served: a bundle, its ranker with its own codes, and the ranker with the codes that are used."""

    bundle: str
    codes: str
    """URI; empty for the bundle's own."""
    with_own_codes: Ranker
    ranker: Ranker
    problem: str = ""
    """Why the bundle's own codes are used though there are newer ones: at the start no older ones can serve on."""


class LiveModel:
    """See the module. `on_refusal` is called for each bundle or set of codes that could not be loaded.

    `allow_backbones` are as in `Ranker.load`.
    """

    def __init__(self, on_refusal: Callable[[], None], allow_backbones: Sequence[str] = ()):
        self._on_refusal, self._allowed = on_refusal, allow_backbones
        self._served: InService | None = None
        self._wanted = ""
        self._loading: asyncio.Task[None] | None = None
        self._following: asyncio.Task[None] | None = None
        self.problem = ""
        """Why a newer bundle or newer codes are not in service, empty where all is well."""

    @property
    def ranker(self) -> Ranker:
        """The one in service."""
        assert self._served is not None, "Ray Serve configures a replica before any request"
        return self._served.ranker

    async def load(self, bundle: str) -> bool:
        """Bring a bundle and its newest codes into service, as far as they are not; says whether the ranker changed.

        What cannot be loaded, for whatever reason, leaves the old one in service. Of two loads the later one counts.

        Raises:
            StorageError: it cannot be loaded, and there is no old one.
        """
        before = self._served
        if self._loading is None or self._loading.done() or bundle != self._wanted:
            if self._loading is not None:
                self._loading.cancel()  # its thread runs to its end, but nobody takes what it brings
            self._wanted = bundle
            self._loading = asyncio.create_task(self._bring(bundle))
        waited = None
        while waited is not self._loading:  # who waits for a load that another one has replaced waits for that one
            waited = self._loading
            await asyncio.wait([waited])
        waited.result()
        return before is None or self.ranker is not before.ranker

    def follow(self, seconds: float) -> None:
        """From now on look for newer codes now and then; replicas do so at different moments."""

        async def forever() -> None:
            while True:
                await asyncio.sleep(seconds * random.uniform(0.8, 1.2))
                await self.take_latest_codes()

        if self._following is None and seconds:
            self._following = asyncio.create_task(forever())

    async def take_latest_codes(self) -> None:
        """Swap to the codes that endpoints shall use now; a bundle that could not be loaded before is tried again."""
        await self.load(self._wanted)

    async def _bring(self, bundle: str) -> None:
        ready = await asyncio.to_thread(_ready, bundle, self._served, self._allowed)
        if isinstance(ready, InService):
            self._served = ready
        elif self._served is None:
            raise ready
        self.problem = ready.problem if isinstance(ready, InService) else _told(ready)
        if self.problem:
            self._on_refusal()
            log.error(f"serving {self.ranker.model_version} all the same: {self.problem}")


def _ready(bundle: str, served: InService | None, allowed: Sequence[str]) -> InService | LLM4MSRError:
    """What shall be in service for this bundle now, or why that cannot be. In a thread, which signals do not reach."""
    try:
        same = served is not None and served.bundle == bundle
        own = served.with_own_codes if served and same else Ranker.load(bundle, allow_backbones=allowed)
        try:
            codes = latest(bundle)
            if served and same and codes == served.codes:
                return served._replace(problem="")
            return InService(bundle, codes, own, own.with_codes(codes) if codes else own)
        except Exception as error:
            if served is not None:
                raise
            return InService(bundle, "", own, own, _told(error))
    except LLM4MSRError as error:
        return error
    except BaseException as error:  # a backbone of somebody else's may raise anything, and a library may panic
        return not_loaded(bundle, error)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:1000]
