"""Users who act are read again by an LLM that is kept open: on real Ray Serve, with a tiny real LLM."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import psutil
import pytest
from ray.serve import Application
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary

from llm4msr import Config, Ranker, RankRequest, pipeline
from llm4msr.errors import ConfigError
from llm4msr.nearline import histories
from llm4msr.serve import endpoint
from tests.support.experiments import free_port
from tests.support.fixtures import Spine

ITEMS = [f"item-{number}" for number in range(20)]
READER = "ServeReplica:nearline:nearline"


@pytest.fixture(scope="module")
def config(spine: Spine, tmp_path_factory: pytest.TempPathFactory) -> Config:
    found = spine.experiment.config
    serving = {"port": free_port(), "events": str(tmp_path_factory.mktemp("log")), "nearline": True, "timeout_s": 20}
    return found.model_copy(update={"serve": found.serve.model_copy(update=serving)})


@pytest.fixture(scope="module")
def client(config: Config) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=pipeline.serve(config), timeout=60) as opened:
        yield opened
    endpoint.stop()


def tell(client: httpx.Client, user: str, *taken: tuple[str, str]) -> None:
    now = time.time()
    events = [
        {
            "event_id": f"{user} {at} {now}",
            "user_id": user,
            "item_id": item,
            "scenario": scenario,
            "time": now + at / 1e3,
        }
        for at, (item, scenario) in enumerate(taken)
    ]
    assert client.post("/v1/events", json={"events": events}).raise_for_status().json()["used"]


def rank(client: httpx.Client, user: str, **changes: Any) -> dict[str, Any]:
    body = {"user_id": user, "scenario": "films", "items": ITEMS} | changes
    answer: dict[str, Any] = client.post("/v1/rank", json=body).raise_for_status().json()
    return answer


def scores(answer: dict[str, Any]) -> dict[str, float]:
    return {one["item_id"]: one["score"] for one in answer["ranked"]}


def until(condition: Callable[[], bool]) -> None:
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("waited too long")


def test_who_took_what_another_liked_gets_the_code_that_an_extraction_made_of_that(
    client: httpx.Client, config: Config, spine: Spine
) -> None:
    ranker = Ranker.load(str(spine.folder("export")))
    (liked,) = histories.read(spine.one("prepare"), ["user-2"]).values()
    taken = [(f"item-{title.split()[-1]}", scenario) for scenario, titles in liked.items() for title in titles]
    assert len(taken) > 5
    tell(client, "twin", *taken)
    until(lambda: rank(client, "twin")["knowledge"] == "events")
    place = ranker.knowledge.codes.find("user-2")
    assert place is not None
    code = ranker.knowledge.codes.numbers("code", place)
    request = RankRequest(user_id="twin", scenario="films", items=ITEMS)
    (expected,) = ranker.rank_many([request], [""], codes=[code])
    found = scores(rank(client, "twin"))
    assert found == pytest.approx({one.item_id: one.score for one in expected.ranked}, abs=1e-3)
    without = {one.item_id: one.score for one in ranker.rank(request).ranked}
    assert max(abs(found[item] - without[item]) for item in ITEMS) > 1e-2
    assert rank(client, "twin", history=[], history_mode="replace")["knowledge"] == "none"


def test_a_reader_that_was_killed_goes_on_where_the_log_has_no_code(client: httpx.Client) -> None:
    assert rank(client, "user-4")["knowledge"] == "stored"
    (reader,) = [one for one in psutil.Process().children(recursive=True) if any(READER in w for w in one.cmdline())]
    reader.kill()
    tell(client, "user-4", ("item-1", "films"), ("item-3", "films"))
    until(lambda: rank(client, "user-4")["knowledge"] == "events")


def test_codes_survive_the_endpoint_and_who_is_forgotten_has_none(client: httpx.Client, config: Config) -> None:
    before = scores(rank(client, "twin"))
    endpoint.stop()
    endpoint.start(config.serve, str(pipeline.exported(config).folder))
    until(lambda: client.get("/readyz").is_success)
    assert scores(rank(client, "twin")) == pytest.approx(before, abs=1e-6), "no reader runs any more"
    client.post("/v1/events:forget", json={"user_ids": ["twin"]}).raise_for_status()
    until(lambda: rank(client, "twin")["knowledge"] == "none")


def test_serve_deploy_takes_the_reader_with_a_config_as_arguments(config: Config) -> None:
    arguments = config.model_dump(mode="json")
    assert isinstance(call_user_app_builder_with_args_if_necessary(pipeline.nearline, arguments), Application)


@pytest.mark.parametrize(
    ("section", "key", "value", "problem"),
    [("serve", "events", "", "set serve.events"), ("extract", "pooling", "answer", "extract.pooling")],
)
def test_what_cannot_be_read_again_is_told_before_anything_starts(
    config: Config, spine: Spine, section: str, key: str, value: str, problem: str
) -> None:
    bundle = {"bundle": str(spine.folder("export"))}
    serving = config.serve.model_copy(update=bundle)
    wrong = config.model_copy(update={"serve": serving})
    changed = getattr(wrong, section).model_copy(update={key: value})
    with pytest.raises(ConfigError, match=problem):
        pipeline.nearline(wrong.model_copy(update={section: changed}))
