"""What is knowledge worth, and is it the knowledge? Data sets x backbones x systems x seeds.

    python -m benchmarks.quality --smoke            # one data set, two backbones, two seeds
    python -m benchmarks.quality grid               # all systems; see quality_grids.py
    python -m benchmarks.quality curve              # gains as users' histories grow longer
    python -m benchmarks.quality readings           # other ways to ask the LLM, by validation rows alone
    python -m benchmarks.quality grid --sets beauty-implicit --backbones mmoe --seeds 2 --trials 2

A system is a form of the model and what its items' vectors come from, such as `user@llm`: see quality_grids. Every
cell (data set, switch, backbone, system) is tuned alike: the same trials, one training each, judged on validation rows.
The best trial is trained with every seed, and its best epoch looks at the test rows once. Runs are Ray tasks of one
CPU; each leaves one JSON file, so the same command continues what was interrupted.

Data is looked for below ./data (see benchmarks/configs); prepared rows, knowledge and runs are kept below --root.
"""

import argparse
import ast
import functools
import itertools
import json
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from upath import UPath

import llm4msr
from benchmarks import quality_report
from benchmarks.quality_grids import DATA_SEED, GRIDS, TRIALS, Cell, Settings, cells_of, description_of, sets_of
from llm4msr import ray_session, storage
from llm4msr.arrays import Bools
from llm4msr.config import Config
from llm4msr.data import partitions
from llm4msr.data.split import TRAIN
from llm4msr.pipeline import extract, extracted, prepare, prepared
from llm4msr.progress import say, track
from llm4msr.storage import StageOutput
from llm4msr.training import metrics, popularity
from llm4msr.training.dataset import Dataset
from llm4msr.training.loop import fit
from llm4msr.training.metrics import Predictions
from llm4msr.training.scoring import predict

Job = tuple[Cell, Config, bool]
"""A cell, the config of one training of it, and whether the test rows are looked at."""


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", choices=list(GRIDS), nargs="?", default="smoke")
    parser.add_argument("--smoke", action="store_true", help="the same as the grid 'smoke'")
    parser.add_argument(
        "--sets",
        nargs="+",
        default=[],
        metavar="NAME",
        help="only these data sets of the grid, or what is cut from them",
    )
    parser.add_argument("--backbones", nargs="+", metavar="NAME", help="only these backbones of the grid")
    parser.add_argument("--systems", nargs="+", metavar="NAME", help="only these systems of the grid")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="for every config, such as extract.max_users=3000",
    )
    parser.add_argument("--seeds", type=int, help="how many; default: the grid's")
    parser.add_argument(
        "--trials", type=int, default=2, help="settings tried for each cell, 0 to 4 (%(default)s); 0 = as configured"
    )
    parser.add_argument("--finished", action="store_true", help="run nothing; report the seeds that all cells have")
    parser.add_argument("--root", default="runs/quality", help="URI that keeps data, knowledge and runs")
    parser.add_argument("--name", help="of the report; default: the grid and its sets")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    return parser


def main() -> None:
    options = parser().parse_args()
    name = "smoke" if options.smoke else options.grid
    grid = GRIDS[name]
    seeds = list(range(1, (options.seeds or grid.seeds) + 1))
    ray_session.connect()
    grid = replace(
        grid,
        sets=sets_of(grid, options.sets),
        backbones=tuple(options.backbones or grid.backbones),
        systems=tuple(options.systems or grid.systems),
        overrides=(*grid.overrides, *options.set),
    )
    cells = list(cells_of(grid, options.root))
    _prepare_inputs(cells)
    tuned = _tune(cells, TRIALS[: options.trials] or [()], options.root)
    test = not grid.validation
    jobs = [[(cell, trial.model_copy(update={"seed": seed}), test) for cell, trial in tuned] for seed in seeds]
    if options.finished:
        jobs = [of_seed for of_seed in jobs if all(file.exists() for file in _files(of_seed, options.root))]
        seeds = seeds[: len(jobs)]
    runs = _run_all(list(itertools.chain(*jobs)), options.root, "train")
    parts = ("sets", "backbones", "systems")
    said = [f"--{part} {' '.join(names)}" for part in parts if (names := vars(options)[part])]
    said += [*(f"--set {setting}" for setting in options.set), f"--seeds {len(seeds)} --trials {options.trials}"]
    said += [f"--name {options.name}"] if options.name else []
    command = " ".join(["python -m benchmarks.quality", name, *said])
    title = options.name or "-".join(["quality", name, *options.sets])
    about = {data: description_of(data) for data in grid.sets}
    if grid.validation:
        quality_report.write_readings(options.results, title, runs, command, about)
    else:
        quality_report.write(options.results, title, runs, command, options.trials, about, _baselines(cells))


def _baselines(cells: list[Cell]) -> quality_report.Baselines:
    """Of each data set, what popularity and a constant have on its test rows."""
    baselines: quality_report.Baselines = {}
    for cell in cells:
        if cell.data not in baselines:
            data = prepared(cell.config)
            names = list(map(str, data.table("scenarios.parquet", ["scenario_id"])["scenario_id"].to_pylist()))
            reports = popularity.reports(data, "test", names)
            baselines[cell.data] = {name: report["overall"] for name, report in reports.items()}
    return baselines


def _prepare_inputs(cells: list[Cell]) -> None:
    """Prepare each data set once, and ask the LLM where a cell uses knowledge; what is finished is found."""
    ready = set()
    for cell in cells:
        uses_knowledge = cell.config.model.uses_knowledge
        needs = (cell.data, cell.config.split, cell.config.extract if uses_knowledge else None)
        if str(needs) in ready:
            continue
        ready.add(str(needs))
        say(f"{cell.data}: {prepare(cell.config).folder}")
        if uses_knowledge:
            say(f"{cell.data}: {extract(cell.config).folder}")


def _tune(cells: list[Cell], trials: list[Settings], root: str) -> list[tuple[Cell, Config]]:
    """Each cell's config with the trial that is best on validation rows."""
    jobs = [(cell, with_settings(cell.config, trial), False) for cell in cells for trial in trials]
    results = _run_all(jobs, root, "tune") if len(trials) > 1 else [{"valid_auc": 0.0} for _ in jobs]
    best = []
    for at, cell in enumerate(cells):
        places = slice(at * len(trials), (at + 1) * len(trials))
        place = int(np.argmax([run["valid_auc"] for run in results[places]]))
        best.append((cell, jobs[places][place][1]))
    return best


def with_settings(base: Config, settings: Iterable[str]) -> Config:
    document = base.model_dump()
    for setting in settings:
        key, value = setting.split("=")
        section, name = key.split(".")
        document[section][name] = json.loads(value)
    return Config.model_validate(document)


def _files(jobs: list[Job], root: str) -> list[UPath]:
    return [storage.path(root) / "runs" / f"{run_key(run, test)}.json" for _, run, test in jobs]


def _run_all(jobs: list[Job], root: str, what: str) -> list[dict[str, Any]]:
    """The results of all jobs in their order; those without a file yet are run."""
    files = _files(jobs, root)
    todo = {str(file): (run, test) for file, (_, run, test) in zip(files, jobs, strict=True) if not file.exists()}
    say(f"{what}: {len(jobs)} runs, {len(todo)} to do")
    pending = [_run.remote(run.model_dump_json(), test, file) for file, (run, test) in todo.items()]
    with track(what, len(todo)) as progress:
        while pending:
            finished, pending = ray.wait(pending)
            progress.advance(1, ray.get(finished[0]))
    results = [json.loads(storage.read_bytes(file)) for file in files]
    return [cell.names | result for (cell, _, _), result in zip(jobs, results, strict=True)]


@functools.cache
def code_version() -> str:
    """A hash of the code that decides what a run gives, comments and docstrings aside."""
    rooms = ("config", "data", "knowledge", "model", "training")
    package = Path(llm4msr.__file__).parent
    trees = [ast.parse(file.read_text()) for room in rooms for file in sorted((package / room).rglob("*.py"))]
    for node in itertools.chain.from_iterable(map(ast.walk, trees)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value.value = None
    return storage.digest(*map(ast.dump, trees))


def run_key(run: Config, test: bool) -> str:
    """Names a run by its code and all settings that decide its outcome: a plain backbone is the same in every grid."""
    same: dict[str, Any] = dict.fromkeys(("name", "storage", "evaluate", "explain", "serve"), True)
    same |= {"train": {"workers", "device", "checkpoint_batches"}}
    if not run.model.uses_knowledge:
        same |= {"extract": True}
    return storage.digest_json([code_version(), test, run.model_dump(exclude=same)])[:16]


@ray.remote(num_cpus=1, max_retries=2)
def _run(config_json: str, test: bool, file: str) -> str:
    """Train once, score validation (or test) rows with the best epoch, and leave the result in `file`."""
    torch.set_num_threads(1)
    run = Config.model_validate_json(config_json)
    start = time.process_time()
    source = run.model_copy(update={"seed": DATA_SEED})
    data = Dataset.open(run, prepared(source), extracted(source) if run.model.uses_knowledge else None)
    fitted = fit(run, data)
    train_seconds = time.process_time() - start
    result = {
        "seed": run.seed,
        "learning_rate": run.train.learning_rate,
        "dropout": run.model.dropout,
        "valid_auc": fitted.progress.best_auc,
        "best_epoch": fitted.progress.best_epoch,
        "epochs": fitted.progress.epoch,
        "train_cpu_seconds": train_seconds,
    }
    if test:
        net = data.new_net(run)
        net.load_state_dict(fitted.best)
        result |= _test_metrics(predict(net, data, data.rows("test"), run.train.batch_size), data)
    storage.write_bytes(UPath(file), json.dumps(result).encode())
    return f"{run.name} {run.model.backbone} {run.model.variant} seed {run.seed}"


def _test_metrics(scored: Predictions, data: Dataset) -> dict[str, Any]:
    """All metrics of all test rows, and the AUC of each slice and of each scenario."""
    report = metrics.report(scored, data.scenario_names)
    result: dict[str, Any] = {f"test_{name}": value for name, value in report["overall"].items()}
    auc = {name: metrics.auc(scored.label[rows], scored.logit[rows]) for name, rows in slices_of(data.prepared).items()}
    return result | {"slice_auc": auc | {one["scenario_id"]: one["auc"] for one in report["scenarios"]}}


def slices_of(data: StageOutput) -> dict[str, Bools]:
    """Test rows whose item (or user) has the fewest training events, a quarter or more where many have equally few;
    and those of users with training events, but none in the row's scenario. Drawn negatives are no events."""
    names = ["user", "item", "scenario"]
    events = pa.concat_tables(partitions.read_each(data, "events", [*names, "split"]))
    past = {name: events[name].to_numpy()[events["split"].to_numpy() == TRAIN] for name in names}
    test = pa.concat_tables(partitions.read_each(data, "test", names))
    rows = {name: test[name].to_numpy() for name in names}
    count = {
        name: np.bincount(past[name], minlength=int(rows[name].max()) + 1)[rows[name]] for name in ("item", "user")
    }
    pair, known = (of["user"] * (1 << 32) + of["scenario"] for of in (rows, past))
    return {
        "cold items": count["item"] <= np.quantile(count["item"], 0.25),
        "cold users": count["user"] <= np.quantile(count["user"], 0.25),
        "new to the scenario": (count["user"] > 0) & ~np.isin(pair, known),
    }


if __name__ == "__main__":
    main()
