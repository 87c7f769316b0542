"""What a prompt says of a user whose events are new."""

from pathlib import Path

import pytest

from llm4msr import schema
from llm4msr.data import partitions
from llm4msr.knowledge.prompts import render
from llm4msr.nearline import histories
from llm4msr.pipeline import prepare
from llm4msr.serve.event_log import LoggedEvent
from tests.support.data import config_of, write_data
from tests.support.partitioned import in_partitions

SCENARIOS = ["home", "search"]


def event(item: str, scenario: str = "home", liked: bool = True, time: float = 1.0) -> LoggedEvent:
    return LoggedEvent(1, "u", item, scenario, liked, time, 1e9)


def title(item: str) -> str:
    return f"Title {item}" if item in "abc" else ""


@pytest.mark.parametrize("total", [1, 4])
def test_histories_are_found_by_ids_and_make_the_prompts_of_the_data(tmp_path: Path, total: int) -> None:
    config = config_of(write_data(tmp_path))
    data = prepare(config)
    if total > 1:
        config, data = in_partitions(config, data, total, tmp_path / "parts")
    users = [f"u{number}" for number in range(0, 40, 7)]
    found = histories.read(data, [*users, "nobody"])
    assert sorted(found) == sorted(users)
    expected = {}
    for table in partitions.read_each(data, "histories"):
        prompts = render.user_prompts(table, config)
        expected |= dict(zip(prompts["raw_id"].to_pylist(), prompts["prompt"].to_pylist(), strict=True))
    liked = [histories.extend(found[user], [], title, SCENARIOS) for user in users]
    rows = schema.check(histories.table(liked), schema.HISTORIES, "histories")
    assert render.user_prompts(rows, config)["prompt"].to_pylist() == [expected[user] for user in users]


def test_what_was_told_comes_last_in_the_order_of_time_and_nothing_twice() -> None:
    before = {"search": ["Title b", "Old"], "home": ["Title a", "Other"]}
    told = [event("c", time=3), event("a", time=2), event("a", "search", time=2), event("c", time=4)]
    after = histories.extend(before, told, title, SCENARIOS)
    assert after == {"home": ["Other", "Title a", "Title c"], "search": ["Title b", "Old", "Title a"]}
    assert list(after) == SCENARIOS
    assert before["home"] == ["Title a", "Other"]


def test_what_was_not_liked_or_is_not_known_changes_nothing() -> None:
    told = [event("a", liked=False), event("unknown"), event("a", "unknown scenario")]
    assert histories.extend({}, told, title, SCENARIOS) == {}
    assert histories.extend({"home": ["x"]}, told, title, SCENARIOS) == {"home": ["x"]}
