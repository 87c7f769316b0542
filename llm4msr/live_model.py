"""The model that a replica has in service, and how a newer one takes its place without a restart.

A `Ranker` is swapped as a whole: for another bundle when Ray Serve hands over a new `user_config`, for newer users'
codes when `llm4msr refresh` has published some. Whoever took `ranker` before keeps what it took.
"""

import asyncio
import logging
import random
from collections.abc import Callable

from llm4msr.errors import LLM4MSRError
from llm4msr.rank import Ranker
from llm4msr.refresh import latest

log = logging.getLogger("ray.serve")


class LiveModel:
    """See the module. `on_refusal` is called for each bundle or set of codes that could not be loaded."""

    def __init__(self, on_refusal: Callable[[], None]):
        self._on_refusal = on_refusal
        self._loaded: Ranker | None = None
        self._with_own_codes: Ranker | None = None
        self._bundle = self._codes = ""
        self._following: asyncio.Task[None] | None = None
        self.problem = ""
        """Why a newer bundle or newer codes are not in service, empty where all is well."""

    @property
    def ranker(self) -> Ranker:
        """The one in service."""
        assert self._loaded is not None, "Ray Serve configures a replica before any request"
        return self._loaded

    async def load(self, bundle: str) -> None:
        """Load a bundle aside and swap; one that cannot be loaded leaves the old one in service.

        Raises:
            StorageError: it cannot be loaded, and there is no old one.
        """
        try:
            ranker = await asyncio.to_thread(Ranker.load, bundle)
        except LLM4MSRError as error:
            if self._loaded is None:
                raise
            self._refuse(error)
            return
        self._loaded = self._with_own_codes = ranker
        self._bundle, self._codes, self.problem = bundle, "", ""
        await self.take_latest_codes()

    def follow(self, seconds: float) -> None:
        """From now on look for newer codes now and then; replicas do so at different moments."""

        async def forever() -> None:
            while True:
                await asyncio.sleep(seconds * random.uniform(0.8, 1.2))
                await self.take_latest_codes()

        if self._following is None and seconds:
            self._following = asyncio.create_task(forever())

    async def take_latest_codes(self) -> None:
        """Swap to the codes that endpoints of this bundle shall use now."""
        own, bundle = self._with_own_codes, self._bundle
        assert own is not None
        try:
            codes = await asyncio.to_thread(latest, bundle)
            if codes == self._codes:
                return
            ranker = await asyncio.to_thread(own.with_codes, codes) if codes else own
        except Exception as error:  # the store cannot be reached, say: this one serves on, and looks again later
            self._refuse(error)
            return
        if self._bundle == bundle:  # else another bundle came meanwhile, with codes of its own
            self._loaded, self._codes, self.problem = ranker, codes, ""

    def _refuse(self, error: Exception) -> None:
        self.problem = f"{type(error).__name__}: {error}"[:1000]
        self._on_refusal()
        log.error(f"still serving {self.ranker.model_version}: {self.problem}")
