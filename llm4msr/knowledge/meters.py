"""What the engine actors tell Ray's metrics, for Prometheus and the dashboard's Grafana."""

from collections.abc import Mapping

from ray.util.metrics import Counter, Histogram

from llm4msr.knowledge.engines import Task


class Meters:
    """Rows by outcome, prompt tokens, those from the prefix cache, and seconds per shard, by pass."""

    def __init__(self, task: Task):
        tags = {"task": task}
        self.rows = Counter("llm4msr_extract_rows", "Rows that were asked.", ("task", "outcome"))
        self.tokens = Counter("llm4msr_extract_tokens", "Prompt tokens.", ("task",))
        self.cached = Counter("llm4msr_extract_cached_tokens", "Prompt tokens that were not computed anew.", ("task",))
        bounds = [0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000]
        self.seconds = Histogram("llm4msr_extract_shard_seconds", "Seconds per shard.", bounds, ("task",))
        for metric in (self.rows, self.tokens, self.cached, self.seconds):
            metric.set_default_tags(tags)

    def count(self, rows: Mapping[str, int], tokens: int, cached: int, seconds: float) -> None:
        """One shard is finished; `rows` by outcome: ok, failed, or skipped for want of anything to ask about."""
        for outcome, count in rows.items():
            if count:
                self.rows.inc(count, {"outcome": outcome})
        for counter, count in ((self.tokens, tokens), (self.cached, cached)):
            if count:
                counter.inc(count)
        self.seconds.observe(seconds)
