"""What would a million, a hundred million, a billion users cost, and what breaks first? Measured rates and a model.

    python -m benchmarks.scaling

Seconds and memory of each stage are those of results/data-scale.json: what a row of the larger data set took more than
one of the smaller. Measured here: users per CPU-second of 1, 2 and 4 extraction actors of one thread each, and what a
shard costs the driver. Taken from other reports, or assumed: the constants below, each with its source. Writes
benchmarks/scaling.md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  not 15, or other processes would slow ours alone

from benchmarks import extract_scale
from benchmarks._machine import describe
from benchmarks.data_scale import RECORDS
from benchmarks.data_scale_report import Record, table
from tests.support.experiments import tiny_llama

RESULT = Path(__file__).parent / "scaling.md"
ACTORS = (1, 2, 4)
USERS_MEASURED, SHARD = 16_384, 256
USERS, GPUS = (10**6, 10**8, 10**9), (10, 100, 1000)
TRAIN_ROWS, TEST_ROWS = 0.8, 0.1
"""Of the rows, in data-scale.json."""


@dataclass(frozen=True)
class Given:
    """One number of the model that is not measured here."""

    value: float
    source: str


ROWS_PER_USER = Given(10, "as in results/data-scale.md")
GPU_USERS = Given(725, "results/extract-throughput-gpu.md: users per second of one H200, random Llama of 0.5e9 weights")
PLANNED = Given(146_335, "results/extract-scale.md: users rendered and matched per second and core, at 1e6")
TRAINED = Given(79_374, "results/extract-throughput-gpu.md: training rows per second of one GPU, MMoE, batch 1,024")
WORKERS_AT_MOST = Given(16, "assumed: more GPUs do not train one model faster")
EPOCHS = Given(5, "assumed: what early stopping needs")
NODE_GPUS = Given(8, "assumed: GPUs of a machine")
NODE_CORES = Given(64, "assumed: its cores")
NODE_BYTES = Given(1e9, "assumed: bytes per second between a machine and the object store")
DRIVER_BYTES = Given(256e9, "assumed: memory of the largest machine")
ROWS_PER_SHARD = Given(4096, "assumed: `extract.rows_per_shard` for GPUs")


class Growth(NamedTuple):
    """What a row more takes, by two sizes of data; of less than nothing, nothing."""

    cpu_seconds: float
    driver: float
    """Bytes of the highest resident memory of the driver, and of the largest other process."""
    other: float
    fixed: float
    """CPU-seconds without rows."""

    @classmethod
    def between(cls, few: Record, many: Record) -> "Growth":
        rows = many["rows"] - few["rows"]
        cpu, driver, other = (
            max(0.0, (many[key] - few[key]) / rows) for key in ("cpu_seconds", "first_peak", "largest_other")
        )
        return cls(cpu, driver, other, max(0.0, few["cpu_seconds"] - cpu * few["rows"]))


class Stage(NamedTuple):
    """A line of the prediction, which `record` of data-scale.json measures."""

    name: str
    record: Record
    parallel: bool
    """Whether all cores share it; else one process does it all."""


STAGES = (
    Stage("prepare", {"stage": "prepare", "by": "llm4msr", "negatives": 0}, True),
    Stage("prepare with 4 negatives a row", {"stage": "prepare", "by": "llm4msr", "negatives": 4}, True),
    Stage("extract, without the LLM", {"stage": "extract"}, True),
    Stage("evaluate", {"stage": "evaluate"}, True),
    Stage("export", {"stage": "export"}, True),
    Stage("explain", {"stage": "explain"}, False),
)


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--actors", type=int, help="this number of actors alone, as JSON")
    return parser


def main() -> None:
    options = parser().parse_args()
    if options.actors:
        print(json.dumps(extract_once(options.actors)))
        return
    actors = {count: _alone(count) for count in ACTORS}
    RESULT.write_text(report(actors, growths(json.loads(RECORDS.read_text()))))
    print(RESULT.read_text())


def _alone(actors: int) -> dict[str, float]:
    """A measurement in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.scaling", "--actors", str(actors)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    rates: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(actors, rates, file=sys.stderr, flush=True)
    return rates


def growths(records: Sequence[Record]) -> dict[str, tuple[Growth, int, int]]:
    """Of each stage how it grows, between which numbers of rows: the two largest that are measured."""
    found = {}
    for stage in STAGES:
        of_stage = [record for record in records if stage.record.items() <= record.items()]
        if len(of_stage) > 1:
            *_, few, many = sorted(of_stage, key=lambda record: record["rows"])
            found[stage.name] = (Growth.between(few, many), few["rows"], many["rows"])
    return found


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


def predict_hours(
    users: int, gpus: int, actor: dict[str, float], grown: dict[str, tuple[Growth, int, int]]
) -> dict[str, float]:
    """Hours of each stage, if all GPUs compute."""
    nodes = max(1.0, gpus / NODE_GPUS.value)
    cores, rows = nodes * NODE_CORES.value, users * ROWS_PER_USER.value
    seconds = {
        stage.name: grown[stage.name][0].cpu_seconds * rows / (cores if stage.parallel else 1)
        for stage in STAGES
        if stage.name in grown
    }
    seconds |= {
        "extract: rendering and matching": users / PLANNED.value / cores,
        "extract: the LLM": users / GPU_USERS.value / gpus,
        "extract: the driver, a shard after the other": users / ROWS_PER_SHARD.value * actor["driver_per_shard"],
        "extract: writing": users * stored_bytes(actor) / nodes / NODE_BYTES.value,
        "train": TRAIN_ROWS * rows * EPOCHS.value / TRAINED.value / min(gpus, WORKERS_AT_MOST.value),
    }
    return {name: value / 3600 for name, value in seconds.items()}


def predict_memory(users: int, grown: dict[str, tuple[Growth, int, int]]) -> dict[str, float]:
    """Bytes that the driver of each stage needs beyond what it needs without rows."""
    rows = users * ROWS_PER_USER.value
    return {name: growth.driver * rows for name, (growth, _, _) in grown.items()}


def stored_bytes(actor: dict[str, float]) -> float:
    """Bytes a user, mostly the vector: that of the tiny model is 128 wide, that of the assumed one 1,024."""
    return actor["stored_bytes"] + 2 * (1024 - actor["width"])


def bottleneck(hours: dict[str, float], memory: dict[str, float]) -> str:
    """What stops the run, or else takes most of its time."""
    most = max(memory, key=lambda name: memory[name])
    return (
        f"the driver's memory in {most}"
        if memory[most] > DRIVER_BYTES.value
        else max(hours, key=lambda name: hours[name])
    )


def report(actors: dict[int, dict[str, float]], grown: dict[str, tuple[Growth, int, int]]) -> str:
    """The page."""
    one, cases = actors[1], [(users, gpus) for users in USERS for gpus in GPUS]
    hours = [predict_hours(*case, one, grown) for case in cases]
    memory = {users: predict_memory(users, grown) for users in USERS}
    lines = [(name, *(_hours(of_case[name]) for of_case in hours)) for name in hours[0]]
    lines.append(
        ("**breaks or binds first**", *(bottleneck(h, memory[case[0]]) for case, h in zip(cases, hours, strict=True)))
    )
    law = [
        (f"{count}", f"{rates['per_cpu_second']:,.0f}", f"{rates['per_cpu_second'] / one['per_cpu_second']:.2f}")
        for count, rates in actors.items()
    ]
    heads = (
        "stage",
        "rows",
        "CPU microseconds a row",
        "CPU s without rows",
        "driver, bytes a row",
        "other, bytes a row",
    )
    measured = []
    for name, (growth, few, many) in grown.items():
        numbers = (
            f"{1e6 * growth.cpu_seconds:.2f}",
            f"{growth.fixed:.0f}",
            f"{growth.driver:.1f}",
            f"{growth.other:.1f}",
        )
        measured.append((name, f"{few:,} to {many:,}", *numbers))
    needs = [
        (name, *(f"{memory[users][name] / 1e9:,.1f} GB" for users in USERS))
        for name in memory[USERS[0]]
        if memory[USERS[-1]][name] > 1e9
    ]
    assumptions = [
        (name.lower().replace("_", " "), f"{value.value:g}", value.source)
        for name, value in globals().items()
        if isinstance(value, Given)
    ]
    return f"""# How the pipeline scales

## Measured

What a row more takes of each stage ([data-scale](results/data-scale.md)); the driver, and the largest of all other
processes, by their highest resident memory (which has the pages of Ray's object store that a process has touched, 1 GiB
at most here):

{table(heads, measured)}

Extraction actors of one thread each, a random Llama of 2 layers of 128, {USERS_MEASURED:,} made-up users:

{table(("actors", "users per CPU-second of an actor", "to one actor"), law)}

The driver spends {1000 * one["driver_per_shard"]:.0f} ms on a shard. Knowledge takes {stored_bytes(one):,.0f} bytes a
user with vectors of 1,024 numbers. Training on 1, 2 and 4 workers: [train-scaling](results/train-scaling.md), and
[data-scale](results/data-scale.md).

## Taken from elsewhere, or assumed

{table(("what", "value", "source"), assumptions)}

## Predicted

Hours of each stage, one after the other, if all GPUs compute and all cores of their machines share what is not one
process's work. Loading the LLM, starting machines and failures are left out.

{table(["", *(f"{users:.0e} users, {gpus} GPUs".replace("e+0", "e") for users, gpus in cases)], lines)}

The driver's memory beyond what it takes without rows, if it went on growing along that line, where it passes 1 GB.
Other processes hold a partition or a few, of at most five million rows, however many there are:

{table(["", *(f"{users:.0e} users".replace("e+0", "e") for users in USERS)], needs)}

`python -m benchmarks.scaling` on {describe(("ray", "torch", "pyarrow"))}.
"""


def _hours(hours: float) -> str:
    return f"{hours:,.0f} h" if hours >= 10 else f"{hours:.1f} h" if hours >= 0.1 else f"{3600 * hours:.0f} s"


if __name__ == "__main__":
    main()
