"""What do a million, ten million and a hundred million rows cost in each stage? Made-up data, processes of their own.

    python -m benchmarks.data_scale --rows 1000000 10000000 100000000 --negatives 4 --stages prepare train --peer

Each stage is started as a user starts it, `python -m llm4msr STAGE CONFIG`; CPU-seconds and memory are of all processes
that it starts. What is measured is kept in benchmarks/results/data-scale.json and is not measured again unless
`--again` is given; the page benchmarks/results/data-scale.md is written from it.
"""

import argparse
import hashlib
import itertools
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks import _peer_prepare, _process_meter, _skewed_rows
from benchmarks.data_scale_report import Record, report
from tests.support.experiments import tiny_llama

RESULT = Path(__file__).parent / "results" / "data-scale.md"
RECORDS = RESULT.with_suffix(".json")
BATCH = 16_384
VARIABLES = {"RAY_ADDRESS": "local", "RAY_worker_niceness": "0"}
"""A Ray of its own, whose workers do not wait for all other work on this machine."""
CONFIG = """\
name = "scale"
storage = "{work}/runs-{rows}"

[source]
kind = "table"
path = "{source}"

{table}
[split]
negatives = {negatives}

[extract]
engine = "transformers"
model = "{work}/llama"
answers = "none"
reads = "items"
item_vectors = "random"

[model]
knowledge = "{knowledge}"

[train]
workers = {workers}
batch_size = {batch}
epochs = 1
checkpoint_batches = {checkpoint}
"""
MOVIELENS = """\
name = "scale"
storage = "{work}/ml-100k"

[source]
kind = "movielens"
path = "ml-100k"
"""
RUN = (
    ("extract", "user"),
    ("train", "none"),
    ("train", "user"),
    ("evaluate", "user"),
    ("export", "user"),
    ("explain", "user"),
)
"""Stages after `prepare`, and `model.knowledge` of each."""
AGAIN = """
import sys, time
from llm4msr import load, pipeline
for place in ("first", "second"):
    config, begun = load(sys.argv[1], ["storage=" + sys.argv[2] + "/" + place]), time.process_time()
    pipeline.prepare(config)
print(time.process_time() - begun)
"""
"""Prepares two times in one process, the second time without loading any module; prints the seconds of that."""


def main() -> None:
    options = parser().parse_args()
    work = Path(options.work).absolute()
    work.mkdir(parents=True, exist_ok=True)
    records: list[Record] = json.loads(RECORDS.read_text()) if RECORDS.exists() else []
    for name, measure in measurements(options, work):
        if options.again or not any(name.items() <= record.items() for record in records):
            records = [record for record in records if not name.items() <= record.items()] + [name | measure()]
            print(time.strftime("%H:%M:%S"), json.dumps(records[-1]), flush=True)
            RECORDS.write_text(json.dumps(records, indent=1) + "\n")
    RESULT.write_text(report(records))
    print(f"-> {RESULT}")


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--negatives", type=int, default=4, help="a row, measured beside rows with labels; 0: not")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=["prepare"])
    parser.add_argument("--workers", type=int, nargs="+", default=[1], help="of `train`")
    parser.add_argument("--peer", action="store_true", help="polars and duckdb programs beside `prepare`")
    parser.add_argument("--movielens", action="store_true", help="MovieLens-100K too")
    parser.add_argument("--work", default="runs/data-scale")
    parser.add_argument("--again", action="store_true", help="measure what is measured already")
    return parser


Measurements = Iterator[tuple[Record, Callable[[], Record]]]


def measurements(options: argparse.Namespace, work: Path) -> Measurements:
    """What each measurement is of, and the function that makes it."""
    if options.movielens:
        yield {"stage": "ml-100k"}, partial(movielens, work)
    for stage, rows in itertools.product(options.stages, options.rows):
        yield from STAGES[stage](options, work, rows)


def of_prepare(options: argparse.Namespace, work: Path, rows: int) -> Measurements:
    """Of rows whose negatives are drawn, of rows with labels, whose tables `run` reads then, and by the peers."""
    for negatives in dict.fromkeys((options.negatives, 0)):
        name = {"stage": "prepare", "by": "llm4msr", "rows": rows, "negatives": negatives}
        yield name, partial(_stage, "prepare", work, rows, negatives=negatives)
    for program in _peer_prepare.PROGRAMS if options.peer else ():
        name = {"stage": "prepare", "by": program, "rows": rows, "negatives": 0}
        yield name, partial(_peer, program, work, rows)


def of_batches(options: argparse.Namespace, work: Path, rows: int) -> Measurements:
    """What each of so many workers reads of an epoch, without training."""
    for workers in options.workers:
        yield {"stage": "batches", "rows": rows, "workers": workers}, partial(_batches, work, rows, workers)


def of_train(options: argparse.Namespace, work: Path, rows: int) -> Measurements:
    """An epoch on so many workers."""
    for workers in options.workers:
        yield {"stage": "train", "rows": rows, "workers": workers}, partial(_train, work, rows, workers)


def of_run(options: argparse.Namespace, work: Path, rows: int) -> Measurements:
    """The stages after `prepare`, with knowledge: random vectors of items, pooled over users' histories."""
    for stage, knowledge in RUN:
        name = {"stage": stage, "rows": rows, "knowledge": knowledge}
        yield name, partial(_stage, stage, work, rows, knowledge=knowledge)


def of_daily(_: argparse.Namespace, work: Path, rows: int) -> Measurements:
    """`prepare` of all files but the last, again with the last one, and of all of them at once."""
    yield {"stage": "daily", "rows": rows}, partial(_daily, work, rows)


STAGES: dict[str, Callable[[argparse.Namespace, Path, int], Measurements]] = {
    "prepare": of_prepare,
    "daily": of_daily,
    "batches": of_batches,
    "train": of_train,
    "run": of_run,
}


def movielens(work: Path) -> Record:
    """`prepare` of MovieLens-100K; `again`: CPU-seconds in a process that has prepared it before."""
    config = work / "ml-100k.toml"
    config.write_text(MOVIELENS.format(work=work))
    shutil.rmtree(work / "ml-100k", ignore_errors=True)
    usage = _process_meter.run([sys.executable, "-m", "llm4msr", "prepare", str(config)])
    command = [sys.executable, "-c", AGAIN, str(config), str(work / "ml-100k")]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return usage._asdict() | {"again": float(done.stdout.split()[-1])}


def _stage(stage: str, work: Path, rows: int, **settings: Any) -> Record:
    """A stage in processes of its own, on a Ray of its own."""
    config = write_config(work, rows, **settings)
    old = {"prepare": ("prepare", "shuffle"), "train": ("train",) if settings.get("knowledge") == "none" else ()}
    for folder in old.get(stage, (stage,)):  # a run trains twice, without knowledge first
        shutil.rmtree(work / f"runs-{rows}" / folder, ignore_errors=True)
    return _process_meter.run([sys.executable, "-m", "llm4msr", stage, str(config)], VARIABLES)._asdict()


def _daily(work: Path, rows: int) -> Record:
    source = _skewed_rows.write_source(work / f"rows-{rows}", rows)
    files, days = sorted((source / "interactions").iterdir()), work / f"days-{rows}"
    shutil.rmtree(days, ignore_errors=True)
    shutil.rmtree(work / "runs-daily", ignore_errors=True)
    (days / "interactions").mkdir(parents=True)
    shutil.copy(source / "items.parquet", days)
    config = work / "daily.toml"
    text = write_config(work, rows).read_text()
    config.write_text(text.replace(f'"{source}"', f'"{days}"').replace(f"runs-{rows}", "runs-daily"))
    usages, digests = [], []
    for step in (files[:-1], files[-1:], []):
        for file in step:
            shutil.copy(file, days / "interactions")
        if not step:
            shutil.rmtree(work / "runs-daily")
        usages.append(_process_meter.run([sys.executable, "-m", "llm4msr", "prepare", str(config)], VARIABLES))
        output = newest_manifest(work / "runs-daily" / "prepare")
        digests.append({name: file["digest"] for name, file in output["files"].items()})
    seconds = [usage.cpu_seconds for usage in usages]
    day = pq.read_metadata(files[-1]).num_rows
    return {"cpu": seconds, "day": day, "peaks": [u.peak for u in usages], "equal": digests[1] == digests[2]}


def newest_manifest(folder: Path) -> Record:
    """The manifest of the output that was published last."""
    files = sorted(folder.glob("*/manifest.json"), key=lambda file: file.stat().st_mtime_ns)
    manifest: Record = json.loads(files[-1].read_text())
    return manifest


def write_config(work: Path, rows: int, negatives: int = 0, workers: int = 1, knowledge: str = "none") -> Path:
    """A config for so many rows, which are made unless they are there."""
    config, source = work / "config.toml", _skewed_rows.write_source(work / f"rows-{rows}", rows)
    if not (work / "llama").exists():
        tiny_llama(work / "llama")
    values = {
        "work": work,
        "rows": rows,
        "source": source,
        "table": _skewed_rows.TABLE.format(label="" if negatives else "like"),
        "negatives": negatives,
        "workers": workers,
        "knowledge": knowledge,
        "batch": BATCH,
        "checkpoint": max(1, rows // BATCH // 5),  # four in an epoch, as eight tenths of the rows train
    }
    config.write_text(CONFIG.format(**values))
    return config


def _batches(work: Path, rows: int, workers: int) -> Record:
    config, parts = write_config(work, rows), []
    subprocess.run([sys.executable, "-m", "llm4msr", "prepare", str(config)], check=True)
    for rank in range(workers):
        command = [sys.executable, "-m", "benchmarks._global_batches", str(config), str(rank), str(workers)]
        parts.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))
    sums = [sum(numbers) % 2**64 for numbers in zip(*(part["sums"] for part in parts), strict=True)]
    digest = hashlib.blake2b(repr(sums).encode(), digest_size=8).hexdigest()
    figures = {key: [part[key] for part in parts] for key in ("rows", "bytes", "cpu_seconds", "peak")}
    return {"batches": len(sums), "digest": digest, "read": figures}


def _train(work: Path, rows: int, workers: int) -> Record:
    config, result = write_config(work, rows, workers=workers), work / "rates.json"
    subprocess.run([sys.executable, "-m", "llm4msr", "prepare", str(config)], check=True)
    shutil.rmtree(work / f"runs-{rows}" / "train", ignore_errors=True)
    usage = _process_meter.run([sys.executable, "-m", "benchmarks._train_rate", str(config), str(result)])
    rates: Record = json.loads(result.read_text())
    return usage._asdict() | rates


def _peer(program: str, work: Path, rows: int) -> Record:
    source, output = _skewed_rows.write_source(work / f"rows-{rows}", rows), work / program
    output.mkdir(exist_ok=True)
    module = "benchmarks._peer_prepare"
    usage = _process_meter.run([sys.executable, "-m", module, program, str(source), str(output)])
    shutil.rmtree(output)
    return usage._asdict()


if __name__ == "__main__":
    main()
