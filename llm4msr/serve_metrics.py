"""What a replica counts for Prometheus; queues, ongoing requests and status codes are counted by Ray Serve."""

import time
from collections.abc import Sequence
from typing import Any

from llm4msr.api import RankResponse

SECONDS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5]
CANDIDATES = [1, 10, 30, 100, 300, 1000, 3000, 10_000]


class ServeMetrics:
    """Made inside a replica: Ray Serve adds its deployment and its own id to each."""

    def __init__(self) -> None:
        from ray.serve.metrics import Counter, Histogram

        self._seconds = Histogram(
            "llm4msr_rank_seconds",
            description="Of one call: waiting to be scored, then scoring its batch.",
            boundaries=SECONDS,
            tag_keys=("stage",),
        )
        self._candidates = Histogram(
            "llm4msr_rank_candidates", description="Candidates of one call.", boundaries=CANDIDATES
        )
        self._batch = Histogram(
            "llm4msr_batch_candidates", description="Candidates that were scored together.", boundaries=CANDIDATES
        )
        self._requests = Counter(
            "llm4msr_rank_requests", description="Ranked lists, by use of knowledge.", tag_keys=("knowledge",)
        )
        self._unknown = Counter("llm4msr_unknown_ids", description="Ids that the model never saw.", tag_keys=("kind",))
        self.refused = Counter(
            "llm4msr_refused_models", description="Bundles or codes that could not be loaded; the old ones serve on."
        )

    def batch(self, calls: Sequence[Any], begun: float, answers: Sequence[Sequence[RankResponse]]) -> None:
        """One scored batch; `begun` in monotonic seconds."""
        self._seconds.observe(max(time.monotonic() - begun, 1e-6), {"stage": "score"})
        sizes = [sum(len(request.items) for request in call.requests) for call in calls]
        self._batch.observe(max(sum(sizes), 1))
        for call, size in zip(calls, sizes, strict=True):
            self._seconds.observe(max(begun - call.arrived, 1e-6), {"stage": "wait"})
            self._candidates.observe(max(size, 1))
        given = [answer for call in answers for answer in call]
        counted = {
            "used": sum(answer.knowledge == "used" for answer in given),
            "none": sum(answer.knowledge == "none" for answer in given),
        }
        unknown = {
            "user": sum(answer.unknown.user for answer in given),
            "scenario": sum(answer.unknown.scenario for answer in given),
            "item": sum(len(answer.unknown.items) for answer in given),
        }
        for counter, tag, numbers in ((self._requests, "knowledge", counted), (self._unknown, "kind", unknown)):
            for name, number in numbers.items():
                if number:
                    counter.inc(number, {tag: name})
