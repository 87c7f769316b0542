"""How fast is training? Rows per CPU-second: ours, Scenario-Wise-Rec's own loop, and a bare loop as the ceiling.

    python -m benchmarks.train_throughput --data ml-1m.zip --peer Scenario-Wise-Rec --peer-python env/bin/python

Measures in parts (`--parts`), each kept as a JSON file below `--work`, so an interrupted or extended run goes on:

    auc        both trained on the same rows for the same epochs: the learning rate of each is picked on validation
    peer       the peer's own trainer and loader with 0 and 8 workers, ours (on Ray, Parquet in, validation and
               metrics on) and the bare loop, in turn, `--rounds` times
    precision  the step of every backbone in float32, in float32 with oneDNN's own bfloat16 option, and in bfloat16
    seeds      AUC of our default sizes in float32 and in bfloat16, five seeds each
    knowledge  the step of every use of knowledge in turn; the LLM's vectors are made up, which costs the same
    workers    one worker and two of Ray Train with one thread each
    memory     peak resident memory of the loop on generated rows

CPU-seconds are user and system time of the measured processes and their children, with one thread: other work on
the machine disturbs them less than a clock. Writes benchmarks/results/train-throughput.md from all parts there are.
"""

import argparse
import contextlib
import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  not 15, or caches would be cold for the real path alone

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks._cpu_clock import train_with_clock
from benchmarks._random_rows import open_dataset, peak_memory, write_rows
from benchmarks.train_throughput_report import BATCH, EPOCHS, FORMATS, KNOWLEDGE_WIDTH, ONEDNN, RATES, SEEDS, report
from llm4msr import storage
from llm4msr.config import BACKBONES, Config, ModelConfig
from llm4msr.data import partitions
from llm4msr.knowledge.store import KnowledgeStore
from llm4msr.model.inputs import Batch
from llm4msr.model.net import RankerNet
from llm4msr.pipeline import prepare
from llm4msr.training import metrics
from llm4msr.training.batches import RowReader, to_batch
from llm4msr.training.dataset import Dataset
from llm4msr.training.feature_tables import FeatureTables
from llm4msr.training.loop import fit
from llm4msr.training.optimizers import AdamW
from llm4msr.training.precision import Precision, choose, products
from llm4msr.training.row_files import Rows
from llm4msr.training.scoring import predict

RESULTS = Path(__file__).parent / "results" / "train-throughput.md"
DRIVER = Path(__file__).parent / "_peer_train.py"
MODELS: dict[str, dict[str, Any]] = {
    "star": {"backbone": "star", "hidden": (128, 64), "tower": 32, "dropout": 0.0},
    "mmoe": {"backbone": "mmoe", "hidden": (16,), "tower": 8, "experts": 3, "dropout": 0.0},
}
"""In the sizes that the peer's MovieLens script gives them."""
OUR_DEFAULTS: dict[str, dict[str, Any]] = {"star": {"backbone": "star"}, "mmoe": {"backbone": "mmoe"}}
TIMED_EPOCHS = 3
FIVE_SEEDS = (1, 2, 3, 4, 5)
CPU = torch.device("cpu")
WARM_UP = 5
"""Turns of ten steps before formats are timed: most sizes of groups have come by then, for which oneDNN compiles."""
USES = ("none", "feature", "user", "scenario", "both", "both, full rank")
GENERATED_ROWS = (10**5, 10**6, 10**7)
USERS, ITEMS = 100_001, 50_001
"""Of the generated rows, the unknown ones included."""


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="MovieLens-1M, the official zip")
    parser.add_argument("--peer", default="", help="a checkout of Scenario-Wise-Rec")
    parser.add_argument("--peer-python", action="append", default=[], help="its interpreter; again for another one")
    parser.add_argument("--work", default="runs/train-throughput")
    parser.add_argument(
        "--parts", default="auc,peer,precision,seeds,knowledge,workers,memory", help="empty: only write the report"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer-rows", type=int, default=50_000, help="training rows of a timed epoch of the peer")
    return parser


def main() -> None:
    options = parser().parse_args()
    work = Path(options.work).absolute()
    work.mkdir(parents=True, exist_ok=True)
    measure: dict[str, Callable[[], Any]] = {
        "auc": lambda: measure_auc(options, work),
        "peer": lambda: measure_peer(options, work),
        "precision": lambda: in_own_process(precision_steps, config_of(options.data, work), options.rounds),
        "seeds": lambda: measure_seeds(options, work),
        "knowledge": lambda: in_own_process(knowledge_steps, config_of(options.data, work), options.rounds),
        "workers": lambda: measure_workers(options, work),
        "memory": lambda: measure_memory(work),
    }
    for part in filter(None, options.parts.split(",")):
        (work / f"{part}.json").write_text(json.dumps(measure[part](), indent=1))
    results = {part: json.loads(file.read_text()) for part in measure if (file := work / f"{part}.json").exists()}
    command = "python -m benchmarks.train_throughput --data ml-1m.zip --peer PATH --peer-python PYTHON"
    RESULTS.write_text(report(results, command))
    print(f"-> {RESULTS}")


def config_of(data: str, work: Path, model: dict[str, Any] | None = None, **changes: Any) -> Config:
    """MovieLens-1M by age group, random split, without knowledge unless the model asks for it."""
    return Config.model_validate(
        {
            "name": "train-throughput",
            "storage": str(work / "runs"),
            "source": {"kind": "movielens", "path": str(Path(data).absolute()), "scenario": "age"},
            "split": {"kind": "random"},
            "model": {"knowledge": "none"} | (model or {}),
            "train": {"batch_size": BATCH} | changes,
        }
    )


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's value, from a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def open_data(config: Config) -> Dataset:
    torch.set_num_threads(1)
    return Dataset.open(config, prepare(config), None)


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


# --- equal AUC ---------------------------------------------------------------------------------------------------


def measure_auc(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """{model: {ours | peer: {rate, valid and test AUC of each seed}}}."""
    arrays = in_own_process(export, config_of(options.data, work), work / "rows.npz")

    def ours(model: str, rate: float, seed: int) -> dict[str, Any]:
        config = config_of(options.data, work, MODELS[model], learning_rate=rate, epochs=EPOCHS)
        return in_own_process(auc_of, config, seed)

    def peer(model: str, rate: float, seed: int) -> dict[str, Any]:
        job = {"model": model, "learning_rate": rate, "seed": seed, "epochs": EPOCHS, "loader": "tensors"}
        return run_peer(_pythons(options)[0], options.peer, arrays, **job)

    results: dict[str, Any] = {}
    for model, (name, run) in itertools.product(MODELS, {"ours": ours, "peer": peer}.items()):
        tuned = {rate: run(model, rate, SEEDS[0]) for rate in RATES}
        rate = max(tuned, key=lambda r: max(tuned[r]["valid_auc"]))
        runs = [tuned[rate], *(run(model, rate, seed) for seed in SEEDS[1:])]
        results.setdefault(model, {})[name] = {
            "rate": rate,
            "valid": [max(r["valid_auc"]) for r in runs],
            "test": [r["test_auc"] for r in runs],
        }
        say(f"auc {model} {name} {results[model][name]}")
    return results


def auc_of(config: Config, seed: int) -> dict[str, Any]:
    """Validation AUC of every epoch, and test AUC at the best one; the seed is the training's alone."""
    data = open_data(config)
    config = config.model_copy(update={"seed": seed})
    state = fit(config, data)
    net = data.new_net(config)
    net.load_state_dict(state.best)
    scored = predict(net, data, data.rows("test"), BATCH)
    return {
        "valid_auc": [epoch["valid_auc"] for epoch in state.progress.history],
        "test_auc": metrics.auc(scored.label, scored.logit),
    }


def export(config: Config, file: Path) -> Path:
    """The prepared rows as arrays for `_peer_train.py`; of a many-valued feature the first value, as its script does.

    The order of the rows is drawn, since the peer is timed on the first ones.
    """
    data = open_data(config)
    fields = data.tables.fields
    starts = np.cumsum([0, *(field.size for field in fields)])[:-1]
    first = np.cumsum([0, *(field.slots for field in fields)])[:-1]
    names = [field.name for field in fields]
    place = names.index("scenario_id")
    arrays: dict[str, Any] = {"sizes": np.array([f.size - (f.name == "scenario_id") for f in fields])}
    for part in ("train", "valid", "test"):
        rows, _ = next(data.rows(part).batches(1 << 62, seed=1))
        numbers = data.tables.slots(*rows[:3], rows.context_BC).numpy()[:, first] - starts
        numbers[:, place] -= 1  # no row has scenario 0, the unknown one
        arrays |= {f"{part}_x": numbers, f"{part}_y": rows.label_B.numpy()}
    names[place] = "domain_indicator"
    np.savez(file, names=np.array(names), ids=np.array(["user_id", "item_id"]), **arrays)
    return file


def run_peer(python: str, peer: str, arrays: Path, **job: Any) -> dict[str, Any]:
    """What `_peer_train.py` prints."""
    whole_job = {"peer": str(Path(peer).absolute()), "arrays": str(arrays), "scenario_as_input": True} | job
    done = subprocess.run([python, str(DRIVER), json.dumps(whole_job)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{python} {DRIVER}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _pythons(options: argparse.Namespace) -> list[str]:
    return options.peer_python or [sys.executable]


# --- against the peer and the ceiling ----------------------------------------------------------------------------


def measure_peer(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Rows per CPU-second, a list over rounds: {model: {ours, bare, peers: {versions: {workers: ..}}}}."""
    arrays = in_own_process(export, config_of(options.data, work), work / "rows.npz")
    results: dict[str, Any] = {}
    sizes = [(f"{name}, the peer's size", model, name) for name, model in MODELS.items()]
    sizes += [(f"{name}, our default", model, "") for name, model in OUR_DEFAULTS.items()]
    for _, (label, model, peer) in itertools.product(range(options.rounds), sizes):
        at = results.setdefault(label, {"ours": [], "bare": [], "peers": {}})
        config = config_of(options.data, work, model, epochs=TIMED_EPOCHS)
        at["bare"].append(in_own_process(bare_loop, config))
        at["ours"].append(real_path(config))
        at["bare"].append(in_own_process(bare_loop, config))
        for python, workers in itertools.product(_pythons(options) if options.peer and peer else [], (0, 8)):
            job = {"model": peer, "workers": workers, "rows": options.peer_rows, "score": False}
            run = run_peer(python, options.peer, arrays, **job)
            place = at["peers"].setdefault(f"pandas {run['versions']['pandas']}", {}).setdefault(str(workers), [])
            place.append(run["rows"] / run["cpu_seconds"][0])
        say(f"{label} {at}")
    return results


def bare_loop(config: Config) -> float:
    """Rows per CPU-second of net, loss and optimizer over an epoch of batches that were made before."""
    data = open_data(config)
    batches = [(to_batch(rows, data.tables, None), rows.label_B) for rows, _ in data.rows("train").batches(BATCH, 1)]
    net = data.new_net(config).train()
    optimizer = AdamW(net, config.train)
    precision = choose(config, CPU)
    for batch, label_B in batches[:50]:  # oneDNN compiles for most sizes of groups that come
        step(net, optimizer, batch, label_B, precision)
    start = time.process_time()
    for batch, label_B in batches:
        step(net, optimizer, batch, label_B, precision)
    return sum(len(label_B) for _, label_B in batches) / (time.process_time() - start)


def step(net: RankerNet, optimizer: AdamW, batch: Batch, label_B: torch.Tensor, precision: Precision) -> None:
    optimizer.read(batch)
    with products(precision, CPU):
        logit_B = net(batch)
    loss = F.binary_cross_entropy_with_logits(logit_B, label_B)
    net.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def real_path(config: Config) -> float:
    """Training rows per CPU-second of `train(config)`, summed over its workers: whole epochs with their validation
    rows, metrics, checkpoints and reports. The first epoch is left out, since it pays for imports.
    """
    rows = prepare(config).manifest.files[partitions.file_name("train", 0)].rows
    output, workers = train_with_clock(config)
    storage.remove(output.folder)  # the next round trains it again
    ends = [[mark.end for mark in marks if mark.batch == 0] for marks in workers]
    return rows * (config.train.epochs - 1) / sum(end[-1] - end[0] for end in ends)


def measure_workers(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Rows per CPU-second of all workers together, a list over rounds: {model: {workers: ..}}."""
    results: dict[str, Any] = {}
    for _, (name, model), workers in itertools.product(range(options.rounds), OUR_DEFAULTS.items(), (1, 2)):
        rate = real_path(config_of(options.data, work, model, epochs=TIMED_EPOCHS, workers=workers))
        results.setdefault(name, {}).setdefault(str(workers), []).append(rate)
        say(f"workers {name} {workers} {rate:.0f}")
    return results


# --- number formats ----------------------------------------------------------------------------------------------


def precision_steps(config: Config, rounds: int) -> dict[str, Any]:
    """Milliseconds of a step, a list over rounds: {backbone: {format: ..}}. Formats take turns on the same rows."""
    results: dict[str, Any] = {}
    data = open_data(config)
    chunks = _chunks(data.rows("train"), 10)
    for name in BACKBONES:
        steppers = {form: _stepper(config, data, {"backbone": name}, "none", form == "bfloat16") for form in FORMATS}
        for number in range(WARM_UP + rounds * 3):
            parts = next(chunks)
            for form, run in steppers.items():
                with _onednn_option(form == ONEDNN):
                    spent = run(parts) * 1000 / len(parts)
                if number >= WARM_UP:
                    results.setdefault(name, {}).setdefault(form, []).append(spent)
        say(f"precision {name} { {form: round(median(v), 1) for form, v in results[name].items()} }")
    return results


@contextlib.contextmanager
def _onednn_option(on: bool) -> Iterator[None]:
    """Float32 products whose factors oneDNN rounds to bfloat16, the weights' gradients too."""
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    if on:
        matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def measure_seeds(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """{model: {format: {valid and test AUC of each seed}}}, all at the default learning rate."""
    results: dict[str, Any] = {}
    for seed, (name, model), form in itertools.product(FIVE_SEEDS, OUR_DEFAULTS.items(), ("float32", "bfloat16")):
        config = config_of(options.data, work, model, precision=form, epochs=EPOCHS)
        run = in_own_process(auc_of, config, seed)
        at = results.setdefault(name, {}).setdefault(form, {"valid": [], "test": []})
        at["valid"].append(max(run["valid_auc"]))
        at["test"].append(run["test_auc"])
        say(f"seeds {name} {form} {at}")
    return results


# --- knowledge ---------------------------------------------------------------------------------------------------


def knowledge_steps(config: Config, rounds: int) -> dict[str, Any]:
    """Milliseconds of a step, a list over rounds: {backbone: {use: ..}}. All uses take turns on the same rows."""
    results: dict[str, Any] = {}
    data = open_data(config)
    chunks = _chunks(data.rows("train"), 10)
    for name, model in OUR_DEFAULTS.items():
        bfloat16 = choose(config.model_copy(update={"model": ModelConfig(**model)}), CPU) == "bfloat16"
        steppers = {use: _stepper(config, data, model, use, bfloat16) for use in USES}
        for number in range(1 + rounds * 5):
            parts = next(chunks)
            for use, run in steppers.items():
                spent = run(parts) * 1000 / len(parts)
                if number:  # the first turn warms up
                    results.setdefault(name, {}).setdefault(use, []).append(spent)
        say(f"knowledge {name} { {use: round(median(v), 1) for use, v in results[name].items()} }")
    return results


def _chunks(rows: RowReader, batches: int) -> Iterator[list[Rows]]:
    for epoch in itertools.count():
        parts = (part for part, size in rows.batches(BATCH, epoch) if size == BATCH)
        while len(chunk := list(itertools.islice(parts, batches))) == batches:
            yield chunk


def _stepper(
    config: Config, data: Dataset, model: dict[str, Any], use: str, bfloat16: bool
) -> Callable[[list[Rows]], float]:
    """Runs the loop's steps on some rows; gives back CPU-seconds."""
    precision: Precision = "bfloat16" if bfloat16 else "float32"
    level, _, full = use.partition(", ")
    settings = config.model.model_copy(update=model | {"knowledge": level} | ({"meta_rank": 0} if full else {}))
    config = config.model_copy(update={"model": settings})
    dataset = replace(data, knowledge=None if level == "none" else _random_knowledge(data.tables))
    net = dataset.new_net(config).train()
    optimizer = AdamW(net, config.train)

    def run(parts: list[Rows]) -> float:
        start = time.process_time()
        for rows in parts:
            batch = dataset.batch(rows, net)
            slots_BS = net.embedding.hide(batch.slots_BS, config.train.id_dropout)
            step(net, optimizer, batch._replace(slots_BS=slots_BS), rows.label_B, precision)
        return time.process_time() - start

    return run


def _random_knowledge(tables: FeatureTables) -> KnowledgeStore:
    rng = np.random.default_rng(0)
    users, scenarios = (
        rng.standard_normal((rows, KNOWLEDGE_WIDTH), np.float32).astype(np.float16)
        for rows in (len(tables.users), tables.scenarios)
    )
    return KnowledgeStore.in_memory(users, np.arange(len(users)) > 0, scenarios)


# --- memory ------------------------------------------------------------------------------------------------------


def measure_memory(work: Path) -> list[dict[str, Any]]:
    """Peak resident MiB before and after an epoch, for growing training rows."""
    cases = [(rows, 10**5) for rows in GENERATED_ROWS] + [(GENERATED_ROWS[-1], 10**6)]
    results = []
    for rows, valid in cases:
        folder = work / "generated"
        storage.remove(storage.path(folder))
        in_own_process(write_rows, folder, {"train": rows, "valid": valid}, USERS, ITEMS)
        before, after = in_own_process(peak_of_epoch, folder)
        results.append({"rows": rows, "valid": valid, "before": before, "after": after})
        say(f"memory {results[-1]}")
    return results


def peak_of_epoch(folder: Path) -> tuple[int, int]:
    """Peak resident MiB after one step, to which torch's own memory belongs, and after an epoch."""
    torch.set_num_threads(1)
    data = open_dataset(folder, USERS, ITEMS)
    config = config_of("generated", folder, MODELS["mmoe"] | {"embedding_dim": 8}, epochs=1)
    net = data.new_net(config)
    optimizer = AdamW(net, config.train)
    rows = next(data.rows("valid").in_file_order(BATCH))
    step(net, optimizer, to_batch(rows, data.tables, None), rows.label_B, choose(config, CPU))
    before = peak_memory()
    fit(config, data)
    return before >> 20, peak_memory() >> 20


if __name__ == "__main__":
    main()
