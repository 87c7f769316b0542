"""From a click to rankings that know it: events of new users are told one by one, and each is ranked until it counts.

It counts from the last ranking on that did not know it. Steady rankings of others run beside; the log is on this disk.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import httpx
import numpy as np

from benchmarks import _bundles, _load
from benchmarks._endpoint import INGRESSES, Endpoint, endpoint
from benchmarks._machine import describe

AFTERWARDS = 5
RESULT = Path(__file__).parent / "results" / "serve-events.md"


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=200)
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rate", type=float, default=20.0, help="of the other rankings, a second")
    parser.add_argument("--ingress", choices=INGRESSES, default="haproxy", help="what stands before the replicas")
    parser.add_argument("--output", type=Path, default=RESULT)
    return parser


class Times(NamedTuple):
    """Seconds for each event."""

    told: list[float]
    """Until the batch of this one event was acknowledged."""
    counts: list[float]
    """From when it was sent until the last ranking had begun that did not know it; 0 where all did."""


def main(options: argparse.Namespace) -> None:
    lines = [
        "# How soon an event counts",
        "",
        "| replicas | events | acknowledged: p50 ms | p99 | counts: p50 ms | p99 | most |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for replicas in options.replicas:
        with (
            tempfile.TemporaryDirectory() as folder,
            endpoint(options.ingress, replicas=replicas, events=folder) as running,
        ):
            told, counts = (np.array(times) * 1e3 for times in measure(running, replicas, options))
        spans = (f"{np.percentile(of, q):.0f}" for of, q in ((told, 50), (told, 99), (counts, 50), (counts, 99)))
        lines.append(f"| {replicas} | {len(told)} | {' | '.join(spans)} | {counts.max():.0f} |")
    lines += [
        "",
        f"Each event is a batch of its own. It counts where {AFTERWARDS} rankings a replica in a row know it; given is "
        f"the time from the request that told it until the last ranking began that did not. {options.rate:g} other "
        "rankings of 100 candidates a second run beside.",
        "",
        f"Command: `python -m benchmarks.serve_events --events {options.events}`. {describe()}.",
    ]
    options.output.write_text("\n".join(lines) + "\n")
    print(options.output.read_text())


def measure(running: Endpoint, replicas: int, options: argparse.Namespace) -> Times:
    """Tell the events, with a model that matches what users took."""
    running.deploy(_bundles.make_bundle(running.root, "matching", knowledge="both", match=("cosines", "ids")))
    while running.model()["model_version"] != "matching" or not running.model()["reads_history"]:
        time.sleep(0.1)
    bodies = _bundles.bodies(running.bundle, running.root / "bodies")
    others = _load.start(f"{running.address}/v1/rank", bodies, 3600, rate=options.rate)
    times = Times([], [])
    try:
        with httpx.Client(base_url=running.address, timeout=60) as client:
            for number in range(options.events):
                _tell(client, f"new-{number}", AFTERWARDS * replicas, times)
    finally:
        others.terminate()
        others.wait()
    return times


def _tell(client: httpx.Client, user: str, afterwards: int, times: Times) -> None:
    event = {"event_id": user, "user_id": user, "item_id": "50", "scenario": "Drama", "time": time.time()}
    body = {"user_id": user, "scenario": "Drama", "items": ["1", "8", "25"]}
    begun = time.monotonic()
    client.post("/v1/events", json={"events": [event]}).raise_for_status()
    times.told.append(time.monotonic() - begun)
    known, last = 0, 0.0
    while known < afterwards:
        asked = time.monotonic()
        if client.post("/v1/rank", json=body).raise_for_status().json()["knowledge"] == "events":
            known += 1
        else:
            known, last = 0, asked - begun
    times.counts.append(last)


if __name__ == "__main__":
    main(parser().parse_args())
