"""What a replica counts for Prometheus; queues, ongoing requests and status codes are counted by Ray Serve."""

import time
from collections.abc import Sequence
from typing import Any

from llm4msr.bundle.messages import RankResponse

SECONDS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5]
CANDIDATES = [1, 10, 30, 100, 300, 1000, 3000, 10_000]

METRICS = {
    "llm4msr_rank_seconds": "Of one call: waiting to be scored (stage wait), then scoring its batch (stage score).",
    "llm4msr_rank_candidates": "Candidates of one call.",
    "llm4msr_batch_candidates": "Candidates that were scored together.",
    "llm4msr_rank_requests": "Ranked lists, by use of the user's knowledge (used or none).",
    "llm4msr_unknown_ids": "Ids that the model never saw, by kind (user, scenario, item).",
    "llm4msr_refused_models": "Bundles or codes that could not be loaded; the old ones serve on.",
}
"""Name -> what it says. Prometheus sees each with `ray_` in front, and counters with `_total` behind."""


class ServeMetrics:
    """Made inside a replica: Ray Serve adds its application, deployment and replica to each."""

    def __init__(self) -> None:
        from ray.serve.metrics import Counter, Histogram

        def histogram(name: str, boundaries: Sequence[float], *tags: str) -> Any:
            return Histogram(name, description=METRICS[name], boundaries=list(boundaries), tag_keys=tags)

        def counter(name: str, *tags: str) -> Any:
            return Counter(name, description=METRICS[name], tag_keys=tags)

        self._seconds = histogram("llm4msr_rank_seconds", SECONDS, "stage")
        self._candidates = histogram("llm4msr_rank_candidates", CANDIDATES)
        self._batch = histogram("llm4msr_batch_candidates", CANDIDATES)
        self._requests = counter("llm4msr_rank_requests", "knowledge")
        self._unknown = counter("llm4msr_unknown_ids", "kind")
        self.refused = counter("llm4msr_refused_models")

    def batch(self, calls: Sequence[Any], begun: float, answers: Sequence[Sequence[RankResponse]]) -> None:
        """One scored batch; `begun` in monotonic seconds."""
        self._seconds.observe(time.monotonic() - begun, {"stage": "score"})
        sizes = [sum(len(request.items) for request in call.requests) for call in calls]
        self._batch.observe(sum(sizes))
        for call, size in zip(calls, sizes, strict=True):
            self._seconds.observe(begun - call.arrived, {"stage": "wait"})
            self._candidates.observe(size)
        given = [answer for call in answers for answer in call]
        known = sum(answer.knowledge == "used" for answer in given)
        _add(self._requests, "knowledge", used=known, none=len(given) - known)
        _add(
            self._unknown,
            "kind",
            user=sum(answer.unknown.user for answer in given),
            scenario=sum(answer.unknown.scenario for answer in given),
            item=sum(len(answer.unknown.items) for answer in given),
        )


def _add(counter: Any, tag: str, **numbers: int) -> None:
    for name, number in numbers.items():
        if number:  # Ray refuses to add nothing
            counter.inc(number, {tag: name})
