"""The endpoint that this process runs on Ray Serve: `start` it, `deploy` beside it, `stop` all that was started.

One endpoint a cluster: `start` takes over one that an earlier `llm4msr serve` left there.
"""

import time
import uuid
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llm4msr import ray_session
from llm4msr.bundle.ranker import Ranker
from llm4msr.config import ServeConfig
from llm4msr.errors import ConfigError, LLM4MSRError
from llm4msr.progress import say
from llm4msr.serve import address, api_token, ray_serve
from llm4msr.serve.app import APP, DEPLOYMENT, application
from llm4msr.text import is_loopback

if TYPE_CHECKING:
    from ray.serve import Application

PROCESS = uuid.uuid4().hex
"""Stands in the ranker's `user_config`, so that `stop` sees whether another process has taken the endpoint over."""
FREED_S = 5.0
"""How long the port of a proxy that was stopped just now may take to be free."""


@dataclass
class _Started:
    """What this process has started."""

    applications: list[str] = field(default_factory=list)
    ray_serve: bool = False
    """Whether Ray Serve itself came up with the endpoint, or with the one that was taken over."""


_started = _Started()


def start(config: ServeConfig, bundle_uri: str, allow_backbones: Sequence[str] = ()) -> str:
    """Serve a bundle in the background; gives back the endpoint's address.

    Args:
        config: host, port, replicas and limits.
        bundle_uri: what `export` published.
        allow_backbones: import paths that are allowed besides those of `serve.allow_backbones`.

    Raises:
        ConfigError: the host or port cannot be listened at, or Ray Serve refuses.
        StorageError: the bundle cannot be read or is damaged.
    """
    address.bind_error(config.host, config.port)  # a wrong host is told before anything is loaded
    protected = bool(api_token.read())
    config = config.model_copy(update={"allow_backbones": (*config.allow_backbones, *allow_backbones)})
    for uri in filter(None, (bundle_uri, config.second.bundle)):
        # a bundle that cannot be loaded is one message here, and not one of every replica
        Ranker.load(uri, allow_backbones=config.allow_backbones)
    ray_session.connect()
    ray_serve.silence()
    url = address.url(config.host, config.port)
    if (running := ray_serve.running_at()) is None:
        _start_ray_serve(config)
    elif running != (config.host, config.port):
        there = f"serve there with --set serve.host={running[0]} --set serve.port={running[1]}"
        reason = f"Ray Serve of this cluster is at {address.url(*running)}"
        raise ConfigError(f"cannot serve at {url}: {reason}; {there}, or end it with `serve shutdown`")
    elif APP in ray_serve.applications():
        _started.ray_serve = True
        say(f"  taking over the endpoint that runs at {url}")
    deploy(application(bundle_uri, config, protected, PROCESS), APP, "/", config)
    if not protected and not is_loopback(config.host):
        say(f"  {url} asks for no token, so whoever reaches it may ask: set {api_token.VARIABLE}")
    return url


def _start_ray_serve(config: ServeConfig) -> None:
    latest = time.monotonic() + FREED_S
    while reason := address.bind_error(config.host, config.port):
        if time.monotonic() > latest:
            url = address.url(config.host, config.port)
            raise ConfigError(f"cannot serve at {url}: {reason}; choose another with --set serve.port=")
        time.sleep(0.1)
    _started.ray_serve = True
    with _all_or_nothing("Ray Serve"):
        ray_serve.start(config)


def deploy(app: "Application", name: str, prefix: str | None, config: ServeConfig) -> None:
    """Run an application on the Ray Serve of `start`, until `stop`; without a prefix it is not reached over HTTP.

    Raises:
        ConfigError: it does not start; nothing is left behind.
    """
    _started.applications.append(name)
    with _all_or_nothing(name):
        ray_serve.run(app, name, prefix, config)


@contextmanager
def _all_or_nothing(name: str) -> Iterator[None]:
    """If the block fails, stop all that was started, and raise a failure of Ray Serve as one error of one line."""
    try:
        yield
    except BaseException as error:  # Ctrl-C too
        message = f"{name} does not start: {ray_serve.reason(name, error)}"
        stop()
        if isinstance(error, LLM4MSRError) or not isinstance(error, Exception):
            raise
        raise ConfigError(message) from error


def stop() -> None:
    """Answer what is in flight, then take down what `start` began; Ray Serve too, if nothing of others is on it."""
    import ray
    from ray import serve

    if not ray.is_initialized() or _started == _Started():
        return
    running = ray_serve.applications()
    if not _is_taken_over(running):
        for name in _started.applications:
            if name in running:
                serve.delete(name)
        if _started.ray_serve and not ray_serve.applications():
            ray_serve.shutdown()
    _started.applications, _started.ray_serve = [], False


def _is_taken_over(running: Collection[str]) -> bool:
    """Whether the ranker that runs now was deployed by another process."""
    if APP not in _started.applications or APP not in running:
        return False
    return ray_serve.user_config(APP, DEPLOYMENT).get("deployed_by", PROCESS) != PROCESS
