"""What would a million, a hundred million, a billion users cost, and what breaks first? Measured rates and a model.

    python -m benchmarks.scaling

Measured here: users per CPU-second of 1, 2 and 4 extraction actors of one thread each, what a shard costs the driver,
and time and memory of `prepare` as rows grow. Taken from other benchmarks' reports, or assumed: the constants below,
each with its source. Writes benchmarks/scaling.md.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  not 15, or other processes would slow ours alone

import numpy as np
import pandas as pd

from benchmarks import extract_scale
from benchmarks._machine import describe
from tests.support.experiments import tiny_llama

RESULT = Path(__file__).parent / "scaling.md"
ACTORS = (1, 2, 4)
USERS_MEASURED, SHARD = 16_384, 256
PREPARED_ROWS = (250_000, 1_000_000)
USERS, GPUS = (10**6, 10**8, 10**9), (10, 100, 1000)


@dataclass(frozen=True)
class Given:
    """One number of the model that is not measured here."""

    value: float
    source: str


ROWS_PER_USER = Given(20, "assumed: training rows of a user")
GPU_USERS = Given(725, "results/extract-throughput-gpu.md: users per second of one H200, random Llama of 0.5e9 weights")
PLANNED = Given(222_508, "results/extract-scale.md: users rendered and matched per second and core, at 1e6")
TRAINED = Given(79_374, "results/extract-throughput-gpu.md: training rows per second of one GPU, MMoE, batch 1,024")
WORKERS_AT_MOST = Given(16, "assumed: more GPUs do not train one model faster")
EPOCHS = Given(5, "assumed: what early stopping needs")
CODES = Given(2.9e-6, "results/serve-codes.md: seconds a user to write the ranker's codes, one process")
NODE_GPUS = Given(8, "assumed: GPUs of a machine")
NODE_CORES = Given(64, "assumed: its cores")
NODE_BYTES = Given(1e9, "assumed: bytes per second between a machine and the object store")
DRIVER_BYTES = Given(256e9, "assumed: memory of the largest machine")
ROWS_PER_SHARD = Given(4096, "assumed: `extract.rows_per_shard` for GPUs")


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["extract", "prepare"], help="one measurement alone, as JSON")
    parser.add_argument("count", nargs="?", type=int, default=1, help="its actors, or its rows")
    return parser


def main() -> None:
    options = parser().parse_args()
    if options.what:
        print(json.dumps({"extract": extract_once, "prepare": prepare_once}[options.what](options.count)))
        return
    actors = {count: _alone("extract", count) for count in ACTORS}
    rows = {count: _alone("prepare", count) for count in PREPARED_ROWS}
    RESULT.write_text(report(actors, rows))
    print(RESULT.read_text())


def _alone(what: str, count: int) -> dict[str, float]:
    """A measurement in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.scaling", what, str(count)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    rates: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(what, count, rates, file=sys.stderr, flush=True)
    return rates


def extract_once(actors: int) -> dict[str, float]:
    """Made-up users through `extract` with so many actors of one thread each, on a Ray that counts that many CPUs."""
    import argparse

    import ray

    from llm4msr import ray_session
    from llm4msr.pipeline import extract

    ray.init(num_cpus=actors, include_dashboard=False, log_to_driver=False)
    ray_session.connect()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        model = tiny_llama(root / "llama")
        (root / "template.txt").write_text("Likes: $history")
        options = argparse.Namespace(engine="transformers", shard=SHARD)
        config = extract_scale.config_of(root, "same", model, options)
        config = config.model_copy(update={"extract": config.extract.model_copy(update={"actors": actors})})
        extract_scale.make_prepared(config, USERS_MEASURED, changed=False)
        driver_seconds = time.process_time()
        output = extract(config)
        driver_seconds = time.process_time() - driver_seconds
        spent = output.manifest.info["spent"]["vectors"]
        stored = sum(part.bytes for part in output.manifest.files.values())
    shards = USERS_MEASURED / SHARD
    return {
        "per_cpu_second": USERS_MEASURED / spent["cpu_seconds"],
        "driver_per_shard": driver_seconds / shards,
        "stored_bytes": stored / USERS_MEASURED,
        "width": 128,
    }


def prepare_once(rows: int) -> dict[str, float]:
    """`prepare` of a generated table; seconds of its cores and the peak of its memory."""
    from llm4msr.config import Config
    from llm4msr.pipeline import prepare

    rng = np.random.default_rng(0)
    users = max(1, int(rows / ROWS_PER_USER.value))
    with tempfile.TemporaryDirectory() as folder:
        columns: dict[str, Any] = {
            "user_id": rng.integers(users, size=rows).astype(str),
            "item_id": rng.integers(50_000, size=rows).astype(str),
            "scenario": rng.choice(["feed", "search"], rows),
            "label": rng.integers(2, size=rows),
            "at": np.arange(rows),
        }
        pd.DataFrame(columns).to_parquet(Path(folder) / "rows.parquet")
        del columns
        table = {"interactions": "rows.parquet", "label": "label", "order": "at"}
        source = {"kind": "table", "path": folder, "table": table}
        split = {"kind": "time", "by": "user"}
        config = Config.model_validate({"name": "x", "storage": f"{folder}/runs", "source": source, "split": split})
        begun = time.process_time()
        prepare(config)
        seconds = time.process_time() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": seconds, "peak": peak}


def predicted(users: int, gpus: int, rate: dict[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """Hours of each stage, and bytes of memory that one process needs; `rate` holds what was measured here."""
    nodes = max(1.0, gpus / NODE_GPUS.value)
    cores, rows = nodes * NODE_CORES.value, users * ROWS_PER_USER.value
    seconds = {
        "prepare, one process": rows * rate["prepare_seconds"],
        "extract: rendering and matching": users / PLANNED.value / cores,
        "extract: the LLM": users / GPU_USERS.value / gpus,
        "extract: the driver": users / ROWS_PER_SHARD.value * rate["driver_per_shard"],
        "extract: writing": users * rate["stored_bytes"] / nodes / NODE_BYTES.value,
        "train": rows * EPOCHS.value / TRAINED.value / min(gpus, WORKERS_AT_MOST.value),
        "export: users' codes, one process": users * CODES.value,
    }
    memory = {"prepare": rows * rate["prepare_bytes"]}
    return {name: value / 3600 for name, value in seconds.items()}, memory


def report(actors: dict[int, dict[str, float]], rows: dict[int, dict[str, float]]) -> str:
    """The page."""
    few, many = (rows[count] for count in PREPARED_ROWS)
    step = PREPARED_ROWS[1] - PREPARED_ROWS[0]
    # vectors dominate what is stored: the tiny model's are 128 wide, those of the assumed one 1,024
    one = actors[1]
    rate = {
        "prepare_seconds": (many["seconds"] - few["seconds"]) / step,
        "prepare_bytes": (many["peak"] - few["peak"]) / step,
        "driver_per_shard": one["driver_per_shard"],
        "stored_bytes": one["stored_bytes"] + 2 * (1024 - one["width"]),
    }
    law = [
        f"| {count} | {rates['per_cpu_second']:,.0f} | {rates['per_cpu_second'] / one['per_cpu_second']:.2f} |"
        for count, rates in actors.items()
    ]
    heads, lines = [f"{users:.0e} users, {gpus} GPUs".replace("e+0", "e") for users in USERS for gpus in GPUS], []
    cases = [predicted(users, gpus, rate) for users in USERS for gpus in GPUS]
    for name in cases[0][0]:
        lines.append(f"| {name} | " + " | ".join(_hours(hours[name]) for hours, _ in cases) + " |")
    lines.append("| **all** | " + " | ".join(_hours(sum(hours.values())) for hours, _ in cases) + " |")
    lines.append("| memory of `prepare` | " + " | ".join(f"{m['prepare'] / 1e9:,.0f} GB" for _, m in cases) + " |")
    lines.append("| breaks or binds first | " + " | ".join(first(*case) for case in cases) + " |")
    lines.append("| if `prepare` were many processes | " + " | ".join(longest(hours) for hours, _ in cases) + " |")
    assumptions = [
        f"| {name.lower().replace('_', ' ')} | {value.value:g} | {value.source} |"
        for name, value in globals().items()
        if isinstance(value, Given)
    ]
    newline = "\n"
    return f"""# How the pipeline scales

## Measured here

Extraction actors of one thread each, a random Llama of 2 layers of 128, {USERS_MEASURED:,} made-up users:

| actors | users per CPU-second of an actor | to one actor |
| ---: | ---: | ---: |
{newline.join(law)}

The driver spends {1000 * rate["driver_per_shard"]:.0f} ms on a shard. `prepare` holds all rows in memory:
{rate["prepare_bytes"]:.0f} bytes and {1e6 * rate["prepare_seconds"]:.1f} microseconds a row, from {PREPARED_ROWS[0]:,}
to {PREPARED_ROWS[1]:,} rows. Knowledge takes {rate["stored_bytes"]:,.0f} bytes a user with vectors of 1,024 numbers.
Training on 1, 2 and 4 workers: [results/train-scaling.md](results/train-scaling.md).

## Taken from elsewhere, or assumed

| what | value | source |
| --- | ---: | --- |
{newline.join(assumptions)}

## Predicted

Hours of each stage, one after the other, if all GPUs compute. Loading the LLM, starting machines and failures are left
out; so is reading the raw data.

| | {" | ".join(heads)} |
| --- |{" ---: |" * len(cases)}
{newline.join(lines)}

`python -m benchmarks.scaling` on {describe(("ray", "torch", "pyarrow", "pandas"))}.
"""


def first(hours: dict[str, float], memory: dict[str, float]) -> str:
    """What stops the run, or else takes most of its time."""
    if memory["prepare"] > DRIVER_BYTES.value:
        return "memory of `prepare`"
    return max(hours, key=lambda name: hours[name]).partition(",")[0]


def longest(hours: dict[str, float]) -> str:
    """The stage that takes most of the time, `prepare` apart."""
    return max(hours, key=lambda name: hours[name] * (not name.startswith("prepare"))).partition(",")[0]


def _hours(hours: float) -> str:
    return f"{hours:,.0f} h" if hours >= 10 else f"{hours:.1f} h" if hours >= 0.1 else f"{3600 * hours:.0f} s"


if __name__ == "__main__":
    main()
