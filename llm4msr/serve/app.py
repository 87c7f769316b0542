"""The ranker as an application of Ray Serve: HTTP in, scores out, no LLM in the path."""

from typing import TYPE_CHECKING, Any

from llm4msr.bundle.messages import RankRequest, RankResponse
from llm4msr.config import ServeConfig
from llm4msr.errors import ConfigError
from llm4msr.serve import api_token
from llm4msr.serve.event_log import EventLog
from llm4msr.serve.live_model import LiveModel
from llm4msr.serve.replica import replica_class
from llm4msr.serve.routes import ranking_app

if TYPE_CHECKING:
    from ray.serve import Application

APP, DEPLOYMENT, EVENTS = "llm4msr", "ranker", "events"
TARGET_ONGOING_REQUESTS = 2
"""Of each replica, on average: one that is scored and one that waits. Where requests come at random, its thread is then
busy two thirds of the time: r / (1 - r) of them are there while it is busy a share r."""
ONE_LOOP = {"RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0"}
"""Environment of a replica: it ranks where it reads, since the way to a thread and back costs more than ranking."""


def application(
    bundle_uri: str, config: ServeConfig, token_required: bool = False, deployed_by: str = ""
) -> "Application":
    """The Ray Serve application that serves a bundle. `deployed_by` names the process that deploys it."""
    from ray import serve
    from ray.serve.config import BackpressureConfig

    scaling: dict[str, Any] = {"num_replicas": config.replicas}
    if config.max_replicas > config.replicas:
        limits = {"min_replicas": config.replicas, "max_replicas": config.max_replicas}
        scaling = {"autoscaling_config": limits | {"target_ongoing_requests": TARGET_ONGOING_REQUESTS}}
    deployment = serve.deployment(
        name=DEPLOYMENT,
        user_config={"bundle": bundle_uri} | ({"deployed_by": deployed_by} if deployed_by else {}),
        max_ongoing_requests=config.max_ongoing_requests,
        max_queued_requests=config.max_queued_requests,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        ray_actor_options={"num_cpus": 1, "runtime_env": _runtime_env()},
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=config.timeout_s + 5,
        **scaling,
    )(replica_class(config))
    return deployment.bind(token_required, _event_log(config) if config.events else None)


def _runtime_env() -> dict[str, Any]:
    """That of this job, which Ray Serve would take if we gave none, and in it `ONE_LOOP`."""
    import ray

    ours = dict(ray.get_runtime_context().runtime_env) if ray.is_initialized() else {}
    return ours | {"env_vars": {**ours.get("env_vars", {}), **ONE_LOOP}}


def _event_log(config: ServeConfig) -> "Application":
    """The one process that has the log of events open."""
    from ray import serve

    options = {"num_cpus": 0}  # it waits for the disk
    deployment = serve.deployment(name=EVENTS, max_ongoing_requests=100, ray_actor_options=options)(EventLog)
    return deployment.bind(config.events, config.events_days, config.recent_events)


def build(args: ServeConfig) -> "Application":
    """For `serve deploy` and KubeRay's RayService: `import_path: llm4msr.serve:build`, the keys of [serve] as args.

    Raises:
        ConfigError: no bundle is named, or the explorer is asked for, which needs a whole config.
    """
    if args.explore:
        raise ConfigError(
            "args: 'explore' shows the run of a config; use `llm4msr serve CONFIG --set serve.explore=true`"
        )
    if not args.bundle:
        raise ConfigError("args: 'bundle' is missing; give the uri that `llm4msr export` printed")
    return application(args.bundle, args, token_required=bool(api_token.read()))


def openapi() -> dict[str, Any]:
    """The description of the routes, as `/openapi.json` gives it; `web_app.OPENAPI` is its committed copy."""

    async def respond(requests: list[RankRequest], request_id: str) -> list[RankResponse]:
        return []

    return ranking_app(ServeConfig(), LiveModel(on_refusal=lambda _: None), respond).openapi()
