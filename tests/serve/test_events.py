"""Events on real Ray Serve: the next ranking knows them, after the log was killed too. And the log of requests."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from llm4msr import storage
from llm4msr.bundle import request_rows
from llm4msr.config import LogConfig, ServeConfig
from llm4msr.explain.explorer.app import read_events
from llm4msr.serve import endpoint
from llm4msr.serve.app import APP, EVENTS
from tests.support.experiments import free_port
from tests.support.matching import Matching, publish_matching

LOG = f"ServeReplica:{APP}:{EVENTS}"
ITEMS = [f"i{number}" for number in range(15)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Matching:
    return publish_matching(tmp_path_factory.mktemp("events"), pooled=True, knowledge="both")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ServeConfig:
    requests = LogConfig(folder=str(tmp_path_factory.mktemp("requests")), share=1)
    return ServeConfig(port=free_port(), events=str(tmp_path_factory.mktemp("log")), timeout_s=20, log=requests)


@pytest.fixture(scope="module")
def client(ray_session: None, made: Matching, config: ServeConfig) -> Iterator[httpx.Client]:
    address = endpoint.start(config, str(made.output.folder))
    with httpx.Client(base_url=address, timeout=60) as opened:
        yield opened
    endpoint.stop()


def event(name: str, user: str, item: str = "i7", **changes: Any) -> dict[str, Any]:
    return {"event_id": name, "user_id": user, "item_id": item, "scenario": "home", "time": time.time()} | changes


def tell(client: httpx.Client, *events: dict[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = client.post("/v1/events", json={"events": events}).raise_for_status().json()
    return kept


def rank(client: httpx.Client, user: str, **changes: Any) -> dict[str, Any]:
    body = {"user_id": user, "scenario": "home", "items": ITEMS} | changes
    answer: dict[str, Any] = client.post("/v1/rank", json=body).raise_for_status().json()
    return answer


def until(condition: Callable[[], bool]) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("waited too long")


def test_an_event_changes_the_next_rankings_as_a_history_in_the_request_does(client: httpx.Client) -> None:
    history = [{"item_id": "i7", "scenario": "home"}]
    expected = rank(client, "new", history=history)["ranked"]
    assert rank(client, "new")["knowledge"] == "none"
    sent = [event("a", "new"), event("b", "new", "unknown-item"), event("a", "new", "i3")]
    assert tell(client, *sent) == {"accepted": 2, "duplicates": 1, "unknown_items": 1, "used": True}
    until(lambda: rank(client, "new")["knowledge"] == "events")
    answer = rank(client, "new")
    assert answer["ranked"] == expected
    assert (answer["unknown"]["user"], answer["unknown"]["history"]) == (True, 0)
    assert rank(client, "new", history=[], history_mode="replace")["knowledge"] == "none"
    assert tell(client, event("a", "new"))["duplicates"] == 1


@pytest.mark.parametrize(
    ("changes", "place"), [({"time": time.time() + 9e5}, "time"), ({"user_id": None}, "user_id"), ({"x": 1}, "x")]
)
def test_a_batch_with_a_wrong_event_is_refused_whole(client: httpx.Client, changes: Any, place: str) -> None:
    right = event(f"right beside {place}", "w")
    answer = client.post("/v1/events", json={"events": [right, event("wrong", "w") | changes]})
    assert answer.status_code == 422
    assert place in answer.text
    assert tell(client, right)["accepted"] == 1


def test_who_is_forgotten_is_ranked_as_before(client: httpx.Client) -> None:
    tell(client, event("f", "gone"), event("s", "stays"))
    until(lambda: rank(client, "gone")["knowledge"] == "events")
    answer = client.post("/v1/events:forget", json={"user_ids": ["gone"]}).raise_for_status().json()
    assert answer == {"deleted": 1}
    until(lambda: rank(client, "gone")["knowledge"] == "none")
    until(lambda: rank(client, "stays")["knowledge"] == "events")


def test_what_was_acknowledged_survives_the_log_killed_and_the_endpoint_started_again(
    client: httpx.Client, made: Matching, config: ServeConfig
) -> None:
    tell(client, event("k", "kept"))
    (log,) = [one for one in psutil.Process().children(recursive=True) if any(LOG in word for word in one.cmdline())]
    log.kill()
    until(lambda: client.post("/v1/events", json={"events": [event("k", "kept"), event("l", "kept")]}).is_success)
    assert tell(client, event("k", "kept"), event("l", "kept"))["duplicates"] == 2
    assert {one.item_id for one in read_events("kept") or ()} == {"i7"}
    endpoint.stop()
    assert read_events("kept") is None, "what the explorer is told of a log that is not there"
    endpoint.start(config, str(made.output.folder))
    until(lambda: client.get("/readyz").is_success)
    assert rank(client, "kept")["knowledge"] == "events"
    assert tell(client, event("k", "kept"), event("l", "kept"))["accepted"] == 0


def test_a_replica_that_ends_writes_what_it_holds_of_the_log_of_requests(
    client: httpx.Client, config: ServeConfig
) -> None:
    body = {"user_id": "kept", "scenario": "home", "items": ["i1", "odd"]}
    answer = client.post("/v1/rank", json=body, headers={"x-request-id": "the-last"}).raise_for_status().json()
    endpoint.stop()
    tables = pa.concat_tables(request_rows.read_each(storage.path(config.log.folder)))
    (row,) = tables.filter(pc.equal(tables["request_id"], "the-last")).to_pylist()
    assert (row["user_id"], row["items"], row["model_version"]) == ("kept", ["i1", "odd"], answer["model_version"])
    scores = {one["item_id"]: one["score"] for one in answer["ranked"]}
    assert dict(zip(row["items"], row["scores"], strict=True)) == pytest.approx(scores, abs=1e-6)
    assert (row["knowledge"], row["events"][-1]["item_id"]) == ("events", "i7")
