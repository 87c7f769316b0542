"""Does a training take the workers that there are? One run that starts with four, loses two and gets two again.

    python -m benchmarks.train_elastic

A Ray cluster of real processes on this machine: a head without CPUs and two nodes of two. The run has
`train.workers = [2, 4]`. One node is killed with SIGKILL; once two workers have trained on, another node joins.
Everything that waits (for Ray to see that a node is dead, for room, for the next look at the cluster) has its default
span. The same config then trains undisturbed on two workers. Writes benchmarks/results/train-elastic.md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112

from benchmarks._machine import describe
from benchmarks._stage_process import start_stage
from llm4msr import Config, load
from llm4msr.pipeline import prepare, trained
from llm4msr.storage import StageOutput

RESULT = Path(__file__).parent / "results" / "train-elastic.md"
CONFIG = Path(__file__).parent / "configs" / "ml-100k.toml"
Event = tuple[float, str]


def main() -> None:
    options = parser().parse_args()
    with tempfile.TemporaryDirectory() as folder:
        events, disturbed = elastic(config_of(Path(folder) / "elastic", options, "[2,4]"))
        calm = undisturbed(config_of(Path(folder) / "calm", options, "2"))
        RESULT.write_text(report(events, disturbed, calm, options))
    print(RESULT.read_text())


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=24, help="enough for the run to outlive what is done to it")
    parser.add_argument("--every", type=int, default=40, help="batches between checkpoints; an epoch has about 80")
    return parser


def config_of(root: Path, options: argparse.Namespace, workers: str) -> Config:
    """MovieLens-100K without knowledge, prepared; it trains all its epochs."""
    changes = {
        "storage": root,
        "model.knowledge": "none",
        "train.workers": workers,
        "train.epochs": options.epochs,
        "train.patience": options.epochs,
        "train.checkpoint_batches": options.every,
    }
    config = load(str(CONFIG), [f"{key}={value}" for key, value in changes.items()])
    prepare(config)
    return config


def elastic(config: Config) -> tuple[list[Event], StageOutput]:
    """The run with its node killed and replaced: what happened when, in seconds, and what it left."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    events: list[Event] = []
    begun = time.monotonic()

    def note(what: str) -> None:
        events.append((time.monotonic() - begun, what))
        print(f"{events[-1][0]:6.1f} s  {what}", file=sys.stderr, flush=True)

    def until(workers: list[int], epochs: int) -> None:
        """Wait for starts with so many workers and as many more epochs since the last of them."""
        wait(driver, lambda: reached(config, workers, epochs))
        note(f"trains on {workers[-1]} workers, {where(position(config))}")

    try:
        _, lost = (cluster.add_node(num_cpus=2) for _ in range(2))
        driver = start_stage("train", config, Path(config.root), {"RAY_ADDRESS": cluster.address})
        until([4], 2)
        cluster.remove_node(lost, allow_graceful=False)
        note(f"a node with two workers killed, the last checkpoint was {where(position(config))}")
        until([4, 2], 2)
        cluster.add_node(num_cpus=2)
        note(f"another node joins, {where(position(config))}")
        until([4, 2, 4], 1)
        code = driver.wait()
        note(f"the run ends with exit code {code}")
    finally:
        cluster.shutdown()
    return events, trained(config).output


def undisturbed(config: Config) -> StageOutput:
    """The same on two workers of a Ray of its own."""
    assert start_stage("train", config, Path(config.root), {"RAY_ADDRESS": "local"}).wait() == 0
    return trained(config).output


def wait(driver: subprocess.Popen[bytes], condition: Callable[[], bool]) -> None:
    """Poll until it holds; the run must not end before."""
    while not condition():
        if driver.poll() is not None:
            raise SystemExit(f"the run ended with exit code {driver.returncode} too soon; give it more --epochs")
        time.sleep(0.2)


def position(config: Config) -> dict[str, Any]:
    """The newest checkpoint's progress; empty where there is none."""
    for file in sorted(Path(config.root).glob("train/*/checkpoints/epoch-*/progress.json"), reverse=True):
        try:
            return dict(json.loads(file.read_text()))
        except (OSError, ValueError):  # just being written, or deleted for a newer one
            continue
    return {}


def reached(config: Config, workers: list[int], epochs: int) -> bool:
    """Whether the run has had starts with these numbers of workers (repetitions aside) and trained on since."""
    at = position(config)
    starts = at.get("starts", [])
    return worlds(starts) == workers and at["epoch"] >= starts[-1]["epoch"] + epochs


def worlds(starts: list[dict[str, int]]) -> list[int]:
    """Numbers of workers, one after the other, where they changed."""
    sizes = [start["workers"] for start in starts]
    return [size for size, before in zip(sizes, [0, *sizes], strict=False) if size != before]


def where(at: dict[str, Any]) -> str:
    """A position as words."""
    return f"epoch {at['epoch'] + 1} batch {at['batch']}"


def report(events: list[Event], ours: StageOutput, calm: StageOutput, options: argparse.Namespace) -> str:
    """The page of results."""
    lines = [f"| {seconds:.0f} | {what} |" for seconds, what in events]
    info, other = ours.manifest.info, calm.manifest.info
    starts = [f"| {s['epoch'] + 1} | {s['batch']} | {s['workers']} |" for s in info["starts"]]
    aucs = [run["metrics"]["overall"]["auc"] for run in (info, other)]
    return f"""# Training with as many workers as there are

`train.workers = [2, 4]` on a head and two nodes of two CPUs, MovieLens-100K without knowledge, global batch 1024, a
checkpoint every {options.every} batches, {options.epochs} epochs.

| seconds | what happened |
| ---: | --- |
{chr(10).join(lines)}

Most of the time to two workers is one wait: Ray counts its nodes every 20 s, and until it misses the dead one it asks
for four workers again, for a minute (`RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S` shortens that).

What the manifest says of its starts; an epoch has about 80 batches, and all batches before a start were trained once:

| epoch | batches of it done before | workers |
| ---: | ---: | ---: |
{chr(10).join(starts)}

It trained all {info["epochs"]} epochs. Best validation AUC: {aucs[0]:.4f}; undisturbed, with two workers:
{aucs[1]:.4f}.

`python -m benchmarks.train_elastic --epochs {options.epochs} --every {options.every}` on {describe(("ray", "torch"))}.
"""


if __name__ == "__main__":
    main()
