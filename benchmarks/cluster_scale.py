"""Is a large run on a cluster the undisturbed run, though a worker dies in every stage? Made-up rows, on S3.

    python -m benchmarks.cluster_scale --rows 1000000
    python -m benchmarks.cluster_scale --rows 10000000 --read 100000

`prepare` to `export` by `ray job submit` on a head and three workers of one CPU each, storage on a local S3 server: a
tiny random Llama reads about all users, ten rows each, or about the most active. A worker is killed with SIGKILL in
`prepare`, `extract`, `train` and `evaluate`, and another joins. In the end the prepared tables must be the undisturbed
run's to the byte, the vectors and AUC the same, and what was written twice no more than what was in flight. Writes
benchmarks/results/cluster-scale.md; exits with 1 and says what differs.
"""

import argparse
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import _skewed_rows, _store
from benchmarks._cluster import Job, Node, RayCluster
from benchmarks._machine import describe
from benchmarks.cluster_run import BUCKET, LEAST_COSINE, NOISE, SAME, WORKERS, Story, calm
from llm4msr import load, storage
from llm4msr.config import Config
from llm4msr.pipeline import evaluate, prepared
from tests.support.experiments import tiny_llama
from tests.support.s3_server import s3_server

RESULT = Path(__file__).parent / "results" / "cluster-scale.md"
CONFIG = """\
name = "scale"
storage = "s3://set-by-the-benchmark"

[source]
kind = "table"
path = "{folder}/source"

{table}
[split]
partitions = {partitions}

[extract]
engine = "transformers"
model = "{folder}/llama"
reads = "users"
answers = "none"
max_users = {read}
rows_per_shard = 1024
actors = 2

[train]
workers = 2
batch_size = 16384
epochs = 2
checkpoint_batches = {checkpoint}

[evaluate]
variants = ["none"]
"""
VECTORS = r"/(vectors/users-[\w-]+\.parquet)"
WRITTEN = {
    "tables of partitions": r"/prepare/\w+/((?:train|valid|test|users|seen|events|histories)/p=\d+\.parquet)",
    "shards of vectors": VECTORS,
    "predictions": r"/evaluate/\w+/(predictions/p=\d+\.parquet)",
}
"""What is written, and the names of such files in the S3 server's log."""


def main() -> None:
    options = parser().parse_args()
    story = Story()
    with tempfile.TemporaryDirectory(dir=options.work) as name, s3_server(Path(name) / "moto.log", BUCKET) as variables:
        folder = Path(name)
        os.environ |= variables
        file = write_config(folder, options)
        here, there = (load(str(file), [f"storage={at}"]) for at in (folder / "calm", f"s3://{BUCKET}/run"))
        calm(_entry(file, here), folder, story)
        with RayCluster(folder, WORKERS) as cluster:
            story.tell(f"a cluster of a head and {WORKERS} workers is up")
            disturbed(cluster, file, there, options.partitions, story)
        results, wrong = judge(here, there, folder / "moto.log")
        RESULT.write_text(report(story, results, wrong, options))
    print(RESULT.read_text())
    if wrong:
        sys.exit("the run on the cluster is not the undisturbed one: " + "; ".join(wrong))


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="interactions; a tenth as many users")
    parser.add_argument("--read", type=int, default=0, help="how many users the LLM reads about; 0 for all")
    parser.add_argument("--partitions", type=int, default=16)
    parser.add_argument("--work", help="folder for temporary files; a short path")
    return parser


def write_config(folder: Path, options: argparse.Namespace) -> Path:
    """The config, and what it names."""
    _skewed_rows.write_source(folder / "source", options.rows)
    tiny_llama(folder / "llama")
    file = folder / "config.toml"
    table, checkpoint = _skewed_rows.TABLE.format(label="like"), max(1, options.rows // 16_384 // 4)
    values = {"partitions": options.partitions, "read": options.read, "checkpoint": checkpoint}
    file.write_text(CONFIG.format(folder=folder, table=table, **values))
    return file


def _entry(file: Path, config: Config) -> list[str]:
    return ["python", "-m", "llm4msr", "run", str(file), f"--set=storage={config.root}"]


def disturbed(cluster: RayCluster, file: Path, config: Config, partitions: int, story: Story) -> None:
    """The run on the cluster, which loses a worker in each stage."""
    job = Job(cluster, "run", _entry(file, config))
    moments: list[tuple[str, Callable[[], bool]]] = [
        ("MapBatches(build_partition)", lambda: _count(config, r"/tables/\d+\.json") >= partitions // 4),
        ("AskLLM", lambda: _count(config, VECTORS) >= 8),
        ("RayTrainWorker", lambda: _count(config, r"/train/.*/progress\.json") >= 1),
        ("MapBatches(_task)", lambda: _count(config, "/evaluate/") >= 1),
    ]
    for word, moment in moments:
        job.wait_until(moment, f"the moment to kill a worker with {word}", seconds=3600)
        node: Node = job.wait_until(partial(_find_worker, cluster, word), f"a worker with {word}")
        seconds = cluster.kill(node)
        story.tell(f"{node.name}, which ran {word}, was killed; the cluster noticed after {seconds:.0f} s")
        story.tell(f"{cluster.add_worker().name} joins")
    status, _ = job.ended()
    story.tell(f"the job is {status}")
    if status != "SUCCEEDED":
        raise SystemExit(f"the job is {status}\n{job.log.read_text()[-8000:]}")


def _find_worker(cluster: RayCluster, word: str) -> Node | None:
    return next((node for node in cluster.workers if node.runs(word)), None)


def _count(config: Config, pattern: str) -> int:
    """Files below the storage whose names fit."""
    root = storage.path(config.root)
    root.fs.invalidate_cache()
    return sum(bool(re.search(pattern, str(name))) for name in root.fs.find(root.path))


def judge(here: Config, there: Config, log: Path) -> tuple[dict[str, Any], list[str]]:
    """What the run on the cluster gave beside the undisturbed one, and what of it is wrong."""
    users = _store.compare(_store.users(there), _store.users(here))
    tables = [{name: file.digest for name, file in prepared(c).manifest.files.items()} for c in (here, there)]
    auc = [evaluate(config).manifest.info["compared_auc"] for config in (here, there)]
    puts = {what: written(log, kind) for what, kind in WRITTEN.items()}
    checks = {
        "prepared tables differ": tables[0] == tables[1],
        "users: other ids or errors, or one twice": users["same"],
        f"users: least cosine of two vectors {users['cosine']:.6f}": users["cosine"] > LEAST_COSINE,
    }
    for name, theirs in auc[0].items():
        ours, allowed = auc[1][name], SAME if name == "none" else NOISE
        checks[f"AUC of {name}: {ours:.6f}, undisturbed {theirs:.6f}"] = abs(ours - theirs) <= allowed
    counts = {"read": len(_store.users(there)), "users": prepared(there).manifest.info["users"]}
    results = {"users": users, "counts": counts, "rows": prepared(there).manifest.rows, "auc": auc, "puts": puts}
    return results, [wrong for wrong, fine in checks.items() if not fine]


def written(log: Path, pattern: str) -> Counter[str]:
    """How often each file was written, from the S3 server's log."""
    return Counter(re.findall(rf"\"PUT \S*?{pattern}(?= HTTP)", log.read_text(errors="replace")))


def report(story: Story, run: dict[str, Any], wrong: list[str], options: argparse.Namespace) -> str:
    """The page of results."""
    lines = "\n".join(f"| {seconds:.0f} | {text} |" for seconds, text in story.lines)
    calm_auc, own = run["auc"]
    auc = "\n".join(f"| {name} | {value:.6f} | {own[name]:.6f} |" for name, value in calm_auc.items())
    again = "\n".join(
        f"| {what} | {len(files)} | {sum(files.values()) - len(files)} |" for what, files in run["puts"].items()
    )
    verdict = "**Not the same**: " + "; ".join(wrong) if wrong else "The same as the undisturbed run."
    return f"""# A large run on a cluster that loses a worker in every stage

{verdict}

{options.rows:,} made-up interactions of {run["counts"]["users"]:,} users in {options.partitions} partitions; a tiny
random Llama reads about {run["counts"]["read"]:,} of them. Once undisturbed on this machine's own Ray and local disk,
once on a Ray cluster of a head and {WORKERS} workers of one CPU each by `ray job submit`, with storage on S3 (moto's
server).

| s | what happened |
| ---: | --- |
{lines}

Prepared tables: compared by digest. Least cosine of two users' vectors: {run["users"]["cosine"]:.6f}.

| model | test AUC undisturbed | on the cluster |
| --- | ---: | ---: |
{auc}

| written, by the S3 server's log | files | written again |
| --- | ---: | ---: |
{again}

`python -m benchmarks.cluster_scale --rows {options.rows} --read {options.read} --partitions {options.partitions}` on
{describe(("ray", "torch", "s3fs"))}.
"""


if __name__ == "__main__":
    main()
