"""Does LLM knowledge help every backbone, and is it the knowledge? Data sets x backbones x knowledge x seeds.

    python -m benchmarks.quality --smoke            # one data set, two backbones, two seeds
    python -m benchmarks.quality core               # see GRIDS below
    python -m benchmarks.quality core --sets ml-100k --seeds 3 --trials 2

Every cell (data set, switch, backbone, use of knowledge) is tuned alike: the same trials, one training each, judged
on validation rows. The best trial is trained with every seed, and its best epoch looks at the test rows once.
Runs are Ray tasks of one CPU; each leaves one JSON file, so the same command continues what was interrupted.

Data is looked for below ./data (see benchmarks/configs); prepared rows, knowledge and runs are kept below --root.
"""

import argparse
import itertools
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from upath import UPath

from benchmarks import quality_report
from llm4msr import config, ray_session, storage
from llm4msr.config import Config, ExtractConfig
from llm4msr.errors import ConfigError
from llm4msr.knowledge.store import KnowledgeStore
from llm4msr.pipeline import extract, extracted, prepare, prepared
from llm4msr.progress import say, track
from llm4msr.training import metrics, popularity
from llm4msr.training.dataset import Dataset
from llm4msr.training.loop import fit
from llm4msr.training.metrics import Predictions
from llm4msr.training.scoring import predict

VERSION = 2
DATA_SEED = 0
"""Random splits and negatives are the same for every training seed."""
CONFIGS = Path(__file__).parent / "configs"
PAPER = ("shared_bottom", "omoe", "mmoe", "ple", "aitm", "star")
OTHERS = ("epnet", "ppnet", "m3oe", "hamur", "sarnet", "adasparse")
VARIANTS = ("none", "feature", "user", "both", "shuffled", "random")
"""The grids `items` and `past` add `history`: `both` with pools of random item vectors, what histories bring without
the LLM."""
TRIALS: list[tuple[str, ...]] = [
    (f"train.learning_rate={rate}", f"model.dropout={dropout}")
    for dropout, rate in itertools.product((0.1, 0.3), (1e-3, 3e-3))
]
SWITCHES = {
    "default": (),
    "rank 4": ("model.meta_rank=4",),
    "rank 16": ("model.meta_rank=16",),
    "full rank": ("model.meta_rank=0",),
    "two meta layers": ("model.meta_layers=2",),
    "no residual": ("model.meta_residual=false",),
    "gate": ("model.fusion=gate",),
    "concat": ("model.fusion=concat",),
    "code 8": ("model.code_dim=8",),
    "code 64": ("model.code_dim=64",),
    "no knowledge dropout": ("model.knowledge_dropout=0",),
    "knowledge dropout 0.3": ("model.knowledge_dropout=0.3",),
    "history share 0.5": ("split.history_share=0.5",),
    "items read": ("extract.reads=items",),
    "points in time": ("extract.reads=items", "extract.point_in_time=true"),
}


@dataclass(frozen=True)
class Grid:
    """What is compared with what."""

    sets: tuple[str, ...]
    backbones: tuple[str, ...]
    variants: tuple[str, ...]
    seeds: int
    switches: dict[str, tuple[str, ...]] = field(default_factory=lambda: {"": ()})
    overrides: tuple[str, ...] = ()


GRIDS = {
    "core": Grid(("ml-100k", "ml-1m", "beauty"), (*PAPER, "single"), VARIANTS, 5),
    "items": Grid(
        ("ml-100k", "ml-1m"), (*PAPER, "single"), (*VARIANTS, "history"), 5, overrides=("extract.reads=items",)
    ),
    "past": Grid(
        ("ml-100k", "ml-1m", "beauty"),
        (*PAPER, "single"),
        (*VARIANTS, "history"),
        5,
        overrides=("extract.reads=items", "extract.point_in_time=true"),
    ),
    "others": Grid(("beauty",), OTHERS, ("none", "both", "shuffled"), 3),
    "plain": Grid(("ml-1m-age",), (*PAPER, "single", *OTHERS), ("none",), 1),
    "ablation": Grid(("ml-100k",), ("mmoe",), ("none", "both"), 5, SWITCHES),
    "smoke": Grid(
        ("ml-100k",), ("shared_bottom", "mmoe"), ("none", "both", "shuffled"), 2, overrides=("extract.max_users=200",)
    ),
}


@dataclass(frozen=True)
class Cell:
    """One system on one data set."""

    data: str
    switch: str
    backbone: str
    variant: str
    config: Config

    @property
    def names(self) -> dict[str, str]:
        """Its place in the table of runs."""
        return {"data": self.data, "switch": self.switch, "backbone": self.backbone, "variant": self.variant}


Job = tuple[Cell, Config, bool]
"""A cell, the config of one training of it, and whether the test rows are looked at."""


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", choices=list(GRIDS), nargs="?", default="smoke")
    parser.add_argument("--smoke", action="store_true", help="the same as the grid 'smoke'")
    parser.add_argument("--sets", nargs="+", metavar="NAME", help="only these data sets of the grid")
    parser.add_argument("--backbones", nargs="+", metavar="NAME", help="only these backbones of the grid")
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
        sets=tuple(options.sets or grid.sets),
        backbones=tuple(options.backbones or grid.backbones),
        overrides=(*grid.overrides, *options.set),
    )
    cells = list(cells_of(grid, options.root))
    _prepare_inputs(cells)
    tuned = _tune(cells, TRIALS[: options.trials] or [()], options.root)
    jobs = [[(cell, trial.model_copy(update={"seed": seed}), True) for cell, trial in tuned] for seed in seeds]
    if options.finished:
        jobs = [of_seed for of_seed in jobs if all(file.exists() for file in _files(of_seed, options.root))]
        seeds = seeds[: len(jobs)]
    runs = _run_all(list(itertools.chain(*jobs)), options.root, "train and test")
    chosen = [f"--{option} {' '.join(names)}" for option in ("sets", "backbones") if (names := vars(options)[option])]
    chosen += [f"--set {setting}" for setting in options.set]
    chosen.append(f"--seeds {len(seeds)} --trials {options.trials}")
    command = " ".join(["python -m benchmarks.quality", name, *chosen])
    title = "-".join(["quality", name, *(options.sets or [])])
    about = {data: description_of(data) for data in grid.sets}
    quality_report.write(options.results, title, runs, command, options.trials, about, _baselines(cells))


def cells_of(grid: Grid, root: str) -> Iterable[Cell]:
    for data, backbone, (switch, settings) in itertools.product(grid.sets, grid.backbones, grid.switches.items()):
        common = [f"storage={root}/{data}", f"model.backbone={backbone}", *grid.overrides]
        for variant in grid.variants:
            if variant == "none" and switch not in ("", "default"):
                continue  # a switch of the meta layers has no plain form
            control = ("extract.item_vectors=random",) if variant == "history" else ()
            loaded = config.load(str(CONFIGS / f"{data}.toml"), [*common, *settings, *control])
            use = "both" if variant == "history" else variant
            yield Cell(data, switch, backbone, variant, loaded.using(use, DATA_SEED))


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


def description_of(data: str) -> str:
    """The comment that its config begins with."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), (CONFIGS / f"{data}.toml").read_text().splitlines())
    return " ".join(line.lstrip("# ") for line in lines)


def _prepare_inputs(cells: list[Cell]) -> None:
    """Prepare each data set once, and ask the LLM where a cell uses knowledge; what is finished is found."""
    ready = set()
    for cell in cells:
        needs = (cell.data, cell.config.split, cell.config.extract, cell.variant != "none")
        if str(needs) in ready:
            continue
        ready.add(str(needs))
        say(f"{cell.data}: {prepare(cell.config).folder}")
        if cell.variant != "none":
            say(f"{cell.data}: {extract(cell.config).folder}")


def _tune(cells: list[Cell], trials: list[tuple[str, ...]], root: str) -> list[tuple[Cell, Config]]:
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


def run_key(run: Config, test: bool) -> str:
    """Names a run by all settings that decide its outcome and are not the default; so a plain backbone is the same run
    in every grid, and a new switch leaves the runs without it what they are."""
    same: dict[str, Any] = dict.fromkeys(("name", "storage", "evaluate", "explain", "serve"), True)
    same |= {"train": {"workers", "device", "checkpoint_batches"}}
    if not run.model.uses_knowledge:
        same |= {"extract": set(ExtractConfig.model_fields) - {"max_users"}}  # which decides the users of `read_auc`
    return storage.digest_json([VERSION, test, run.model_dump(exclude=same, exclude_defaults=True)])[:16]


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
        scored = predict(net, data, data.rows("test"), run.train.batch_size)
        result |= _test_metrics(scored, source, data)
    storage.write_bytes(UPath(file), json.dumps(result).encode())
    return f"{run.name} {run.model.backbone} {run.model.variant} seed {run.seed}"


def _test_metrics(scored: Predictions, source: Config, data: Dataset) -> dict[str, Any]:
    """AUC, GAUC and logloss of all test rows; AUC of each scenario, and of the users whom the LLM read."""
    report = metrics.report(scored, data.scenario_names)
    result: dict[str, Any] = {f"test_{name}": value for name, value in report["overall"].items()}
    result["scenario_auc"] = {one["scenario_id"]: one["auc"] for one in report["scenarios"]}
    try:
        store = KnowledgeStore.open(extracted(source), data.prepared)
    except ConfigError:  # no knowledge of this data set was extracted
        return result
    read = store.known(scored.user)
    return result | {"read_auc": metrics.auc(scored.label[read], scored.logit[read]), "read_rows": int(read.sum())}


if __name__ == "__main__":
    main()
