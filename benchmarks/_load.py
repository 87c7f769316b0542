"""A load generator in a process of its own: open-loop arrivals at a rate, or a number of clients that each ask again.

Prints one JSON line: when each request began, how long it took, its status, and the versions that its answer names.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import numpy as np

HEADERS = {"content-type": "application/json"}
LATE, BROKEN = 0, 1
"""In place of a status: no answer within a minute; a connection that was closed before its answer."""


class Load(NamedTuple):
    """All arrays [requests], in the order in which they ended."""

    begun: np.ndarray
    """Seconds since the load began; of open-loop arrivals, when the request was due."""
    seconds: np.ndarray
    """From when it was due to the last byte of the answer."""
    status: np.ndarray
    """HTTP status, or `BROKEN` or `LATE`."""
    versions: list[list[str]]
    """Model and knowledge versions that one answer names; empty where they were not asked for."""

    def rate(self) -> float:
        """Good answers per second."""
        return float((self.status == 200).sum() / (self.begun + self.seconds).max())

    def percentile(self, q: float) -> float:
        """Milliseconds of the good answers."""
        return float(np.percentile(self.seconds[self.status == 200], q) * 1e3)


def load(url: str, bodies: Path, seconds: float, rate: float = 0.0, clients: int = 0, versions: bool = False) -> Load:
    """Run the load and wait for it."""
    return wait(start(url, bodies, seconds, rate, clients, versions))


def start(
    url: str, bodies: Path, seconds: float, rate: float = 0.0, clients: int = 0, versions: bool = False
) -> subprocess.Popen[str]:
    """Start the load; `wait` waits for it."""
    words = [sys.executable, "-m", "benchmarks._load", url, str(bodies), str(seconds)]
    words += ["--rate", str(rate)] if rate else ["--clients", str(clients)]
    return subprocess.Popen([*words, *["--versions"] * versions], stdout=subprocess.PIPE, text=True)


def wait(process: subprocess.Popen[str]) -> Load:
    """What the load measured."""
    out, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the load ended with code {process.returncode}")
    report = json.loads(out)
    arrays = [np.array(report[name]) for name in ("begun", "seconds", "status")]
    return Load(arrays[0], arrays[1], arrays[2], report["versions"])


async def _run(options: argparse.Namespace) -> dict[str, Any]:
    bodies = Path(options.bodies).read_bytes().splitlines()
    records: list[tuple[float, float, int, list[str]]] = []
    start = time.perf_counter()
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=60)) as session:

        async def ask(number: int, due: float) -> None:
            named: list[str] = []
            try:
                body = bodies[number % len(bodies)]
                async with session.post(options.url, data=body, headers=HEADERS) as answer:
                    content, status = await answer.read(), answer.status
                if options.versions and status == 200:
                    answer_json = json.loads(content)
                    parts = answer_json.get("responses", [answer_json])
                    named = sorted({f"{part['model_version']} {part['knowledge_version']}" for part in parts})
            except TimeoutError:
                status = LATE
            except aiohttp.ClientError:
                status = BROKEN
            records.append((due - start, time.perf_counter() - due, status, named))

        if options.rate:
            gaps = np.random.default_rng(0).exponential(1 / options.rate, int(options.rate * options.seconds))
            tasks = []
            for number, at in enumerate(start + np.cumsum(gaps)):
                await asyncio.sleep(max(at - time.perf_counter(), 0))
                tasks.append(asyncio.create_task(ask(number, float(at))))
            await asyncio.gather(*tasks)
        else:

            async def client(first: int) -> None:
                number = first
                while time.perf_counter() - start < options.seconds:
                    await ask(number, time.perf_counter())
                    number += options.clients

            await asyncio.gather(*map(client, range(options.clients)))
    names = ("begun", "seconds", "status", "versions")
    return {name: [record[i] for record in records] for i, name in enumerate(names)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("bodies", help="file with a JSON body a line")
    parser.add_argument("seconds", type=float)
    parser.add_argument("--rate", type=float, default=0.0)
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--versions", action="store_true")
    print(json.dumps(asyncio.run(_run(parser.parse_args()))))
