"""What lies in cluster/ is valid: Ray's own schema takes serve.yaml, and the dashboard asks for metrics that exist."""

import json
import re
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from llm4msr.config import ServeConfig
from llm4msr.serve.metrics import METRICS
from tests.support.documents import blocks
from tests.support.experiments import ROOT

RAY_SERVE = {
    *("serve_num_http_requests", "serve_http_request_latency_ms", "serve_deployment_queued_queries"),
    *("serve_deployment_replica_healthy", "serve_replica_processing_queries"),
}
"""Those of Ray Serve's own metrics that the dashboard shows."""


def serve_yaml() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "cluster" / "serve.yaml").read_text())
    return found


def test_serve_yaml_is_what_ray_serve_and_the_application_take() -> None:
    from ray.serve.schema import ServeDeploySchema

    (application,) = ServeDeploySchema.model_validate(serve_yaml()).applications
    assert application.import_path == "llm4msr.serve.app:build"
    assert ServeConfig.model_validate(application.args).bundle == application.deployments[0].user_config["bundle"]


def test_what_the_guide_adds_to_serve_yaml_is_taken() -> None:
    from ray.serve.schema import ServeDeploySchema

    shown = [yaml.safe_load(text) for text in blocks(ROOT / "cluster" / "SERVING.md", "yaml")]
    (traces,) = (one for one in shown if "tracing_config" in one)
    assert ServeDeploySchema.model_validate(serve_yaml() | traces).tracing_config.enabled
    (second,) = (one["user_config"]["second"] for one in shown if "user_config" in one)
    assert ServeConfig.model_validate({"second": second}).second.share == 0.1


def test_a_misspelt_argument_in_serve_yaml_is_refused() -> None:
    arguments = serve_yaml()["applications"][0]["args"]
    with pytest.raises(ValidationError, match="replcias"):
        ServeConfig.model_validate(arguments | {"replcias": 1})


def test_the_dashboard_asks_for_metrics_that_exist() -> None:
    dashboard = json.loads((ROOT / "cluster" / "grafana" / "ranker.json").read_text())
    asked = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"ray_(\w+?)(?:_bucket|_total|_sum|_count)?[{\[]", target["expr"])
    }
    assert asked == {*METRICS, *RAY_SERVE}
