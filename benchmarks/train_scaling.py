"""Do 1, 2 and 4 workers train the same model, and what does each of them cost?

    python -m benchmarks.train_scaling

Measures in parts (`--parts`), each kept as a JSON file below `--work`; what is measured already is not measured again,
but `--rounds` are added:

    auc     MovieLens-100K as in configs/ml-100k.toml, without knowledge, trained by 1, 2 and 4 Ray Train workers, with
            and without dropout, and on one with sparse gradients: AUC of the test rows
    steps   CPU-seconds of Ray Train workers in training steps alone, on generated rows, all in turn

CPU-seconds are user and system time of the workers' processes, with one thread each, since four workers share this
machine's cores. Writes benchmarks/results/train-scaling.md from all parts there are.
"""

import argparse
import contextlib
import itertools
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks._cpu_clock import train_with_clock
from benchmarks.train_scaling_report import BATCHES, NO_DROPOUT, SPARSE, WORKERS, report
from llm4msr import Config, load, storage
from llm4msr.pipeline import prepare, train, trained
from llm4msr.training import metrics
from llm4msr.training.dataset import Dataset
from llm4msr.training.loop import fit
from llm4msr.training.scoring import predict

RESULTS = Path(__file__).parent / "results" / "train-scaling.md"
CONFIG = Path(__file__).parent / "configs" / "ml-100k.toml"
STEP_ROWS = 15 * BATCHES[-1]
"""Of the training rows so many warm up, and as many are measured."""
CALM = ("model.dropout=0", "train.id_dropout=0")
KINDS: dict[str, tuple[str, ...]] = {
    **{str(n): (f"train.workers={n}",) for n in WORKERS},
    SPARSE: ("train.sparse=true",),
    **{f"{n}{NO_DROPOUT}": (f"train.workers={n}", *CALM) for n in WORKERS},
}


def main() -> None:
    options = parser().parse_args()
    work = Path(options.work).absolute()
    work.mkdir(parents=True, exist_ok=True)
    measure: dict[str, Callable[[dict[str, Any]], Iterator[None]]] = {
        "auc": lambda results: measure_auc(work, results, options.seeds, options.patience),
        "steps": lambda results: measure_steps(work, results, options.rounds),
    }
    for part in filter(None, options.parts.split(",")):
        file = work / f"{part}.json"
        results = json.loads(file.read_text()) if file.exists() else {}
        for _ in measure[part](results):
            file.write_text(json.dumps(results, indent=1))
            print(f"{time.strftime('%H:%M:%S')} {part} {json.dumps(results)}", flush=True)
    results = {part: json.loads(file.read_text()) for part in measure if (file := work / f"{part}.json").exists()}
    RESULTS.write_text(report(results))
    print(f"-> {RESULTS}")


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", default="runs/train-scaling")
    parser.add_argument("--parts", default="auc,steps", help="empty: only write the report")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--patience", type=int, default=20, help="the config has 2; 20 lets all epochs be trained")
    parser.add_argument("--rounds", type=int, default=3)
    return parser


def start_ray() -> None:
    """A Ray of this process with room for the most workers."""
    import ray

    if not ray.is_initialized():
        ray.init("local", num_cpus=max(WORKERS), include_dashboard=False, logging_level="error", log_to_driver=False)


# --- the same AUC ------------------------------------------------------------------------------------------------


def measure_auc(work: Path, results: dict[str, Any], seeds: int, patience: int) -> Iterator[None]:
    """{patience: {kind: {seed: test AUC}}}; a kind is a number of workers and what differs from the config."""
    always = ("model.knowledge=none", f"train.patience={patience}")
    for seed, (kind, changes) in itertools.product(range(1, seeds + 1), KINDS.items()):
        known = results.setdefault(str(patience), {}).setdefault(kind, {})
        if str(seed) not in known:
            place = work / f"patience-{patience}" / kind.replace(" ", "-")
            settings = [f"storage={place}", f"seed={seed}", *always, *changes]
            config = load(str(CONFIG), settings)  # split by time, so the rows are the same whatever the seed
            prepare(config)
            start_ray()
            train(config)
            known[str(seed)] = test_auc(config)
            yield


def test_auc(config: Config) -> float | None:
    """Of the published weights."""
    net, data = trained(config).load()
    predictions = predict(net, data, data.rows("test"), 4096)
    return metrics.auc(predictions.label, predictions.logit)


# --- CPU-seconds of a step ---------------------------------------------------------------------------------------


def measure_steps(work: Path, results: dict[str, Any], rounds: int) -> Iterator[None]:
    """Rows per CPU-second of the workers together, a list over rounds: {batch: {workers or "1 beside": ..}}.

    `1 beside` is one worker while the machine does the same work once more, as it does with several workers.
    """
    source = work / "generated"
    if not source.exists():
        generate(source)
    for _, batch in itertools.product(range(rounds), BATCHES):
        for kind in ("1", "1 beside", *map(str, WORKERS[1:])):
            config = steps_config(work, source, batch, int(kind.split()[0]))
            with beside(config) if kind == "1 beside" else contextlib.nullcontext():
                rate = STEP_ROWS / sum(step_seconds(config))
            results.setdefault(str(batch), {}).setdefault(kind, []).append(rate)
            yield


def generate(folder: Path) -> None:
    """Random rows, about as many users and items as MovieLens-1M has."""
    rng, rows = np.random.default_rng(1), int(2.6 * STEP_ROWS)
    folder.mkdir(parents=True)
    sizes = {"user": 6000, "item": 4000, "scenario": 4}
    columns = {
        **{name: pa.array(rng.integers(size, size=rows)).cast(pa.string()) for name, size in sizes.items()},
        "label": pa.array(rng.integers(2, size=rows)),
        "time": pa.array(np.arange(rows)),
    }
    pq.write_table(pa.table(columns), folder / "interactions.parquet")


def steps_config(work: Path, source: Path, batch: int, workers: int) -> Config:
    names = {name: name for name in ("user", "item", "scenario", "label")}
    config = Config.model_validate(
        {
            "name": "train-scaling",
            "storage": str(work / "steps"),
            "source": {
                "kind": "table",
                "path": str(source),
                "table": {"interactions": "interactions.parquet", "order": "time", **names},
            },
            "split": {"kind": "random", "valid": 0.05, "test": 0.05},
            "model": {"knowledge": "none"},
            "train": {
                "workers": workers,
                "batch_size": batch,
                "epochs": 1,
                "checkpoint_batches": STEP_ROWS // batch,
            },
        }
    )
    prepare(config)
    return config


def step_seconds(config: Config) -> list[float]:
    """Of each worker, the CPU-seconds between its first two checkpoints."""
    start_ray()
    output, workers = train_with_clock(config)
    storage.remove(output.folder)
    return [second.begin - first.end for first, second, *_ in workers]


@contextlib.contextmanager
def beside(config: Config) -> Iterator[None]:
    """Another process trains the same while the block runs."""
    process = multiprocessing.get_context("spawn").Process(target=_train_on_and_on, args=(config,), daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


def _train_on_and_on(config: Config) -> None:
    torch.set_num_threads(1)
    data = Dataset.open(config, prepare(config), None)
    while True:
        fit(config, data)


if __name__ == "__main__":
    main()
