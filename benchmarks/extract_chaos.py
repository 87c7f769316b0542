"""Is anything lost when machines die? Extractions on a Ray cluster of several nodes, each killed at a random moment.

    python -m benchmarks.extract_chaos --runs 20

In turn the driver, an actor or a node is killed with SIGKILL, every second run with its storage on S3 behind a proxy
that answers 503, waits, and cuts connections. Then the same command is given again until it ends well (after the death
of an actor or a node it often needs no second start). The store must hold the same ids, each once, and the same
vectors as one that nobody disturbed; and of the shards that were finished when the killing began none may be written
again. Writes benchmarks/results/extract-chaos.md.
"""

import argparse
import contextlib
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112

import psutil

from benchmarks._machine import describe
from benchmarks._stage_process import start_stage
from benchmarks._store import compare, shards, users
from benchmarks.extract_scale import make_prepared
from llm4msr.config import Config
from tests.support.experiments import tiny_llama
from tests.support.fault_proxy import FaultProxy
from tests.support.s3_server import s3_server

RESULT = Path(__file__).parent / "results" / "extract-chaos.md"
VICTIMS = ("driver", "actor", "node")
NODES, ACTORS, STARTS = 3, 2, 8
BUCKET = "chaos"
Row = dict[str, Any]


def main() -> None:
    options = parser().parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        variables = stack.enter_context(s3_server(Path(folder) / "moto.log", BUCKET))
        proxy = stack.enter_context(FaultProxy(variables["AWS_ENDPOINT_URL"], share=0.05))
        os.environ |= variables | {"AWS_ENDPOINT_URL": proxy.endpoint}  # the cluster's nodes inherit them
        rows = run(Path(folder), options)
        faults = sum(count for fault, count in proxy.faults.items() if fault)
    RESULT.write_text(report(rows, faults, options))
    print(RESULT.read_text())


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--users", type=int, default=8000)
    parser.add_argument("--shard", type=int, default=100, help="rows per shard")
    parser.add_argument("--seed", type=int, default=1)
    return parser


def run(folder: Path, options: argparse.Namespace) -> list[Row]:
    """One undisturbed extraction, then the others."""
    from ray.cluster_utils import Cluster

    model = tiny_llama(folder / "llama")
    (folder / "template.txt").write_text("Likes: $history")
    draw = random.Random(options.seed)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        for _ in range(NODES - 1):
            cluster.add_node(num_cpus=1)
        calm = _config(folder, f"{folder}/calm", model, options)
        begun = time.monotonic()
        assert _start(calm, folder, cluster).wait() == 0
        span = time.monotonic() - begun
        expected = users(calm)
        rows = []
        for number in range(options.runs):
            where = f"s3://{BUCKET}/run{number}" if number % 2 else f"{folder}/run{number}"
            config = _config(folder, where, model, options)
            rows.append(
                _disturbed(config, folder, cluster, VICTIMS[number % 3], draw.random())
                | compare(users(config), expected)
            )
            print({"run": number, "calm": round(span)} | rows[-1], file=sys.stderr, flush=True)
    finally:
        cluster.shutdown()
    return rows


def _config(folder: Path, where: str, model: Path, options: argparse.Namespace) -> Config:
    (folder / "table").mkdir(exist_ok=True)
    (folder / "table" / "interactions.csv").write_text("made up")
    document = {
        "name": "chaos",
        "storage": where,
        "source": {"kind": "table", "path": str(folder / "table"), "table": {"interactions": "interactions.csv"}},
        "extract": {
            "reads": "users",
            "engine": "transformers",
            "model": str(model),
            "answers": "none",
            "actors": ACTORS,
            "rows_per_shard": options.shard,
            "user_template": str(folder / "template.txt"),
        },
    }
    config = Config.model_validate(document)
    make_prepared(config, options.users, changed=False)
    return config


def _start(config: Config, folder: Path, cluster: Any) -> subprocess.Popen[bytes]:
    """The driver: `extract(config)` in a process of its own, on the cluster."""
    with (folder / "driver.log").open("ab") as log:
        return start_stage("extract", config, folder, {"RAY_ADDRESS": cluster.address}, stdout=log, stderr=log)


def _disturbed(config: Config, folder: Path, cluster: Any, victim: str, moment: float) -> Row:
    """Kill when a share `moment` of the shards is finished, then go on to the end."""
    driver = _start(config, folder, cluster)
    total = -(-config_users(config) // int(config.extract.rows_per_shard))
    while driver.poll() is None and len(shards(config)) < max(1, moment * 0.9 * total):
        time.sleep(0.05)
    killed = driver.poll() is None
    if killed:
        {"driver": driver.kill, "actor": _kill_actor, "node": lambda: _kill_node(cluster)}[victim]()
    finished = shards(config)
    starts = 1
    while driver.wait() != 0 and starts < STARTS:
        starts += 1
        driver = _start(config, folder, cluster)
    if driver.returncode:
        raise SystemExit(f"{config.root}: not finished after {STARTS} starts\n{_log(folder)[-5000:]}")
    if len(cluster.list_all_nodes()) < NODES:
        cluster.add_node(num_cpus=1)
    after = shards(config)
    again = sum(after.get(name) != stamp for name, stamp in finished.items())
    where = {"where": "S3" if config.root.startswith("s3:") else "disk", "victim": victim + ", too late" * (not killed)}
    return where | {"finished": len(finished), "shards": len(after), "again": again, "starts": starts}


def _log(folder: Path) -> str:
    """What the drivers said."""
    return (folder / "driver.log").read_text(errors="replace")


def config_users(config: Config) -> int:
    """Users of the made-up data."""
    from llm4msr.pipeline import prepared

    return int(prepared(config).manifest.info["histories"])


def _kill_actor() -> None:
    """One that the nodes of this process's own cluster started."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any("AskLLM" in word for word in process.cmdline()):
                process.kill()
                return
    print("no actor found", file=sys.stderr)


def _kill_node(cluster: Any) -> None:
    cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)


def report(rows: list[Row], faults: int, options: argparse.Namespace) -> str:
    """The page of results."""
    heads = [
        "storage",
        "killed",
        "shards finished then",
        "shards at the end",
        "of the finished written again",
        "starts",
    ]
    heads += ["same ids, none twice", "least cosine"]
    flags = " ".join(f"--{name} {getattr(options, name)}" for name in ("runs", "users", "shard", "seed"))
    lines = [
        f"| {' | '.join(str(row[name]) for name in ('where', 'victim', 'finished', 'shards', 'again', 'starts'))} | "
        f"{'yes' if row['same'] else '**no**'} | {row['cosine']:.6f} |"
        for row in rows
    ]
    return f"""# Extraction: killed and continued

{options.users} made-up users in shards of {options.shard}, a random tiny Llama, {ACTORS} actors on {NODES} Ray nodes of
one CPU each. The proxy in front of S3 spoiled {faults} requests.

| {" | ".join(heads)} |
| --- | --- |{" ---: |" * 6}
{chr(10).join(lines)}

`python -m benchmarks.extract_chaos {flags}` on
{describe(("ray", "torch", "s3fs"))}.
"""


if __name__ == "__main__":
    main()
