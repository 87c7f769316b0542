"""What a replica counts for Prometheus; queues, ongoing requests and status codes are counted by Ray Serve."""

import collections
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llm4msr.bundle.messages import RankResponse

if TYPE_CHECKING:
    from ray.serve.metrics import Counter

SECONDS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5]
CANDIDATES = [1, 10, 30, 100, 300, 1000, 3000, 10_000]

METRICS = {
    "llm4msr_rank_seconds": "Of one call: waiting to be scored (stage wait), then scoring its batch (stage score).",
    "llm4msr_rank_candidates": "Candidates of one call.",
    "llm4msr_batch_candidates": "Candidates that were scored together.",
    "llm4msr_rank_requests": "Ranked lists, by where what is known of the user came from (stored, request, none).",
    "llm4msr_unknown_ids": "Ids that the model never saw, by kind (user, scenario, item, history).",
    "llm4msr_refused_models": "Bundles or codes that could not be loaded; the old ones serve on.",
}
"""Name -> what it says. Prometheus sees each with `ray_` in front, and counters with `_total` behind."""


class ServeMetrics:
    """Made inside a replica: Ray Serve adds its application, deployment and replica to each."""

    def __init__(self) -> None:
        from ray.serve.metrics import Counter, Histogram

        def histogram(name: str, boundaries: Sequence[float], *tags: str) -> Histogram:
            return Histogram(name, description=METRICS[name], boundaries=list(boundaries), tag_keys=tags)

        def counter(name: str, *tags: str) -> Counter:
            return Counter(name, description=METRICS[name], tag_keys=tags)

        self._seconds = histogram("llm4msr_rank_seconds", SECONDS, "stage")
        self._candidates = histogram("llm4msr_rank_candidates", CANDIDATES)
        self._batch = histogram("llm4msr_batch_candidates", CANDIDATES)
        self._requests = counter("llm4msr_rank_requests", "knowledge")
        self._unknown = counter("llm4msr_unknown_ids", "kind")
        self.refused = counter("llm4msr_refused_models")

    def observe_batch(
        self,
        begun: float,
        waits: Sequence[float],
        candidates: Sequence[int],
        responses: Sequence[Sequence[RankResponse]],
    ) -> None:
        """Count one scored batch, call by call.

        Args:
            begun: when scoring began, in monotonic seconds.
            waits: seconds from each call's arrival to `begun`.
            candidates: items of each call.
            responses: of each call, one for each of its requests.
        """
        self._seconds.observe(time.monotonic() - begun, {"stage": "score"})
        self._batch.observe(sum(candidates))
        for wait, count in zip(waits, candidates, strict=True):
            self._seconds.observe(wait, {"stage": "wait"})
            self._candidates.observe(count)
        ranked = [response for call in responses for response in call]
        _add(self._requests, "knowledge", **collections.Counter(str(response.knowledge) for response in ranked))
        _add(
            self._unknown,
            "kind",
            user=sum(response.unknown.user for response in ranked),
            scenario=sum(response.unknown.scenario for response in ranked),
            item=sum(len(response.unknown.items) for response in ranked),
            history=sum(response.unknown.history for response in ranked),
        )


def _add(counter: "Counter", tag: str, **numbers: int) -> None:
    for value, number in numbers.items():
        if number:  # Ray refuses to add nothing
            counter.inc(number, {tag: value})
