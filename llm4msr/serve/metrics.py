"""What a replica counts for Prometheus, all by model version; queues and status codes are counted by Ray Serve."""

import collections
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from llm4msr.bundle.messages import RankResponse

if TYPE_CHECKING:
    from ray.serve.metrics import Counter

VERSION = "model_version"
"""The label that all have, so that two bundles in service at once are told apart."""
SECONDS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5]
CODE_SECONDS = [0.5, 1, 2, 5, 10, 20, 60, 300, 3600]
CANDIDATES = [1, 10, 30, 100, 300, 1000, 3000, 10_000]
DIFFERENCES = [0.0001, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3]

METRICS = {
    "llm4msr_rank_seconds": "Ranking for one call, without its way through Ray Serve.",
    "llm4msr_rank_candidates": "Candidates of one call.",
    "llm4msr_rank_requests": "Ranked lists, by whence the user is known (stored, events, request, none).",
    "llm4msr_unknown_ids": "Ids that the model never saw, by kind (user, scenario, item, history).",
    "llm4msr_events": "Events that were sent, by result (accepted, duplicate).",
    "llm4msr_event_seconds": "From an event's arrival until a replica ranks by it.",
    "llm4msr_code_seconds": "From a user's newest event until a replica ranks by the code that an LLM made of it.",
    "llm4msr_dropped_users": "Users whose recent events a replica had to drop, since there were too many.",
    "llm4msr_shadow_seconds": "Ranking for one call by a second bundle in the shadow.",
    "llm4msr_shadow_difference": "Of its scores of one list from those that were answered, on average.",
    "llm4msr_shadow_requests": "Lists for it, by result (same_best, other_best, dropped, failed).",
    "llm4msr_logged_requests": "Requests for the log of requests, by result (written, dropped, failed).",
    "llm4msr_refused_models": "Bundles or codes that could not be loaded; the old ones serve on.",
}
"""Name -> what it says. Prometheus sees each with `ray_` in front, and counters with `_total` behind."""


class ServeMetrics:
    """Made inside a replica: Ray Serve adds its application, deployment and replica to each."""

    def __init__(self) -> None:
        from ray.serve.metrics import Counter, Histogram

        def histogram(name: str, boundaries: Sequence[float]) -> Histogram:
            return Histogram(name, description=METRICS[name], boundaries=list(boundaries), tag_keys=(VERSION,))

        def counter(name: str, *tags: str) -> Counter:
            return Counter(name, description=METRICS[name], tag_keys=(VERSION, *tags))

        self._seconds = histogram("llm4msr_rank_seconds", SECONDS)
        self._candidates = histogram("llm4msr_rank_candidates", CANDIDATES)
        self._requests = counter("llm4msr_rank_requests", "knowledge")
        self._unknown = counter("llm4msr_unknown_ids", "kind")
        self._events = counter("llm4msr_events", "result")
        self._event_seconds = histogram("llm4msr_event_seconds", SECONDS)
        self._code_seconds = histogram("llm4msr_code_seconds", CODE_SECONDS)
        self._dropped = counter("llm4msr_dropped_users")
        self._shadow_seconds = histogram("llm4msr_shadow_seconds", SECONDS)
        self._shadow_difference = histogram("llm4msr_shadow_difference", DIFFERENCES)
        self._shadow_requests = counter("llm4msr_shadow_requests", "result")
        self._logged = counter("llm4msr_logged_requests", "result")
        self._refused = counter("llm4msr_refused_models")

    def refused(self, version: str) -> None:
        """Count a bundle or codes that could not be loaded, while this version stays in service."""
        self._refused.inc(1, {VERSION: version})

    def kept(self, version: str, accepted: int, duplicates: int) -> None:
        """Count events that were sent."""
        _count(self._events, version, "result", {"accepted": accepted, "duplicate": duplicates})

    def seen(self, version: str, delays: Sequence[float], dropped: int, of_codes: Sequence[float] = ()) -> None:
        """Count events, and codes, that came into memory so many seconds after the events arrived, and who went."""
        for delay in of_codes:
            self._code_seconds.observe(delay, {VERSION: version})
        for delay in delays:
            self._event_seconds.observe(delay, {VERSION: version})
        if dropped:
            self._dropped.inc(dropped, {VERSION: version})

    def shadowed(self, version: str, seconds: float, differences: Sequence[float], same_best: int) -> None:
        """Count one call that the second bundle ranked in the shadow.

        Args:
            version: of the second bundle.
            seconds: that it took.
            differences: of each list, mean of the absolute differences of its scores from those answered.
            same_best: lists whose best item is the same.
        """
        self._shadow_seconds.observe(seconds, {VERSION: version})
        for difference in differences:
            self._shadow_difference.observe(difference, {VERSION: version})
        results = {"same_best": same_best, "other_best": len(differences) - same_best}
        _count(self._shadow_requests, version, "result", results)

    def not_shadowed(self, version: str, result: str, lists: int) -> None:
        """Count lists that the second bundle was not asked for (dropped), or could not rank (failed)."""
        _count(self._shadow_requests, version, "result", {result: lists})

    def logged(self, version: str, result: str, requests: int) -> None:
        """Count requests that are in the log (written), or are not (dropped, since there was no room; failed)."""
        _count(self._logged, version, "result", {result: requests})

    def observe(self, version: str, seconds: float, candidates: int, responses: Sequence[RankResponse]) -> None:
        """Count one call, ranked by the model of that version in so many seconds."""
        model = {VERSION: version}
        self._seconds.observe(seconds, model)
        self._candidates.observe(candidates, model)
        sources = collections.Counter(str(response.knowledge) for response in responses)
        unknown = {
            "user": sum(response.unknown.user for response in responses),
            "scenario": sum(response.unknown.scenario for response in responses),
            "item": sum(len(response.unknown.items) for response in responses),
            "history": sum(response.unknown.history for response in responses),
        }
        _count(self._requests, version, "knowledge", sources)
        _count(self._unknown, version, "kind", unknown)


def _count(counter: "Counter", version: str, tag: str, numbers: Mapping[str, int]) -> None:
    for value, number in numbers.items():
        if number:  # Ray refuses to add nothing
            counter.inc(number, {VERSION: version, tag: value})
