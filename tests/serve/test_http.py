"""The spine's bundle behind real Ray Serve, asked over HTTP."""

import asyncio
import json
import re
import shutil
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
import safetensors.torch
import torch
from ray.serve import get_deployment_handle

from llm4msr import Config, Ranker, RankRequest, pipeline, storage
from llm4msr.errors import ConfigError
from llm4msr.serve import app, endpoint
from llm4msr.serve.metrics import METRICS
from llm4msr.serve.second import is_among
from llm4msr.serve.web_app import OPENAPI
from llm4msr.text import MAX_ID
from llm4msr.training.checkpoint import WEIGHTS
from llm4msr.training.dataset import Dataset
from tests.support.experiments import SAD_USER, SCENARIOS, free_port
from tests.support.fixtures import Spine

MAX_CANDIDATES = 200
OURS = tuple(f"ray_{name}" for name in METRICS)
SHOWN = {"ray_llm4msr_rank_requests_total", "ray_llm4msr_rank_seconds_bucket", "ray_llm4msr_rank_candidates_bucket"}
ITEMS = [f"item-{i}" for i in range(20)]


@pytest.fixture(scope="module")
def config(spine: Spine) -> Config:
    """Few waiting requests are allowed, so that a burst overloads it."""
    changed = {
        "port": free_port(),
        "max_candidates": MAX_CANDIDATES,
        "max_queued_requests": 8,
        "max_body_bytes": 40_000,
        "timeout_s": 5,
        "follow_s": 0.5,
    }
    found = spine.experiment.config
    return found.model_copy(update={"serve": found.serve.model_copy(update=changed)})


@pytest.fixture(scope="module")
def address(config: Config) -> Iterator[str]:
    """One Ray Serve for this module; it is ended afterwards, since it holds a CPU."""
    yield pipeline.serve(config)
    endpoint.stop()


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, timeout=60) as opened:
        yield opened


@pytest.fixture(scope="module")
def ranker(spine: Spine) -> Ranker:
    return Ranker.load(str(spine.folder("export")))


def asked(**changes: Any) -> dict[str, Any]:
    return {"user_id": "user-2", "scenario": "films", "items": ITEMS, "context": {"device": "desktop"}} | changes


def scores_of(answer: dict[str, Any]) -> dict[str, float]:
    return {one["item_id"]: one["score"] for one in answer["ranked"]}


@pytest.mark.parametrize("change", [{}, {"top_k": 3}, {"context": {}}, {"user_id": "nobody"}, {"scenario": "nowhere"}])
def test_http_answers_what_python_answers(client: httpx.Client, ranker: Ranker, change: dict[str, Any]) -> None:
    there = client.post("/v1/rank", json=asked(**change)).raise_for_status().json()
    here = ranker.rank(RankRequest(**asked(**change)), there["request_id"]).model_dump()
    scores = [one.pop("score") for one in there["ranked"]]
    assert scores == pytest.approx([one.pop("score") for one in here["ranked"]], abs=1e-6)
    assert there == here


def test_the_whole_test_set_scores_over_http_as_in_training(client: httpx.Client, spine: Spine) -> None:
    config, prepared = spine.experiment.config, spine.one("prepare")
    data = Dataset.open(config, prepared, spine.one("extract"))
    net = data.new_net(config)
    net.load_state_dict(safetensors.torch.load(storage.read_bytes(spine.one("train").folder / WEIGHTS)))
    rows = next(data.rows("test").in_file_order(10_000))
    with torch.inference_mode():
        expected = torch.sigmoid(net.eval()(data.batch(rows, net))).tolist()
    raw = [
        storage.read_table(prepared.folder / name, [f"{side}_id"])[f"{side}_id"].to_pylist()
        for side, name in (
            ("user", "users/p=00000.parquet"),
            ("item", "items.parquet"),
            ("scenario", "scenarios.parquet"),
        )
    ]
    devices = ["", *json.loads(storage.read_bytes(prepared.folder / "fields.json"))["context"]["device"]]
    numbers = zip(*(c.tolist() for c in (*rows[:3], rows.context_BC[:, 0])), strict=True)
    requests = [
        asked(user_id=raw[0][u], items=[raw[1][i]], scenario=raw[2][s], context={"device": devices[d]} if d else {})
        for u, i, s, d in numbers
    ]
    found: list[float] = []
    for start in range(0, len(requests), 100):
        body = {"requests": requests[start : start + 100]}
        answers = client.post("/v1/rank:batch", json=body).raise_for_status().json()["responses"]
        found += [answer["ranked"][0]["score"] for answer in answers]
    assert len(found) == prepared.manifest.files["test/p=00000.parquet"].rows
    assert found == pytest.approx(expected, abs=1e-5)


def test_a_batch_answers_each_request_alone(client: httpx.Client) -> None:
    requests = [asked(), asked(user_id="user-7", top_k=2), asked(scenario="books", context={})]
    together = client.post("/v1/rank:batch", json={"requests": requests}).raise_for_status().json()["responses"]
    for request, answer in zip(requests, together, strict=True):
        alone = client.post("/v1/rank", json=request).raise_for_status().json()
        assert scores_of(answer) == pytest.approx(scores_of(alone), abs=1e-6)
        assert answer | {"request_id": "", "ranked": []} == alone | {"request_id": "", "ranked": []}


def test_what_is_unknown_is_said(client: httpx.Client) -> None:
    body = asked(user_id="nobody", scenario="nowhere", items=["item-1", "no-item", "item-2"])
    answer = client.post("/v1/rank", json=body).raise_for_status().json()
    assert answer["unknown"] == {"user": True, "scenario": True, "items": ["no-item"], "history": 0}
    assert answer["knowledge"] == "none"
    assert {one["item_id"] for one in answer["ranked"]} == set(body["items"])
    known = client.post("/v1/rank", json=asked()).json()
    assert known["unknown"] == {"user": False, "scenario": False, "items": [], "history": 0}
    assert known["knowledge"] == "stored"
    assert client.post("/v1/rank", json=asked(user_id=SAD_USER)).json()["knowledge"] == "none"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"itmes": ["item-1"]}, "itmes"),
        ({"items": []}, "items"),
        ({"user_id": None}, "user_id"),
        ({"top_k": 0}, "top_k"),
        ({"user_id": "x" * (MAX_ID + 1)}, "user_id"),
        ({"context": {"weather": "rain"}}, "weather"),
        ({"history": [{"item_id": "item-1"}]}, "scenario"),
        ({"history": [{"item_id": "item-1", "scenario": "films", "liked": 1}]}, "liked"),
        ({"history_mode": "forget"}, "history_mode"),
    ],
)
def test_a_wrong_field_is_named(client: httpx.Client, change: dict[str, Any], field: str) -> None:
    answer = client.post("/v1/rank", json=asked(**change))
    assert answer.status_code == 422
    assert field in str(answer.json()["detail"])


def test_a_wrong_field_in_a_batch_is_named(client: httpx.Client) -> None:
    answer = client.post("/v1/rank:batch", json={"requests": [asked(), asked(context={"weather": "rain"})]})
    assert answer.status_code == 422
    assert answer.json()["detail"] == "context: unknown field 'weather'; this model knows: device"


NO_REQUESTS = [b"{", b"", b"\xff\xfe", b"NaN", b"[" * 9_000, b'{"a":' * 3_000, b'{"top_k": 1' + b"0" * 5_000 + b"}"]
NO_REQUESTS += [b'{"user_id": "\\ud800", "scenario": "a", "items": ["\\udfff"]}', b'{"\\ud800": NaN}', b"[1e999]"]


@pytest.mark.parametrize("body", NO_REQUESTS, ids=lambda body: repr(body[:20]))
def test_what_is_no_request_is_refused(client: httpx.Client, body: bytes) -> None:
    for path in ("/v1/rank", "/v1/rank:batch"):
        answer = client.post(path, content=body, headers={"content-type": "application/json"})
        assert answer.status_code in (400, 422), answer.text
        assert len(answer.content) < 4_000
        assert "Traceback" not in answer.text


def test_a_body_too_large_is_refused(client: httpx.Client) -> None:
    answer = client.post("/v1/rank", content=b" " * 40_001)
    assert (answer.status_code, answer.json()) == (413, {"detail": "the body is larger than 40000 bytes"})


def test_half_a_body_is_not_waited_for(config: Config, client: httpx.Client) -> None:
    with socket.create_connection((config.serve.host, config.serve.port), timeout=30) as half:
        half.sendall(b"POST /v1/rank HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{")
        assert client.post("/v1/rank", json=asked()).status_code == 200
        begun = time.monotonic()
        assert half.recv(4096).startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - begun < 25


def test_too_many_candidates(client: httpx.Client) -> None:
    assert client.post("/v1/rank", json=asked(items=["item-1"] * MAX_CANDIDATES)).status_code == 200
    answer = client.post("/v1/rank", json=asked(items=["item-1"] * (MAX_CANDIDATES + 1)))
    assert answer.status_code == 413
    assert answer.json()["detail"] == "201 candidates, allowed are 200; send fewer at once"
    half = asked(items=["item-1"] * (MAX_CANDIDATES // 2 + 1))
    assert client.post("/v1/rank:batch", json={"requests": [half, half]}).status_code == 413


def test_a_history_is_bounded_and_what_is_unknown_in_it_is_counted(client: httpx.Client) -> None:
    event = {"item_id": "no-item", "scenario": "films"}
    answer = client.post("/v1/rank", json=asked(history=[event] * 200)).raise_for_status().json()
    assert (answer["unknown"]["history"], answer["knowledge"]) == (200, "stored")
    assert scores_of(answer) == pytest.approx(scores_of(client.post("/v1/rank", json=asked()).json()), abs=1e-6)
    for path, body in (
        ("/v1/rank", asked(history=[event] * 201)),
        ("/v1/rank:batch", {"requests": [asked(), asked(history=[event] * 201)]}),
    ):
        refused = client.post(path, json=body)
        assert refused.status_code == 422
        assert refused.json()["detail"] == "history: 201 events, allowed are 200; send the newest ones"


def test_events_are_refused_where_none_are_kept(client: httpx.Client) -> None:
    event = {"event_id": "e", "user_id": "u", "item_id": "i", "scenario": "s", "time": time.time()}
    answer = client.post("/v1/events", json={"events": [event]})
    assert (answer.status_code, answer.json()["detail"]) == (409, "this endpoint keeps no events; set serve.events")


def test_model_and_health(client: httpx.Client, ranker: Ranker) -> None:
    model = client.get("/v1/model").raise_for_status().json()
    assert model == ranker.info().model_dump()
    assert model["scenarios"] == list(SCENARIOS)
    assert model["problem"] == ""
    assert (model["users"], model["users_with_knowledge"], model["items"]) == (61, 60, 40)
    assert (model["backbone"], model["knowledge"], model["context"]) == ("mmoe", "both", ["device"])
    assert client.get("/healthz").raise_for_status().json() == {"status": "ok"}
    ready = client.get("/readyz").raise_for_status().json()
    assert ready == {"status": "ready", "model_version": model["model_version"]}


def test_request_id_comes_back(client: httpx.Client) -> None:
    answer = client.post("/v1/rank", json=asked(), headers={"x-request-id": "my-request-17"})
    assert answer.headers["x-request-id"] == "my-request-17"
    assert answer.json()["request_id"] == "my-request-17"
    first, second = (client.post("/v1/rank", json=asked()) for _ in range(2))
    assert first.json()["request_id"] == first.headers["x-request-id"]
    assert first.json()["request_id"] != second.json()["request_id"]


@pytest.mark.parametrize(("given", "status"), [("é漢".encode(), 200), (b"\xe9", 400), (b"x" * 129, 422)])
def test_a_request_id_is_text(client: httpx.Client, given: bytes, status: int) -> None:
    headers = {b"x-request-id": given, b"content-type": b"application/json"}
    answer = client.post("/v1/rank", content=json.dumps(asked()), headers=headers)
    assert answer.status_code == status
    assert status != 200 or answer.json()["request_id"] == given.decode()


def test_every_answer_is_neither_guessed_at_nor_kept(client: httpx.Client) -> None:
    answers = [client.get(path) for path in ("/healthz", "/v1/model", "/nowhere", "/-/routes", "/docs")]
    answers += [client.post("/v1/rank", json={}), client.get("/docs", headers={"host": "evil.example"})]
    assert [answer.status_code for answer in answers] == [200, 200, 404, 200, 200, 422, 403]
    for answer in answers:
        assert answer.headers.get_list("x-content-type-options") == ["nosniff"]
        assert answer.headers.get_list("cache-control") == ["no-store"]


def test_every_metric_names_the_model(client: httpx.Client, ranker: Ranker) -> None:
    client.post("/v1/rank", json=asked()).raise_for_status()
    (node,) = ray.nodes()
    lines: list[str] = []
    shown: set[str] = set()
    for _ in range(120):
        told = httpx.get(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics").text
        lines = [line for line in told.splitlines() if line.startswith(OURS)]  # of earlier endpoints, too
        shown = {line.partition("{")[0] for line in lines if f'model_version="{ranker.model_version}"' in line}
        if shown >= SHOWN:
            break
        time.sleep(0.25)
    assert shown >= SHOWN
    assert [line for line in lines if not re.search(r'[{,]model_version="[^"]', line)] == []


def test_openapi_describes_the_routes(client: httpx.Client) -> None:
    document = client.get("/openapi.json").raise_for_status().json()
    committed = json.loads(OPENAPI.read_text())
    assert document == committed
    assert set(document["paths"]) == {
        "/v1/rank",
        "/v1/rank:batch",
        "/v1/events",
        "/v1/events:forget",
        "/v1/model",
        "/healthz",
        "/readyz",
    }
    assert set(document["components"]["schemas"]["RankRequest"]["properties"]) == {
        "user_id",
        "scenario",
        "items",
        "context",
        "user_features",
        "top_k",
        "history",
        "history_mode",
    }


def test_overload_is_told_and_passes(client: httpx.Client, address: str) -> None:
    async def burst() -> list[httpx.Response]:
        unlimited = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=address, timeout=60, limits=unlimited) as many:
            body = asked(items=["item-1"] * MAX_CANDIDATES)
            return await asyncio.gather(*(many.post("/v1/rank", json=body) for _ in range(200)))

    answers = asyncio.run(burst())
    codes = Counter(answer.status_code for answer in answers)
    assert set(codes) == {200, 429}, codes
    assert all(answer.headers["retry-after"] == "1" for answer in answers if answer.status_code == 429)
    assert client.post("/v1/rank", json=asked()).status_code == 200


def ask_until(client: httpx.Client, wanted: Any, body: dict[str, Any]) -> tuple[dict[str, Any], Counter[str]]:
    """Ask steadily until an answer is as wanted, for a minute at most; all answers' knowledge versions too."""
    versions: Counter[str] = Counter()
    for _ in range(3000):
        answer = client.post("/v1/rank", json=body).raise_for_status().json()
        versions[answer["knowledge_version"]] += 1
        if wanted(answer):
            return answer, versions
        time.sleep(0.02)
    raise AssertionError(f"waited too long; answers were of {versions}")


def test_newer_codes_are_taken_over_without_a_restart(spine: Spine, client: httpx.Client) -> None:
    """The extraction's codes once more, under their own version; then damaged ones, which are refused and told."""
    before = client.post("/v1/rank", json=asked()).json()
    assert before["knowledge_version"] == before["model_version"]
    published = pipeline.refresh(spine.experiment.config)
    assert pipeline.refresh(spine.experiment.config).reused
    version = published.manifest.fingerprint
    after, versions = ask_until(client, lambda a: a["knowledge_version"] == version, asked())
    assert set(versions) <= {before["model_version"], version}
    assert scores_of(after) == pytest.approx(scores_of(before), abs=1e-6)
    assert after["model_version"] == before["model_version"]

    codes = Path(str(published.folder))
    pointer = codes.parent / "latest.json"
    damaged = Path(shutil.copytree(codes, codes.with_name("damaged")))
    (damaged / "codes.arrow").write_bytes(b"x" * (codes / "codes.arrow").stat().st_size)
    pointer.write_text('{"codes": "damaged"}')
    for _ in range(200):
        if problem := client.get("/v1/model").json()["problem"]:
            break
        time.sleep(0.1)
    assert "damaged/codes.arrow: damaged, its checksum" in problem
    assert client.post("/v1/rank", json=asked()).json()["knowledge_version"] == version
    shutil.rmtree(codes.parent)


def test_another_bundle_is_taken_over_without_a_failed_request(
    spine: Spine, client: httpx.Client, tmp_path: Path
) -> None:
    other = shutil.copytree(spine.folder("export"), tmp_path / "export" / "other")
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(manifest | {"fingerprint": "other"}))
    replica = get_deployment_handle(app.DEPLOYMENT, app.APP)
    told = replica.reconfigure.remote({"bundle": str(other)})  # what Ray Serve does with a new user_config
    ask_until(client, lambda a: a["model_version"] == "other", asked())
    told.result()
    replica.reconfigure.remote({"bundle": str(tmp_path / "gone")}).result()
    model = client.get("/v1/model").json()
    assert model["model_version"] == "other"
    assert model["problem"].endswith("gone: not a finished bundle; give the uri that `llm4msr export` printed")
    replica.reconfigure.remote({"bundle": str(other)}).result()
    assert client.get("/v1/model").json()["problem"] == ""


def test_a_second_bundle_answers_its_users_and_is_named(spine: Spine, client: httpx.Client, tmp_path: Path) -> None:
    first, other = str(spine.folder("export")), shutil.copytree(spine.folder("export"), tmp_path / "export" / "second")
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(manifest | {"fingerprint": "second"}))
    replica = get_deployment_handle(app.DEPLOYMENT, app.APP)

    def deploy(**second: Any) -> dict[str, Any]:
        replica.reconfigure.remote({"bundle": first, "second": second}).result()
        told: dict[str, Any] = client.get("/v1/model").raise_for_status().json()
        return told

    users = [f"user-{number}" for number in range(40)]
    told = deploy(bundle=str(other), share=0.5, salt="s")
    assert told["second"] == {
        "model_version": "second",
        "knowledge_version": "second",
        "share": 0.5,
        "shadow": False,
        "salt": "s",
    }
    body = {"requests": [asked(user_id=user, items=["item-1"]) for user in users]}
    answers = client.post("/v1/rank:batch", json=body).raise_for_status().json()["responses"]
    for user, answer in zip(users, answers, strict=True):
        assert (answer["model_version"] == "second") == is_among(user, 0.5, "s")
    told = deploy(bundle=str(other), share=7)
    assert told["problem"] == "second bundle: second.share: Input should be less than or equal to 1"
    assert told["second"]["share"] == 0.5
    deploy(bundle=str(other), share=1, shadow=True)
    answer = client.post("/v1/rank", json=asked()).raise_for_status().json()
    assert answer["model_version"] != "second"
    (node,) = ray.nodes()
    for _ in range(120):
        lines = httpx.get(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics").text
        shown = [line for line in lines.splitlines() if line.startswith("ray_llm4msr_shadow_requests_total{")]
        if any('model_version="second"' in line and 'result="same_best"' in line for line in shown):
            break
        time.sleep(0.25)
    else:
        raise AssertionError("no shadow was counted")
    told = deploy(bundle=str(tmp_path / "gone"), share=1)
    assert told["problem"].endswith("gone: not a finished bundle; give the uri that `llm4msr export` printed")
    told = deploy()
    assert (told["problem"], told["second"]) == ("", None)


def test_ray_serve_that_is_elsewhere_is_told(config: Config, address: str) -> None:
    moved = config.model_copy(update={"serve": config.serve.model_copy(update={"port": free_port()})})
    with pytest.raises(
        ConfigError, match=rf"Ray Serve of this cluster is at {address}.*serve\.port={config.serve.port}"
    ):
        pipeline.serve(moved)
    assert httpx.get(f"{address}/readyz").status_code == 200


def test_serving_needs_a_bundle(spine: Spine) -> None:
    untrained = spine.experiment.config.using("user", 5)
    with pytest.raises(ConfigError, match="not trained yet; run `llm4msr train`"):
        pipeline.serve(untrained)
