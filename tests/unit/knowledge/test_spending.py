"""What the progress of a pass tells, and where its time went."""

import pytest

from llm4msr.config import ExtractConfig
from llm4msr.knowledge import spending
from llm4msr.knowledge.spending import Spent, Tally, bill


def extract(**prices: float) -> ExtractConfig:
    return ExtractConfig.model_validate(prices)


def told(spent: Spent, failed: int = 0, empty: int = 0) -> dict[str, object]:
    """What an actor says of a shard."""
    return {"failed": failed, "empty": empty} | spent._asdict()


def test_the_bill_is_that_of_all_prices():
    spent = {"billed": 2_000_000, "billed_answers": 500_000, "seconds": 5000, "wait_seconds": 400}
    assert bill(extract(http_price=0.25, http_answer_price=3), spent) == "cost 2.00"
    assert bill(extract(http_price=0.25, http_answer_price=3, actor_cost_per_hour=2), spent) == "cost 5.00"
    assert bill(extract(), spent) == ""


def test_a_note_tells_failed_rows_tokens_a_second_what_is_cached_and_the_cost(monkeypatch: pytest.MonkeyPatch):
    now = 100.0
    monkeypatch.setattr(spending.time, "monotonic", lambda: now)
    tally = Tally(extract(actor_cost_per_hour=3.6))
    assert tally.note() == "(cost 0.00)"
    tally.add(told(Spent(tokens=7000, cached=2000, seconds=50), failed=3, empty=1))
    assert tally.note() == "(2 failed, 28.6% cached, cost 0.05)"
    now = 110.0
    tally.add(told(Spent(tokens=13_000, cached=8000, seconds=30, wait_seconds=20), failed=1))
    assert tally.note() == "(3 failed, 1,300 tokens/s, 50.0% cached, cost 0.10)"


def test_where_nothing_is_to_tell_there_is_no_note_and_no_timeline():
    tally = Tally(extract())
    tally.add(told(Spent()))
    assert tally.note() == tally.timeline() == ""


def test_a_timeline_has_shares_of_the_time_that_an_llm_was_there():
    tally = Tally(extract())
    tally.add(told(Spent(seconds=90, read_seconds=5, write_seconds=1.5)))
    tally.add(told(Spent(seconds=97, wait_seconds=13, read_seconds=5, write_seconds=0.5)))
    assert tally.timeline() == (
        "the LLM was at work 93.5% of its time and waited 6.5%; beside it prompts were fetched and tokenised (5.0%) "
        "and files written (1.0%)"
    )
