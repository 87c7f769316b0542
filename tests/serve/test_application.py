"""The application as Ray Serve gets it, without one running."""

import json
from typing import Any

import pytest
import yaml

from llm4msr.config import ServeConfig
from llm4msr.errors import ConfigError
from llm4msr.serve.app import build, openapi
from llm4msr.serve.web_app import OPENAPI
from tests.support.experiments import ROOT


def deployment(**changes: Any) -> Any:
    """What is asked of Ray Serve for the arguments of cluster/serve.yaml with changes."""
    (application,) = yaml.safe_load((ROOT / "cluster" / "serve.yaml").read_text())["applications"]
    return build(ServeConfig.model_validate(application["args"] | changes))._bound_deployment


def options(**changes: Any) -> Any:
    return deployment(**changes)._deployment_config


def test_the_load_decides_the_number_of_replicas_between_two_limits() -> None:
    asked = options()
    assert (asked.autoscaling_config.min_replicas, asked.autoscaling_config.max_replicas) == (2, 8)
    assert asked.autoscaling_config.target_ongoing_requests == 2
    fixed = options(max_replicas=0, replicas=3)
    assert (fixed.num_replicas, fixed.autoscaling_config) == (3, None)


def test_overload_is_answered_with_429_and_a_time() -> None:
    asked = options(max_queued_requests=7, max_ongoing_requests=5)
    assert (asked.max_queued_requests, asked.max_ongoing_requests) == (7, 5)
    assert (asked.backpressure_config.status_code, asked.backpressure_config.retry_after_s) == (429, 1)


def test_a_replica_ranks_in_the_loop_that_reads_requests() -> None:
    environment = deployment().ray_actor_options["runtime_env"]["env_vars"]
    assert environment == {"RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0"}


def test_the_bundle_is_user_config_so_that_another_one_needs_no_restart() -> None:
    assert options(bundle="s3://other").user_config == {"bundle": "s3://other"}


def test_the_description_of_the_routes_is_the_committed_one() -> None:
    assert json.loads(json.dumps(openapi())) == json.loads(OPENAPI.read_text())


def test_a_bundle_must_be_named() -> None:
    with pytest.raises(ConfigError, match="'bundle' is missing; give the uri that `llm4msr export` printed"):
        options(bundle="")


def test_the_explorer_is_not_served_from_a_bundle_alone() -> None:
    with pytest.raises(ConfigError, match="'explore' shows the run of a config"):
        options(explore=True)
