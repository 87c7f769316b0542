"""Faults under steady load, two replicas, every request counted, no retries: what a client sees when things go wrong.

A replica killed with SIGKILL; another bundle deployed (in place, and once more by replacing the replicas); users'
codes refreshed in place; clients that send half a body and wait. Then three times the load that one replica can take,
of long lists whose best ten are answered: on few cores what makes the load must cost less than what is loaded.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import _bundles, _load
from benchmarks._endpoint import INGRESSES, Endpoint, endpoint
from benchmarks._load import Load
from benchmarks._machine import describe
from llm4msr import storage
from llm4msr.bundle import files, id_table

RESULT = Path(__file__).parent / "results" / "serve-faults.md"


class Row(NamedTuple):
    """One fault: the share of requests that failed, and what else is demanded."""

    fault: str
    answers: str
    failed: str
    also: str
    held: bool


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of load for each fault")
    parser.add_argument("--share", type=float, default=0.4, help="of the saturating rate, while nothing overloads")
    parser.add_argument("--ingress", choices=INGRESSES, default="haproxy", help="what stands before the replicas")
    parser.add_argument("--output", type=Path, default=RESULT)
    return parser


def main(options: argparse.Namespace) -> None:
    with endpoint(options.ingress, replicas=2, follow_s=1.0, timeout_s=10.0) as running:
        bodies = _bundles.bodies(running.bundle, running.root / "bodies")
        saturated = _load.load(f"{running.address}/v1/rank", bodies, 8, clients=32).rate()
        rate = saturated * options.share
        rows = [
            replica_killed(running, bodies, rate, options.seconds),
            bundle_update(running, bodies, rate, options.seconds, "second", True),
            bundle_update(running, bodies, rate, options.seconds, "third", False),
            code_refresh(running, bodies, rate, options.seconds),
            half_a_body(running, bodies, rate),
        ]
    with endpoint(options.ingress, follow_s=0) as running:
        rows.append(overload(running, options.seconds))
    flags = "" if options.seconds == 60 else f" --seconds {options.seconds:g}"
    lines = ["# Faults under load", "", "| fault | answers | failed | also | held |", "| --- | --- | --- | --- | --- |"]
    lines += [f"| {r.fault} | {r.answers} | {r.failed} | {r.also} | {'yes' if r.held else '**no**'} |" for r in rows]
    lines += [
        "",
        f"1 user x 100 candidates, open-loop Poisson arrivals at {rate:.0f} a second ({options.share:.0%} of the "
        f"saturating {saturated:.0f}), {options.seconds:g} s for each fault, which comes after a third of it; "
        "no retries. The overload is of one replica, with 1,000 candidates a request and ten of them answered.",
        "",
        f"Command: `python -m benchmarks.serve_faults --ingress {options.ingress}{flags}`. {describe()}.",
    ]
    options.output.write_text("\n".join(lines) + "\n")
    print(options.output.read_text())


def under_load(
    running: Endpoint, bodies: Path, rate: float, seconds: float, fault: Callable[[], Any], path: str
) -> Load:
    """The load, and the fault after a third of it."""
    process = _load.start(f"{running.address}{path}", bodies, seconds, rate=rate, versions=True)
    time.sleep(seconds / 3)
    fault()
    return _load.wait(process)


def replica_killed(running: Endpoint, bodies: Path, rate: float, seconds: float) -> Row:
    victim = running.replicas()[0]
    gone: list[float] = []

    def kill() -> None:
        os.kill(victim, signal.SIGKILL)
        begun = time.monotonic()
        while len(set(running.replicas()) - {victim}) < 2 and time.monotonic() - begun < 120:
            time.sleep(0.2)
        gone.append(time.monotonic() - begun)

    load = under_load(running, bodies, rate, seconds, kill, "/v1/rank")
    failed = _failed(load)
    also = f"two replicas again after {gone[0]:.0f} s"
    return Row("replica killed", _counts(load), _share(failed, load), also, failed <= 1e-3 * _n(load) and gone[0] < 30)


def bundle_update(running: Endpoint, bodies: Path, rate: float, seconds: float, name: str, in_place: bool) -> Row:
    other = _bundles.make_bundle(running.root, name, seed=len(name), knowledge="both")
    pids = running.replicas()
    load = under_load(running, bodies, rate, seconds, lambda: running.deploy(other, in_place), "/v1/rank")
    running.bundle = running.bundle if in_place else other
    now = running.replicas()
    versions = [v.split()[0] for named in load.versions for v in named]
    also = f"{versions.count(name)} answers of the new bundle; replicas {'kept' if now == pids else 'replaced'}"
    how = "in place" if in_place else "replicas replaced"
    held = _failed(load) == 0 and name in versions and (now == pids) == in_place
    return Row(f"bundle update, {how}", _counts(load), _share(_failed(load), load), also, held)


def code_refresh(running: Endpoint, bodies: Path, rate: float, seconds: float) -> Row:
    """New codes again and again, asked for in batches of two lists: an answer may name one version only."""
    model = running.model()["model_version"]
    served = storage.path(running.root / "export" / model)
    pairs = running.root / "pairs"
    lines = bodies.read_text().splitlines()
    pairs.write_text("\n".join(f'{{"requests": [{a}, {b}]}}' for a, b in pairwise(lines)))
    table = pa_codes(served)

    def refresh() -> None:
        for turn in range(5):
            folder = served.parent.parent / "codes" / model / f"turn-{turn}"

            def build(at: Any) -> storage.StageResult:
                rows = id_table.write(at / files.CODES, [table], files.code_schema(served))
                return storage.StageResult(files={files.CODES: rows}, rows=rows)

            storage.publish(folder, "refresh", 1, {}, {}, build)
            storage.write_bytes(folder.parent / "latest.json", json.dumps({"codes": folder.name}).encode())
            time.sleep(seconds / 12)

    load = under_load(running, pairs, rate / 2, seconds, refresh, "/v1/rank:batch")
    mixed = sum(len(named) > 1 for named in load.versions)
    versions = {v for named in load.versions for v in named}
    also = f"{mixed} answers of mixed versions; {len(versions)} versions seen"
    held = _failed(load) == 0 and mixed == 0 and len(versions) >= 5
    return Row("codes refreshed 5 times", _counts(load), _share(_failed(load), load), also, held)


def pa_codes(served: Any) -> Any:
    import pyarrow as pa

    return pa.ipc.open_file(str(served / files.CODES)).read_all()


def half_a_body(running: Endpoint, bodies: Path, rate: float) -> Row:
    """Twenty clients that send half a body and wait, while others ask."""
    answered: list[bytes] = []

    def attack() -> None:
        head = b"POST /v1/rank HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        head += b"content-length: 100\r\n\r\n{"
        halves = [socket.create_connection(("127.0.0.1", running.port), timeout=30) for _ in range(20)]
        for half in halves:
            half.sendall(head)
        for half in halves:
            answered.append(half.recv(4096)[:12])
            half.close()

    load = under_load(running, bodies, rate, 30, attack, "/v1/rank")
    told = Counter(answer.decode(errors="replace") for answer in answered)
    also = ", ".join(f"{n} of the 20 got `{answer or 'closed'}`" for answer, n in told.items())
    held = _failed(load) == 0 and len(answered) == 20 and all(answer.endswith(b"408") for answer in answered)
    return Row("half a body, 20 clients", _counts(load), _share(_failed(load), load), also, held)


def overload(running: Endpoint, seconds: float) -> Row:
    url, pids = f"{running.address}/v1/rank", running.replicas()
    bodies = _bundles.bodies(running.bundle, running.root / "long", candidates=1000, top_k=10)
    saturated = _load.load(url, bodies, 8, clients=32).rate()
    before = _load.load(url, bodies, 10, rate=saturated / 4)
    load = _load.load(url, bodies, seconds, rate=3 * saturated)
    time.sleep(10)
    after = _load.load(url, bodies, 10, rate=saturated / 4)
    bad = int(((load.status >= 500) | (load.status < 200)).sum())
    same = running.replicas() == pids
    p99 = [load.percentile(99) for load in (before, after)]
    also = (
        f"{'no process lost' if same else 'a process was lost'}; {load.rate():.0f} good answers a second, "
        f"{load.rate() / saturated:.0%} of the saturating {saturated:.0f}, with a median of {load.percentile(50):.0f} "
        f"ms; p99 at a quarter of saturation {p99[0]:.0f} ms before, {p99[1]:.0f} ms 10 s after"
    )
    held = (
        load.rate() >= 0.6 * saturated
        and load.percentile(50) <= 1_000
        and not (load.status >= 500).any()
        and same
        and 429 in load.status
        and _failed(after) == 0
        and p99[1] < max(2 * p99[0], 50)
    )
    return Row("3 times overload", _counts(load), _share(bad, load), also, bool(held))


def _n(load: Load) -> int:
    return len(load.status)


def _failed(load: Load) -> int:
    return int((load.status != 200).sum())


def _share(failed: int, load: Load) -> str:
    return f"{failed} ({failed / _n(load):.2%})"


def _counts(load: Load) -> str:
    names = {_load.LATE: "none within 60 s", _load.BROKEN: "connection closed"}
    statuses, counts = np.unique(load.status, return_counts=True)
    return ", ".join(f"{n} x {names.get(status, status)}" for status, n in zip(statuses, counts, strict=True))


if __name__ == "__main__":
    if not shutil.which("serve", path=str(Path(sys.executable).parent)):
        raise SystemExit("the command `serve` of ray[serve] is not beside this Python")
    main(parser().parse_args())
