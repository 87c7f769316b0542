"""What a pass takes and costs: of one shard, and added up for its progress line and its last one."""

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from llm4msr.config import ExtractConfig
from llm4msr.text import percent


class Spent(NamedTuple):
    """What a shard took of an actor, and what it gave."""

    tokens: int = 0
    """Of the prompts."""
    cached: int = 0
    """Those of them that the prefix cache held."""
    seconds: float = 0.0
    """Of the LLM's thread."""
    cpu_seconds: float = 0.0
    """Of all cores together."""
    with_interests: int = 0
    """Users' answers that hold interests."""
    billed: int = 0
    """Tokens of prompts that an endpoint counts, and charges for."""
    billed_answers: int = 0
    """Those of answers."""
    wait_seconds: float = 0.0
    """That the LLM's thread had nothing to do since the shard before."""
    read_seconds: float = 0.0
    """Until its prompts were fetched and tokenised, beside the LLM."""
    write_seconds: float = 0.0
    """Until its file was written, beside the LLM."""


class Tally:
    """What the shards of a pass have come to so far."""

    def __init__(self, e: ExtractConfig):
        self._e, self.spent, self._failed = e, Counter[str](), 0
        self._first: tuple[float, int] | None = None

    def add(self, summary: Mapping[str, Any]) -> None:
        """Count one more shard, as `AskLLM` tells of it."""
        self.spent.update({field: summary[field] for field in Spent._fields})
        self._failed += summary["failed"] - summary["empty"]
        self._first = self._first or (time.monotonic(), summary["tokens"])

    def note(self) -> str:
        """For the progress line: failed rows; tokens a second since the first shard, of all actors; cost so far."""
        parts = [f"{self._failed} failed"] * bool(self._failed)
        now, tokens = time.monotonic(), self.spent["tokens"]
        begun, tokens_then = self._first or (now, 0)
        if tokens > tokens_then and now - begun >= 1:
            parts.append(f"{(tokens - tokens_then) / (now - begun):,.0f} tokens/s")
        if self.spent["cached"]:
            parts.append(f"{percent(self.spent['cached'], tokens)} cached")
        parts += [cost] if (cost := bill(self._e, self.spent)) else []
        return f"({', '.join(parts)})" if parts else ""

    def timeline(self) -> str:
        """Shares of the time that actors had an LLM for; empty where there was none.

        Not counted are the start, and the end at which an actor has no shard left.
        """
        spent = self.spent
        if not (whole := spent["seconds"] + spent["wait_seconds"]):
            return ""
        share = {name: percent(spent[name], whole) for name in Spent._fields if name.endswith("seconds")}
        return (
            f"the LLM was at work {share['seconds']} of its time and waited {share['wait_seconds']}; beside it prompts "
            f"were fetched and tokenised ({share['read_seconds']}) and files written ({share['write_seconds']})"
        )


def bill(e: ExtractConfig, spent: Mapping[str, float]) -> str:
    """What the tokens of an endpoint and the hours of actors cost, if the config states their prices."""
    if not (e.http_price or e.http_answer_price or e.actor_cost_per_hour):
        return ""
    tokens = (spent["billed"] * e.http_price + spent["billed_answers"] * e.http_answer_price) / 1e6
    return f"cost {tokens + (spent['seconds'] + spent['wait_seconds']) / 3600 * e.actor_cost_per_hour:.2f}"
