"""A Ray with Ray Serve and the ranker on it, deployed from a file as an operator would: `serve deploy`."""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import yaml

from benchmarks import _bundles
from llm4msr.serve import proxy
from tests.support.experiments import free_port

INGRESSES = {
    "haproxy": {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5"},
    "ray": {"RAY_SERVE_ENABLE_HA_PROXY": "0"},
}
"""What stands before the replicas -> the variables that choose it. A replica that goes has 5 s until nobody sends
it more, where Ray gives 30."""


class Endpoint:
    """What runs, and how to change it."""

    def __init__(self, root: Path, args: dict[str, Any]):
        self.root, self.args = root, args
        self.bundle = _bundles.make_bundle(root, "first", knowledge="both")
        self.port, self.dashboard = free_port(), free_port()
        self.address = f"http://127.0.0.1:{self.port}"

    def deploy(self, bundle: str, in_place: bool = True) -> None:
        """Write serve.yaml and deploy it; `in_place` changes `user_config` alone, so that no replica restarts."""
        document = {
            "proxy_location": "HeadOnly",
            "http_options": {"host": "127.0.0.1", "port": self.port},
            "logging_config": {"log_level": "ERROR", "enable_access_log": False},
            "applications": [
                {
                    "name": "llm4msr",
                    "route_prefix": "/",
                    "import_path": "llm4msr.serve.app:build",
                    "args": {"bundle": self.bundle if in_place else bundle, **self.args},
                    "deployments": [{"name": "ranker", "max_surge_percent": 50, "user_config": {"bundle": bundle}}],
                }
            ],
        }
        file = self.root / "serve.yaml"
        file.write_text(yaml.safe_dump(document))
        words = [str(Path(sys.executable).with_name("serve")), "deploy", str(file)]
        env = os.environ | {"RAY_AUTH_MODE": "token"}
        subprocess.run([*words, "-a", f"http://127.0.0.1:{self.dashboard}"], check=True, capture_output=True, env=env)

    def model(self) -> dict[str, Any]:
        """What `GET /v1/model` says."""
        description: dict[str, Any] = httpx.get(f"{self.address}/v1/model", timeout=30).raise_for_status().json()
        return description

    def replicas(self) -> list[int]:
        """Process ids of the replicas."""
        from ray.util.state import list_actors

        where = f"http://127.0.0.1:{self.dashboard}"
        alive = list_actors(address=where, filters=[("state", "=", "ALIVE")], limit=1000)
        return sorted(actor.pid for actor in alive if "ServeReplica:llm4msr:ranker" in actor.class_name)


@contextlib.contextmanager
def endpoint(ingress: str, **args: Any) -> Iterator[Endpoint]:
    """An endpoint behind one of `INGRESSES` with these keys of [serve], up until the block ends."""
    os.environ |= INGRESSES[ingress]  # before Ray Serve is imported
    import ray
    from ray import serve

    os.environ |= {"RAY_worker_niceness": "0", "PYTHONPATH": os.getcwd(), "RAY_USAGE_STATS_ENABLED": "0"}
    os.environ |= proxy.ENVIRONMENT  # as cluster/docker/Dockerfile does
    with tempfile.TemporaryDirectory() as folder:
        running = Endpoint(Path(folder), args)
        os.environ["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{running.dashboard}"  # also where RAY_ADDRESS is set
        ray.init(
            num_cpus=8,
            include_dashboard=True,
            dashboard_port=running.dashboard,
            log_to_driver=False,
            logging_level="ERROR",
        )
        try:
            running.deploy(running.bundle)
            for _ in range(1200):
                with contextlib.suppress(httpx.HTTPError):
                    if running.model() and len(running.replicas()) == args.get("replicas", 1):
                        break
                time.sleep(0.1)
            yield running
        finally:
            serve.shutdown()
            ray.shutdown()
