"""Requests are traced by the hook of Ray Serve that cluster/SERVING.md shows."""

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from ray import serve

from llm4msr.config import ServeConfig
from llm4msr.serve import endpoint, ray_serve
from tests.support.experiments import free_port
from tests.support.matching import publish_matching


@pytest.fixture(scope="module")
def address(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    bundle = publish_matching(tmp_path_factory.mktemp("tracing"), knowledge="none", match=("ids",)).output.folder
    config = ServeConfig(port=free_port())
    tracing = {"enabled": True, "sampling_ratio": 1.0}
    options = {"host": config.host, "port": config.port}
    serve.start(proxy_location="HeadOnly", http_options=options, tracing_config=tracing)
    yield endpoint.start(config, str(bundle))
    endpoint.stop()
    ray_serve.shutdown()


def test_a_request_has_a_span_with_its_id(address: str) -> None:
    from ray.serve._private.logging_utils import get_serve_logs_dir

    body = {"user_id": "u1", "scenario": "home", "items": ["i1"]}
    answer = httpx.post(f"{address}/v1/rank", json=body, headers={"x-request-id": "wanted"}, timeout=60)
    assert answer.raise_for_status().json()["request_id"] == "wanted"
    spans = ""
    for _ in range(300):
        spans = "".join(file.read_text() for file in Path(get_serve_logs_dir(), "spans").glob("*ranker*"))
        if "wanted" in spans:
            break
        time.sleep(0.1)
    assert "replica_handle_request ranker" in spans
    assert '"request_id": "wanted"' in spans
