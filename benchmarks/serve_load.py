"""Serving speed: one user x 100 candidates over HTTP, beside an endpoint that does nothing and a server without Ray.

(a) a Ray Serve endpoint that reads the request and returns a constant of the same size, (b) the plain backbone,
(c) the same with knowledge `both`, (d) FastAPI and the same `Ranker` in one process without Ray, (e) with `--peer`,
Scenario-Wise-Rec's model scoring the same number of candidates in process. The endpoints take turns, so that what
else the machine does meets them alike; the load comes from a process of its own on the same cores.
"""

import argparse
import contextlib
import gc
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

from benchmarks import _bundles, _load
from benchmarks._machine import describe
from llm4msr.bundle.messages import RankRequest
from llm4msr.bundle.ranker import Ranker
from tests.support.experiments import free_port

RESULT = Path(__file__).parent / "results" / "serve-load.md"
Numbers = dict[str, list[float]]


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="turns that each endpoint takes")
    parser.add_argument("--seconds", type=float, default=6.0, help="of load in each turn")
    parser.add_argument("--clients", type=int, default=32, help="that ask again at once, to find the saturating rate")
    parser.add_argument("--backbone", default="mmoe")
    parser.add_argument("--haproxy", action="store_true", help="Ray Serve behind HAProxy instead of its own proxy")
    parser.add_argument("--peer", type=Path, help="a checkout of Scenario-Wise-Rec")
    parser.add_argument(
        "--peer-python", type=Path, default=Path(sys.executable), help="an environment with its packages"
    )
    parser.add_argument("--ways", action="store_true", help="score with torch.compile and bfloat16 too (minutes)")
    parser.add_argument("--output", type=Path, default=RESULT)
    return parser


def main(options: argparse.Namespace) -> None:
    if options.haproxy:
        os.environ["RAY_SERVE_ENABLE_HA_PROXY"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        bundles = {k: _bundles.make_bundle(root, k, backbone=options.backbone, knowledge=k) for k in ("none", "both")}
        alone = {(k, n): scoring_alone(uri, root, n) for k, uri in bundles.items() for n in (100, 1000)}
        peer = scored_by_peer(options) if options.peer else ""
        ways = other_ways(bundles["both"], root) if options.ways else []
        bodies = _bundles.bodies(bundles["both"], root / "bodies")
        with endpoints(bundles, bodies, root) as urls:
            saturated = {name: _load.load(url, bodies, 3, clients=options.clients).rate() for name, url in urls.items()}
            half = saturated["c"] / 2
            numbers = measure(options, urls, bodies, half)
        text = report(options, numbers, alone, half, peer, ways)
    options.output.write_text(text)
    print(text)


def measure(options: argparse.Namespace, urls: dict[str, str], bodies: Path, half: float) -> dict[str, Numbers]:
    """Rates with many clients, and latencies at the given rate, of each endpoint in turn."""
    results: dict[str, Numbers] = {name: {"rate": [], "p50": [], "p99": []} for name in urls}
    for turn in range(options.rounds):
        for name, url in urls.items():
            results[name]["rate"].append(_load.load(url, bodies, options.seconds, clients=options.clients).rate())
        for name, url in urls.items():
            steady = _load.load(url, bodies, options.seconds, rate=half)
            for q in (50, 99):
                results[name][f"p{q}"].append(steady.percentile(q))
        print(f"turn {turn + 1} of {options.rounds} done", file=sys.stderr)
    return results


@contextlib.contextmanager
def endpoints(bundles: dict[str, str], bodies: Path, root: Path) -> Iterator[dict[str, str]]:
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
    answer = Ranker.load(bundles["both"]).rank(_requests(bodies)[0]).model_dump_json()
    apps = {
        "a": _constant(answer),
        "b": application(bundles["none"], config),
        "c": application(bundles["both"], config),
    }
    for name, app in apps.items():
        serve.run(app, name=name, route_prefix=f"/{name}", logging_config=quiet)
    urls = {name: f"http://127.0.0.1:{port}/{name}/v1/rank" for name in apps}
    other = free_port()
    words = [sys.executable, "-m", "benchmarks.serve_load", "--bare", bundles["both"], str(other)]
    bare = subprocess.Popen(words)
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

    app = FastAPI()

    @serve.deployment(max_ongoing_requests=256, ray_actor_options={"num_cpus": 1})
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


def scoring_alone(uri: str, root: Path, candidates: int) -> dict[int, float]:
    """Percentile -> milliseconds of `Ranker.rank` on one thread, no HTTP."""
    import torch

    torch.set_num_threads(1)
    ranker = Ranker.load(uri)
    requests = _requests(_bundles.bodies(uri, root / f"{candidates}", candidates))
    gc.collect()
    gc.freeze()  # as a replica does
    taken = []
    for turn in range(3):
        for request in requests:
            begun = time.perf_counter()
            ranker.rank(request)
            if turn:
                taken.append((time.perf_counter() - begun) * 1e3)
    return {q: float(np.percentile(taken, q)) for q in (50, 99)}


def other_ways(uri: str, root: Path) -> list[tuple[str, float, dict[int, float]]]:
    """Name, seconds to get ready, and candidates -> median milliseconds of the net alone, in turns with each other."""
    import torch

    torch.set_num_threads(1)
    ranker, fast = Ranker.load(uri), Ranker.load(uri)
    fast.net.compile(dynamic=True)
    files = {n: _bundles.bodies(uri, root / f"ways-{n}", n, 100) for n in (100, 1000)}
    requests = {n: _requests(file) for n, file in files.items()}
    begun = time.perf_counter()
    for ones in requests.values():
        for one in ones[:3]:
            fast.rank(one)
    ready = time.perf_counter() - begun
    taken: dict[tuple[str, int], list[float]] = {}
    for n, ones in requests.items():
        for one in ones:
            for way, used in (("float32", ranker), ("torch.compile", fast), ("bfloat16", ranker)):
                with torch.autocast("cpu", torch.bfloat16, enabled=way == "bfloat16"):
                    begun = time.perf_counter()
                    used.rank(one)
                    taken.setdefault((way, n), []).append((time.perf_counter() - begun) * 1e3)
    seconds = {"torch.compile": ready}
    return [
        (way, seconds.get(way, 0.0), {n: float(np.median(taken[way, n])) for n in requests})
        for way in ("float32", "torch.compile", "bfloat16")
    ]


def scored_by_peer(options: argparse.Namespace) -> str:
    """(e): one line about the peer's model."""
    script = Path(__file__).with_name("_peer_score.py")
    words = [str(options.peer_python), str(script), str(options.peer)]
    results = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    return "; ".join(f"{n} candidates p50 {p50:.2f} ms, p99 {p99:.2f} ms" for n, p50, p99 in results)


def report(
    options: argparse.Namespace,
    numbers: dict[str, Numbers],
    alone: dict[tuple[str, int], dict[int, float]],
    half: float,
    peer: str,
    ways: list[tuple[str, float, dict[int, float]]],
) -> str:
    names = {"a": "constant", "b": "plain backbone", "c": "knowledge `both`", "d": "FastAPI without Ray, `both`"}
    middle = {name: {k: float(np.median(v)) for k, v in results.items()} for name, results in numbers.items()}
    share = {
        f"c/{other}": float(np.median(np.array(numbers["c"]["rate"]) / np.array(numbers[other]["rate"])))
        for other in "abd"
    }
    slower = float(np.median(np.array(numbers["c"]["p99"]) / np.array(numbers["a"]["p99"])))
    worst = max(alone["both", 100][99], 0), max(alone["both", 1000][99], 0)
    targets = [
        ("(c) at least 0.7 of (a)'s rate", share["c/a"], share["c/a"] >= 0.7),
        ("(c) at least 0.95 of (b)'s rate", share["c/b"], share["c/b"] >= 0.95),
        ("p99 of (c) at most 1.5 times (a)'s at half of (c)'s saturating rate", slower, slower <= 1.5),
        ("scoring 100 candidates, p99 under 2 ms on one core", worst[0], worst[0] < 2),
        ("scoring 1,000 candidates, p99 under 8 ms on one core", worst[1], worst[1] < 8),
    ]
    lines = ["# Serving speed", "", "| target | measured | held |", "| --- | --- | --- |"]
    lines += [f"| {what} | {value:.2f} | {'yes' if held else '**no**'} |" for what, value, held in targets]
    proxy = "HAProxy" if options.haproxy else "Ray Serve's own proxy"
    lines += [
        "",
        "## Over HTTP",
        "",
        f"1 user x 100 candidates, {options.backbone} at the default sizes, {proxy}, one replica. Requests per second "
        f"with {options.clients} clients that ask again at once; latencies at {half:.0f} arrivals a second (open loop, "
        f"Poisson), from when a request was due. Medians over {options.rounds} turns of {options.seconds:g} s each; "
        "ratios are medians of the turns' ratios.",
        "",
        "| endpoint | requests/s | p50 ms | p99 ms |",
        "| --- | --- | --- | --- |",
        *(f"| ({n}) {names[n]} | {m['rate']:.0f} | {m['p50']:.1f} | {m['p99']:.1f} |" for n, m in middle.items()),
        "",
        ", ".join(f"{pair} {value:.2f}" for pair, value in share.items()) + ".",
        "",
        "## Scoring alone",
        "",
        "`Ranker.rank` in Python on one thread: ids looked up, scored, sorted, answer built.",
        "",
        "| model | candidates | p50 ms | p99 ms |",
        "| --- | --- | --- | --- |",
        *(f"| {k} | {n} | {m[50]:.2f} | {m[99]:.2f} |" for (k, n), m in alone.items()),
        "",
    ]
    if peer:
        lines += [f"(e) Scenario-Wise-Rec's MMoE, scoring alone, tensors given: {peer}.", ""]
    if ways:
        lines += [
            "Other ways to run the same net, `Ranker.rank` in turns, medians:",
            "",
            "| way | seconds to get ready | 100 candidates, ms | 1,000 candidates, ms |",
            "| --- | --- | --- | --- |",
            *(f"| {way} | {ready:.0f} | {m[100]:.2f} | {m[1000]:.2f} |" for way, ready, m in ways),
            "",
        ]
    flags = " --ways" * options.ways + " --haproxy" * options.haproxy + " --peer PATH" * bool(options.peer)
    lines.append(f"Command: `python -m benchmarks.serve_load{flags}`. {describe()}")
    return "\n".join(lines) + "\n"


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
    else:
        main(parser().parse_args())
