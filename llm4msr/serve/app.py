"""The ranker behind Ray Serve: HTTP in, scores out, no LLM in the path."""

import logging
import re
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from llm4msr import ray_session
from llm4msr.bundle.messages import TOKEN
from llm4msr.bundle.ranker import Ranker
from llm4msr.config import ServeConfig
from llm4msr.errors import ConfigError, LLM4MSRError
from llm4msr.progress import say
from llm4msr.serve import address, proxy
from llm4msr.serve.gates import token
from llm4msr.serve.middleware import web_app
from llm4msr.serve.replica import replica

APP, DEPLOYMENT = "llm4msr", "ranker"


def application(bundle_uri: str, config: ServeConfig, token_required: bool = False, deployed_by: str = "") -> Any:
    """The Ray Serve application that serves a bundle."""
    from ray import serve
    from ray.serve.config import BackpressureConfig

    scaling: dict[str, Any] = {"num_replicas": config.replicas}
    if config.max_replicas > config.replicas:
        scaling = {"autoscaling_config": {"min_replicas": config.replicas, "max_replicas": config.max_replicas}}
    deployment: Any = serve.deployment(
        name=DEPLOYMENT,
        user_config={"bundle": bundle_uri} | ({"deployed_by": deployed_by} if deployed_by else {}),
        max_ongoing_requests=config.max_ongoing_requests,
        max_queued_requests=config.max_queued_requests,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        ray_actor_options={"num_cpus": 1},
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=config.timeout_s + 5,
        **scaling,
    )(replica(web_app(config), config))
    return deployment.bind(token_required)


def build(args: ServeConfig) -> Any:
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
    return application(args.bundle, args, token_required=bool(token()))


def openapi() -> dict[str, Any]:
    """The routes' description, as `/openapi.json` gives it; `middleware.OPENAPI` is its committed copy."""
    app = web_app(ServeConfig())
    replica(app, ServeConfig())
    return app.openapi()


def start(config: ServeConfig, bundle_uri: str, allow_backbones: Sequence[str] = ()) -> str:
    """Serve a bundle in the background; gives back the endpoint's address.

    An endpoint that an earlier `llm4msr serve` left on the same cluster is taken over.

    Args:
        config: host, port, replicas and limits.
        bundle_uri: what `export` published.
        allow_backbones: import paths that are allowed besides those of `serve.allow_backbones`.

    Raises:
        ConfigError: the host or port cannot be listened at, or Ray Serve refuses.
        StorageError: the bundle cannot be read or is damaged.
    """
    taken = address.why_taken(config.host, config.port)
    protected = bool(token())
    config = config.model_copy(update={"allow_backbones": (*config.allow_backbones, *allow_backbones)})
    # a bundle that cannot be loaded is told here, in one line, and not by every replica
    Ranker.load(bundle_uri, allow_backbones=config.allow_backbones)
    ray_session.connect()
    _quiet()
    if not _proxies_run(config):
        _start_proxies(config, taken)
    deploy(application(bundle_uri, config, protected, PROCESS), APP, "/", config)
    here = address.url(config.host, config.port)
    if not protected and not address.is_local(config.host):
        say(f"  {here} asks for no token, so whoever reaches it may ask: set {TOKEN}")
    return here


def deploy(app: Any, name: str, prefix: str, config: ServeConfig) -> None:
    """Run an application on the Ray Serve that `start` began, until `stop`.

    Raises:
        ConfigError: it does not start; nothing is left behind.
    """
    from ray import serve

    _ours.apps.append(name)
    with _or_nothing(name):
        serve.run(app, name=name, route_prefix=prefix, logging_config=_logs(config))


def _logs(config: ServeConfig) -> dict[str, Any]:
    return {"log_level": "INFO" if config.access_log else "WARNING", "enable_access_log": config.access_log}


def _quiet() -> None:
    import ray.serve  # noqa: F401 - makes its logger, which tells each of its steps

    logging.getLogger("ray.serve").setLevel(logging.ERROR)


@dataclass
class _Ours:
    """What `start` of this process began and `stop` ends."""

    apps: list[str] = field(default_factory=list)
    proxies: bool = False
    """Whether Ray Serve itself came up with it, or with the endpoint that it took over."""


PROCESS = uuid.uuid4().hex
"""Stands in `user_config`: another `llm4msr serve` may have taken over what this one deployed."""

_ours = _Ours()


def _proxies_run(config: ServeConfig) -> bool:
    """Whether Ray Serve is there already, left by an earlier endpoint or begun by somebody else.

    Raises:
        ConfigError: it is, at another host or port.
    """
    from ray.serve.context import _get_global_client

    if (running := _get_global_client(raise_if_no_controller_running=False)) is None:
        return False
    there, wanted = running.http_config, address.url(config.host, config.port)
    if (there.host, there.port) != (config.host, config.port):
        here = f"serve there with --set serve.host={there.host} --set serve.port={there.port}"
        told = f"Ray Serve of this cluster is at {address.url(there.host, there.port)}"
        raise ConfigError(f"cannot serve at {wanted}: {told}; {here}, or end it with `serve shutdown`")
    if APP in _applications():
        _ours.proxies = True
        say(f"  taking over the endpoint that runs at {wanted}")
    return True


def _start_proxies(config: ServeConfig, taken: str) -> None:
    """Start Ray Serve.

    Raises:
        ConfigError: something else is at its host and port.
    """
    from ray import serve

    if taken:
        where = address.url(config.host, config.port)
        raise ConfigError(f"cannot serve at {where}: {taken}; choose another with --set serve.port=")
    _ours.proxies = True
    with _or_nothing("Ray Serve"):
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": config.host, "port": config.port},
            logging_config=_logs(config),
            controller_options={"runtime_env": {"env_vars": proxy.ENVIRONMENT}},
        )


@contextmanager
def _or_nothing(what: str) -> Iterator[None]:
    """A failure of Ray Serve, which tells all its tries and stack traces, as one error; nothing is left behind."""
    try:
        yield
    except BaseException as error:  # Ctrl-C too
        told = f"{what} does not start: {_reason(what, error)}"
        stop()
        if isinstance(error, LLM4MSRError) or not isinstance(error, Exception):
            raise
        raise ConfigError(told) from error


def _reason(app: str, error: BaseException) -> str:
    """Our own error where there is one, else the last line: Ray Serve hands on what a replica raised as text."""

    status = _applications().get(app)
    texts = [str(error), *(one.message for one in status.deployments.values())] if status else [str(error)]
    text = "\n".join(texts)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    own = re.findall(r"llm4msr\.errors\.\w+: (.+)", text)
    return own[-1] if own else lines[-1] if lines else type(error).__name__


def stop() -> None:
    """Answer what is in flight and take down what `start` began; Ray Serve too, where nothing of others is on it."""
    import ray
    from ray import serve

    if not ray.is_initialized() or _ours == _Ours():
        return
    there = _applications()
    if _taken_over(there):
        _ours.apps, _ours.proxies = [], False
    for name in _ours.apps:
        if name in there:
            serve.delete(name)
    if _ours.proxies and not _applications():
        _end_proxies()
    _ours.apps, _ours.proxies = [], False


def _applications() -> Mapping[str, Any]:
    """What runs on Ray Serve by name; nothing where somebody has taken down Ray Serve itself."""
    from ray import serve
    from ray.exceptions import RayError

    with suppress(RayError):
        return serve.status().applications
    return {}


def _taken_over(there: Mapping[str, Any]) -> bool:
    """Whether the ranker that runs is another process's by now."""
    from ray.serve.context import _get_global_client

    if not (APP in _ours.apps and APP in there):
        return False
    details = _get_global_client().get_serve_details()["applications"][APP]["deployments"]
    given = details.get(DEPLOYMENT, {}).get("deployment_config", {}).get("user_config") or {}
    return given.get("deployed_by", PROCESS) != PROCESS


def _end_proxies() -> None:
    """As `serve.shutdown` does, which waits for an answer of what it ends; Ray then tells of retries without end."""
    import ray
    from ray import serve
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

    with suppress(ValueError, ray.exceptions.RayError):
        ray.get(ray.get_actor(SERVE_CONTROLLER_NAME, SERVE_NAMESPACE).graceful_shutdown.remote(wait=False))
        for _ in range(300):
            ray.get_actor(SERVE_CONTROLLER_NAME, SERVE_NAMESPACE)  # a ValueError once it is gone
            time.sleep(0.1)
    serve.shutdown()  # forgets the connection
