"""A replica's part of the log of requests: a sample of what it answers, held until a thread makes a file of it.

A request that is drawn costs the ranking a few microseconds. Nothing that goes wrong with the log reaches an answer:
what there is no room for is dropped, what cannot be written is lost, and both are counted.
"""

import asyncio
import logging
import random
import time
import uuid
from collections import Counter
from collections.abc import Sequence

import pyarrow as pa

from llm4msr import storage
from llm4msr.bundle import request_rows
from llm4msr.bundle.messages import RankRequest, RankResponse
from llm4msr.bundle.ranker import Ranker, Scored
from llm4msr.bundle.request_rows import PIECE, Served
from llm4msr.config import LogConfig
from llm4msr.serve.metrics import ServeMetrics

log = logging.getLogger("ray.serve")

FLUSH_S = 30.0
"""The longest that a row is held."""
HELD_BYTES = 32 << 20
"""What rows that are held take of the memory at most, about."""
TEXT_BYTES = 64
"""Of a text, beside its characters."""
BREATH_S = 0.001
"""The writing thread waits so long after each piece, so that ranking never waits for more than one of them."""
UNFINISHED_S = 3_600.0
"""A file that is not finished after so long has lost its writer."""


class RequestLog:
    """The log of a replica.

    Args:
        config: where, how many and how long.
        metrics: of the replica.
    """

    def __init__(self, config: LogConfig, metrics: ServeMetrics):
        self._config, self._metrics, self._folder = config, metrics, storage.path(config.folder)
        self._held: list[Served] = []
        self._bytes, self._has_failed = 0, False
        self._is_full = asyncio.Event()
        self._writing: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Write from now on."""
        if self._writing is None:
            self._writing = asyncio.create_task(self._write_forever())

    def add(
        self,
        requests: Sequence[RankRequest],
        responses: Sequence[RankResponse],
        scored: Sequence[Scored],
        ranker: Ranker,
    ) -> None:
        """Hold a sample of what was answered."""
        for request, response, one in zip(requests, responses, scored, strict=True):
            if random.random() >= self._config.share:
                continue
            texts = [
                request.user_id,
                request.scenario,
                *request.items,
                *request.context.values(),
                *request.user_features,
            ]
            size = sum(map(len, texts)) + TEXT_BYTES * (len(texts) + len(one.query.events))
            if len(self._held) >= 2 * self._config.file_rows or self._bytes + size > HELD_BYTES:
                self._metrics.logged(ranker.model_version, "dropped", 1)
                continue
            asked = request.user_id, request.scenario, request.context, request.items, request.history_mode
            told = [*request.user_features]
            self._held.append(Served(time.time(), response.request_id, *asked, told, response.knowledge, ranker, one))
            self._bytes += size
        if len(self._held) >= self._config.file_rows or self._bytes > HELD_BYTES / 2:
            self._is_full.set()

    async def _write_forever(self) -> None:
        while True:
            try:
                async with asyncio.timeout(FLUSH_S * random.uniform(0.8, 1.2)):
                    await self._is_full.wait()
            except TimeoutError:
                pass
            await self.flush()

    async def flush(self) -> None:
        """Write what is held, in a thread."""
        rows = self._take()
        self._count(rows, await asyncio.to_thread(self._write, rows, BREATH_S))

    def close(self) -> None:
        """Write what is held, now: the replica ends."""
        rows = self._take()
        self._count(rows, self._write(rows, 0.0))

    def _take(self) -> list[Served]:
        rows, self._held, self._bytes = self._held, [], 0
        self._is_full.clear()
        return rows

    def _write(self, rows: Sequence[Served], breath_s: float) -> str:
        """Write a file of these rows and delete what is too old or too much; gives back what went wrong."""
        try:
            pieces = []
            for start in range(0, len(rows), PIECE):
                pieces.append(request_rows.to_batch(rows[start : start + PIECE]))
                time.sleep(breath_s)
            if pieces:
                name = request_rows.file_name(rows[0].time, uuid.uuid4().hex[:12])
                storage.write_table(self._folder / name, pa.Table.from_batches(pieces))
            self._prune(time.time())
        except Exception as error:  # a full disk, no access, a store that does not answer
            return f"{type(error).__name__}: {error}"[:1000]
        return ""

    def _prune(self, now: float) -> None:
        """Delete the files that are too old, then the oldest until the rest is small enough.

        A file that another replica has deleted is none.
        """
        files = request_rows.files(self._folder)
        total = sum(file.bytes for file in files)
        for file in files:
            is_old = now - file.time > (self._config.days * 86_400 if file.is_finished else UNFINISHED_S)
            if is_old or (file.is_finished and total > self._config.max_bytes):
                storage.remove(self._folder / file.name)
                total -= file.bytes

    def _count(self, rows: Sequence[Served], problem: str) -> None:
        for version, count in Counter(row.ranker.model_version for row in rows).items():
            self._metrics.logged(version, "failed" if problem else "written", count)
        if problem and not self._has_failed:
            log.error(f"the log of requests loses rows: {problem}")
        self._has_failed = bool(problem)
