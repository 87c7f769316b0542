"""Serving speed: one user x 100 candidates over HTTP, behind HAProxy and behind Ray Serve's own proxy.

(a) a Ray Serve endpoint that reads the request and returns a constant of the same size, (b) the plain backbone, (c) the
same with knowledge `both`, (c-match) with the full match as well, (d) FastAPI and the `Ranker` of (c) in one process
without Ray. The endpoints take turns, so that what else the machine does meets them alike; the load comes from a
process of its own on the same cores. CPU time is that of an endpoint's process, and of all that stands between it and
the client.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from benchmarks import _bundles, _load
from benchmarks._endpoint import INGRESSES
from benchmarks._machine import describe
from benchmarks.rank_speed import FULL
from llm4msr.bundle.messages import RankRequest
from llm4msr.bundle.ranker import Ranker
from tests.support.experiments import free_port

RESULT = Path(__file__).parent / "results" / "serve-load.md"
MODELS: dict[str, dict[str, Any]] = {
    "b": {"knowledge": "none"},
    "c": {"knowledge": "both"},
    "c-match": {"knowledge": "both", "match": FULL},
}
ENDPOINTS = {
    "a": "constant",
    "b": "plain backbone",
    "c": "knowledge `both`",
    "c-match": "the same with the full match",
    "d": "FastAPI without Ray, `both`",
}
FIGURES = {
    "rate": "requests/s",
    "p50": "p50 ms",
    "p99": "p99 ms",
    "replica": "its CPU ms",
    "ingress": "CPU ms before it",
}
Numbers = dict[str, dict[str, list[float]]]
"""Endpoint -> figure -> value of each turn."""


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="turns that each endpoint takes")
    parser.add_argument("--seconds", type=float, default=6.0, help="of load in each turn")
    parser.add_argument("--clients", type=int, default=32, help="that ask again at once, to find the saturating rate")
    parser.add_argument("--backbone", default="mmoe")
    parser.add_argument("--ingresses", nargs="+", choices=[*INGRESSES], default=[*INGRESSES])
    parser.add_argument("--output", type=Path, default=RESULT)
    return parser


def main(options: argparse.Namespace) -> None:
    found: dict[str, Any] = {}
    for ingress in options.ingresses:  # Ray reads which one it is when it is imported
        words = [sys.executable, "-m", "benchmarks.serve_load", "--one", *sys.argv[1:]]
        env = os.environ | INGRESSES[ingress]
        printed = subprocess.run(words, check=True, stdout=subprocess.PIPE, env=env).stdout
        found[ingress] = json.loads(printed.splitlines()[-1])
    text = report(options, found)
    options.output.write_text(text)
    print(text)


def one_ingress(options: argparse.Namespace) -> dict[str, Any]:
    """The figures behind the ingress that this process's environment chooses, and the rate of their latencies."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        bundles = {k: _bundles.make_bundle(root, k, backbone=options.backbone, **m) for k, m in MODELS.items()}
        bodies = _bundles.bodies(bundles["c"], root / "bodies")
        with endpoints(bundles, bodies) as urls:
            saturated = {name: _load.load(url, bodies, 3, clients=options.clients).rate() for name, url in urls.items()}
            half = saturated["c"] / 2
            return {"half": half, "numbers": measure(options, urls, bodies, half)}


def measure(options: argparse.Namespace, urls: dict[str, str], bodies: Path, half: float) -> Numbers:
    """Rates and CPU time with many clients, and latencies at the given rate, of each endpoint in turn."""
    results: Numbers = {name: {figure: [] for figure in FIGURES} for name in urls}
    for turn in range(options.rounds):
        for name, url in urls.items():
            before = cpu_seconds(name)
            load = _load.load(url, bodies, options.seconds, clients=options.clients)
            answers = int((load.status == 200).sum())
            results[name]["rate"].append(load.rate())
            for figure, seconds in cpu_seconds(name).items():
                results[name][figure].append((seconds - before[figure]) / answers * 1e3)
        for name, url in urls.items():
            steady = _load.load(url, bodies, options.seconds, rate=half)
            for q in (50, 99):
                results[name][f"p{q}"].append(steady.percentile(q))
        print(f"turn {turn + 1} of {options.rounds} done", file=sys.stderr)
    return results


def cpu_seconds(name: str) -> dict[str, float]:
    """Spent so far by an endpoint's process, and by what stands before it."""
    spent = {"replica": 0.0, "ingress": 0.0}
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            words = " ".join(process.cmdline())
            is_replica = f"ServeReplica:{name}:" in words or (name == "d" and "--bare" in words)
            is_ingress = name != "d" and ("haproxy" in process.name() or "ray::ProxyActor" in words)
            times = process.cpu_times()
            spent["replica"] += (times.user + times.system) * is_replica
            spent["ingress"] += (times.user + times.system) * is_ingress
    return spent


@contextlib.contextmanager
def endpoints(bundles: dict[str, str], bodies: Path) -> Iterator[dict[str, str]]:
    """Name -> URL of each endpoint, all up at once: who is not asked uses no CPU."""
    import ray
    from ray import serve

    from llm4msr import ray_session
    from llm4msr.config import ServeConfig
    from llm4msr.serve.app import application

    os.environ.setdefault("RAY_worker_niceness", "0")
    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    ray_session.connect()
    port, quiet = free_port(), {"log_level": "ERROR", "enable_access_log": False}
    serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config=quiet)
    config = ServeConfig(max_queued_requests=10_000, max_ongoing_requests=256, follow_s=0)
    answer = Ranker.load(bundles["c"]).rank(_requests(bodies)[0]).model_dump_json()
    apps = {"a": _constant(answer)} | {name: application(uri, config) for name, uri in bundles.items()}
    for name, app in apps.items():
        serve.run(app, name=name, route_prefix=f"/{name}", logging_config=quiet)
    urls = {name: f"http://127.0.0.1:{port}/{name}/v1/rank" for name in apps}
    other = free_port()
    words = [sys.executable, "-m", "benchmarks.serve_load", "--bare", bundles["c"], str(other)]
    bare = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    try:
        urls["d"] = f"http://127.0.0.1:{other}/v1/rank"
        for url in urls.values():
            _wait(url, bodies)
        yield urls
    finally:
        bare.terminate()
        serve.shutdown()
        ray.shutdown()


def _constant(answer: str) -> Any:
    from fastapi import FastAPI, Request
    from fastapi.responses import Response
    from ray import serve

    from llm4msr.serve.app import ONE_LOOP

    app, options = FastAPI(), {"num_cpus": 1, "runtime_env": {"env_vars": ONE_LOOP}}

    @serve.deployment(max_ongoing_requests=256, ray_actor_options=options)
    @serve.ingress(app)
    class Constant:
        @app.post("/v1/rank")
        async def rank(self, request: Request) -> Response:
            await request.body()
            return Response(answer, media_type="application/json")

    deployment: Any = Constant
    return deployment.bind()


def bare_server(uri: str, port: int) -> None:
    """(d): FastAPI, uvicorn and the ranker, one process, no Ray, no batching."""
    import torch
    import uvicorn
    from fastapi import FastAPI
    from fastapi.responses import Response

    torch.set_num_threads(1)
    app, ranker = FastAPI(), Ranker.load(uri)

    @app.post("/v1/rank")
    async def rank(body: RankRequest) -> Response:
        return Response(ranker.rank(body).model_dump_json(), media_type="application/json")

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error", access_log=False)


def report(options: argparse.Namespace, found: dict[str, Any]) -> str:
    lines = ["# Serving speed", ""]
    if "haproxy" in found:
        lines += ["| target, behind HAProxy | measured | held |", "| --- | --- | --- |"]
        for what, value, held in targets(found["haproxy"]["numbers"]):
            lines.append(f"| {what} | {value:.2f} | {'yes' if held else '**no**'} |")
        lines.append("")
    lines += [
        f"1 user x 100 candidates, {options.backbone} at the default sizes, one replica. Requests and CPU time of "
        f"each with {options.clients} clients that ask again at once; latencies at half of (c)'s rate in open loop "
        f"(Poisson), from when a request was due. Medians over {options.rounds} turns of {options.seconds:g} s each; "
        "ratios are medians of the turns' ratios.",
    ]
    for ingress, one in found.items():
        title = {"haproxy": "Behind HAProxy", "ray": "Behind Ray Serve's own proxy"}[ingress]
        lines += ["", f"## {title}", "", f"Latencies at {one['half']:.0f} arrivals a second.", ""]
        lines += [f"| endpoint | {' | '.join(FIGURES.values())} |", "| --- |" + " ---: |" * len(FIGURES)]
        for name, results in one["numbers"].items():
            middle = [float(np.median(results[figure])) for figure in FIGURES]
            cells = f"{middle[0]:.0f} | {middle[1]:.1f} | {middle[2]:.1f} | {middle[3]:.2f} | {middle[4]:.2f}"
            lines.append(f"| ({name}) {ENDPOINTS[name]} | {cells} |")
    flags = f"--rounds {options.rounds} --seconds {options.seconds:g}"
    flags += "" if len(found) == len(INGRESSES) else f" --ingresses {' '.join(found)}"
    lines += ["", f"Command: `python -m benchmarks.serve_load {flags}`. {describe()}"]
    return "\n".join(lines) + "\n"


def targets(numbers: Numbers) -> list[tuple[str, float, bool]]:
    """What is demanded, what was found, and whether that is enough."""

    def ratio(one: str, other: str, figure: str) -> float:
        return float(np.median(np.array(numbers[one][figure]) / np.array(numbers[other][figure])))

    rates = {name: ratio(name, "a", "rate") for name in ("c", "c-match")}
    found = [(f"({name}) at least 0.7 of (a)'s rate", value, value >= 0.7) for name, value in rates.items()]
    for name in ("c", "c-match"):
        value = ratio(name, "a", "replica")
        found.append((f"({name}) at most 2 times (a)'s CPU", value, value <= 2))
        value = ratio(name, "a", "p99")
        found.append((f"p99 of ({name}) at most 1.5 times (a)'s at half of (c)'s rate", value, value <= 1.5))
    value = ratio("c", "d", "rate")
    return [*found, ("(c) at least (d)'s rate", value, value >= 1)]


def _requests(bodies: Path) -> list[RankRequest]:
    return [RankRequest.model_validate_json(line) for line in bodies.read_bytes().splitlines()]


def _wait(url: str, bodies: Path) -> None:
    body = bodies.read_bytes().splitlines()[0]
    for _ in range(600):
        with contextlib.suppress(httpx.TransportError):
            if httpx.post(url, content=body, headers=_load.HEADERS, timeout=30).status_code == 200:
                return
        time.sleep(0.1)
    raise RuntimeError(f"{url} does not answer")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--bare"]:
        bare_server(sys.argv[2], int(sys.argv[3]))
    elif sys.argv[1:2] == ["--one"]:
        print(json.dumps(one_ingress(parser().parse_args(sys.argv[2:]))))
    else:
        main(parser().parse_args())
