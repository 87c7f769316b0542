"""Ray Serve itself: where it listens, what runs on it, how it starts and ends."""

import logging
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from llm4msr.config import ServeConfig
from llm4msr.serve import proxy

if TYPE_CHECKING:
    from ray.serve import Application
    from ray.serve.schema import ApplicationStatusOverview


def silence() -> None:
    """Keep Ray Serve from printing each of its steps."""
    import ray.serve  # noqa: F401 - makes the logger

    logging.getLogger("ray.serve").setLevel(logging.ERROR)


def running_at() -> tuple[str, int] | None:
    """Host and port of the Ray Serve of this cluster; None where none runs."""
    from ray.serve.context import _get_global_client

    client = _get_global_client(raise_if_no_controller_running=False)
    return None if client is None else (client.http_config.host, client.http_config.port)


def start(config: ServeConfig) -> None:
    """Start Ray Serve's controller and its HTTP proxy."""
    from ray import serve

    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": config.host, "port": config.port},
        logging_config=_logging(config),
        controller_options={"runtime_env": {"env_vars": proxy.ENVIRONMENT}},
    )


def run(app: "Application", name: str, prefix: str | None, config: ServeConfig) -> None:
    """Deploy an application and wait until it runs."""
    from ray import serve

    serve.run(app, name=name, route_prefix=prefix, logging_config=_logging(config))


def _logging(config: ServeConfig) -> dict[str, Any]:
    return {"log_level": "INFO" if config.access_log else "WARNING", "enable_access_log": config.access_log}


def applications() -> "Mapping[str, ApplicationStatusOverview]":
    """The applications on Ray Serve by name; none where Ray Serve itself is gone."""
    from ray import serve
    from ray.exceptions import RayError

    with suppress(RayError):
        return serve.status().applications
    return {}


def user_config(app: str, deployment: str) -> dict[str, str]:
    """The user config of a deployment that runs; empty if it has none."""
    from ray.serve.context import _get_global_client

    deployments = _get_global_client().get_serve_details()["applications"][app]["deployments"]
    return deployments.get(deployment, {}).get("deployment_config", {}).get("user_config") or {}


def reason(app: str, error: BaseException) -> str:
    """Why an application does not start, in one line: our own error if there is one, else the last line.

    Ray Serve hands on what a replica raised as text, with all tries and stack traces.
    """
    status = applications().get(app)
    texts = [str(error), *(d.message for d in status.deployments.values())] if status else [str(error)]
    text = "\n".join(texts)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    ours = re.findall(r"llm4msr\.errors\.\w+: (.+)", text)
    return ours[-1] if ours else lines[-1] if lines else type(error).__name__


def shutdown() -> None:
    """End Ray Serve without waiting for an answer of its controller.

    `serve.shutdown` waits for one from the process that it ends, and Ray then logs retries without end.
    """
    import ray
    from ray import serve
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

    with suppress(ValueError, ray.exceptions.RayError):
        ray.get(ray.get_actor(SERVE_CONTROLLER_NAME, SERVE_NAMESPACE).graceful_shutdown.remote(wait=False))
        for _ in range(300):
            ray.get_actor(SERVE_CONTROLLER_NAME, SERVE_NAMESPACE)  # raises a ValueError once it is gone
            time.sleep(0.1)
    serve.shutdown()  # forgets the connection
