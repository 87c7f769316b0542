"""Does the order in which rows train matter, and is it random enough where a file holds more rows than a window?

    python -m benchmarks.training_order

Made-up data with skewed items and one negative drawn for each positive, in two sizes, prepared as any other data. Each
size is trained in two orders by several seeds (each kept below `--work`, so an interrupted run goes on):

    1.3 million rows   as they are read, and as they would be read if `prepare` did not mix them: positives, then
                       negatives
    3 million rows     as they are read, and in a random order of all rows at once

Item popularity within the scenario stands beside them. Writes benchmarks/results/training-order.md.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from upath import UPath

from benchmarks._machine import describe
from llm4msr import Config, schema, storage
from llm4msr.arrays import Ints
from llm4msr.data import partitions
from llm4msr.pipeline import prepare
from llm4msr.storage import StageOutput, StageResult
from llm4msr.training import metrics, popularity
from llm4msr.training.batches import RowReader
from llm4msr.training.dataset import Dataset
from llm4msr.training.loop import fit
from llm4msr.training.row_files import Rows
from llm4msr.training.scoring import predict
from llm4msr.training.streams import stream_count

RESULT = Path(__file__).parent / "results" / "training-order.md"
BATCH, EPOCHS = 4096, 5
USERS = {"1.3 million": 81_250, "3 million": 187_500}
"""Ten rows of each, eight of which train; each gets a negative."""
ITEMS, SHELVES, GROUPS, SCENARIOS = 20_000, 40, 200, 2
SORTED, NOW, WHOLE = "sorted", "now", "at once"
ORDERS = {"1.3 million": (SORTED, NOW), "3 million": (NOW, WHOLE)}


def main() -> None:
    options = parser().parse_args()
    torch.set_num_threads(1)
    work = Path(options.work).absolute()
    results: dict[str, Any] = {}
    for size, orders in ORDERS.items():
        seeds = options.seeds if size == "1.3 million" else options.seeds_of_3_million
        prepared = prepare(config_of(work, size))
        results[size] = {"popularity": popularity_auc(prepared), "runs": {order: {} for order in orders}}
        for seed in range(1, seeds + 1):
            for order in orders:
                results[size]["runs"][order][seed] = train(work, size, order, seed, prepared)
    RESULT.write_text(report(results))
    print(RESULT.read_text())


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", default="runs/training-order")
    parser.add_argument("--seeds", type=int, default=8, help="of 1.3 million rows")
    parser.add_argument("--seeds-of-3-million", type=int, default=4)
    return parser


# --- data --------------------------------------------------------------------------------------------------------


def config_of(work: Path, size: str, seed: int = 1) -> Config:
    """A small shared bottom without knowledge; the data are made where they are not there yet."""
    source = work / size.replace(" ", "-")
    if not (source / "interactions.parquet").exists():
        make(source, USERS[size])
    names = {"user": "user", "item": "item", "scenario": "scenario", "order": "time"}
    files = {"interactions": "interactions.parquet", "items": "items.parquet", "users": "users.parquet"}
    features = {"title": "title", "item_features": ["shelf"], "user_features": ["group"]}
    document = {
        "name": "training-order",
        "seed": seed,
        "storage": str(work / "runs"),
        "source": {"kind": "table", "path": str(source), "table": {**files, **names, **features}},
        "split": {"kind": "time", "by": "user", "negatives": 1},
        "model": {"knowledge": "none", "backbone": "shared_bottom", "embedding_dim": 8, "hidden": (32, 16), "tower": 8},
        "train": {"batch_size": BATCH, "epochs": EPOCHS, "patience": EPOCHS, "learning_rate": 2e-3},
    }
    return Config.model_validate(document)


def make(folder: Path, users: int) -> None:
    """Users take items of four shelves that their group likes, the popular ones more often, in either scenario."""
    rng = np.random.default_rng(1)
    folder.mkdir(parents=True, exist_ok=True)
    user, group = np.repeat(np.arange(users), 10), rng.integers(GROUPS, size=users)
    liked = rng.integers(SHELVES, size=(GROUPS, 4))
    shelf = np.where(
        rng.random(len(user)) < 0.8,
        liked[group[user], rng.integers(4, size=len(user))],
        rng.integers(SHELVES, size=len(user)),
    )
    place = (rng.random(len(user)) ** 1.7 * ITEMS / SHELVES).astype(int)  # on its shelf: the first ones more often
    item = place * SHELVES + shelf
    columns = {"user": text(user), "item": text(item), "scenario": text(rng.integers(SCENARIOS, size=len(user)))}
    pq.write_table(pa.table(columns | {"time": pa.array(rng.permutation(len(user)))}), folder / "interactions.parquet")
    numbers = np.arange(ITEMS)
    items = {
        "item": text(numbers),
        "title": pa.array([f"Thing {n}" for n in numbers]),
        "shelf": text(numbers % SHELVES),
    }
    pq.write_table(pa.table(items), folder / "items.parquet")
    pq.write_table(pa.table({"user": text(np.arange(users)), "group": text(group)}), folder / "users.parquet")


def text(numbers: Ints) -> "pa.Array[Any]":
    return pa.array(numbers).cast(pa.string())


def popularity_auc(prepared: StageOutput) -> dict[str, float | None]:
    """AUC of item popularity on validation and test rows."""
    names = [""] * (SCENARIOS + 1)
    parts = ("valid", "test")
    return {part: popularity.reports(prepared, part, names)[popularity.POPULARITY]["overall"]["auc"] for part in parts}


# --- orders ------------------------------------------------------------------------------------------------------


class Counted(RowReader):
    """Counts the batches of one class."""

    of_one_class = 0

    def batches(self, *args: Any, **kwargs: Any) -> Iterator[tuple[Rows, int]]:
        for rows, size in super().batches(*args, **kwargs):
            self.of_one_class += int(rows.label_B.min() == rows.label_B.max())
            yield rows, size


class AtOnce(Counted):
    """All rows in one random order."""

    whole: Rows | None = None

    def batches(self, size: int, seed: int, *args: Any, **kwargs: Any) -> Iterator[tuple[Rows, int]]:
        if self.whole is None:
            columns = zip(*self.in_file_order(BATCH), strict=True)
            self.whole = Rows._make(torch.cat(column) for column in columns)
        mixed = torch.from_numpy(np.random.default_rng(seed).permutation(self.rows))
        for order in mixed.split(size):
            yield Rows._make(column[order] for column in self.whole if column is not None), len(order)


class Ordered(Dataset):
    """Its training rows come in one of the orders."""

    order: str
    train: Counted

    def rows(self, part: str) -> RowReader:
        if part != "train":
            return super().rows(part)
        prepared = sorted_by_label(self.prepared) if self.order == SORTED else self.prepared
        self.train = (AtOnce if self.order == WHOLE else Counted)(prepared, part)
        return self.train


def sorted_by_label(prepared: StageOutput) -> StageOutput:
    """The same training rows in another output: positives, then negatives."""
    folder, name = prepared.folder.with_name(f"{prepared.folder.name}-sorted"), partitions.file_name("train", 0)

    def build(at: UPath) -> StageResult:
        rows = prepared.table(name).sort_by([("label", "descending")])
        return StageResult(files={name: storage.write_table(at / name, rows, schema.TRAIN_GROUP_ROWS)}, rows=len(rows))

    return storage.publish(folder, "prepare", 1, {}, {}, build)


def train(work: Path, size: str, order: str, seed: int, prepared: StageOutput) -> dict[str, Any]:
    """Validation AUC of each epoch, test AUC and logloss of the best one, and batches of one class."""
    file = work / "found" / f"{size}-{order}-{seed}.json".replace(" ", "-")
    if not file.exists():
        config, begun = config_of(work, size, seed), time.process_time()
        data = Ordered(**vars(Dataset.open(config, prepared, None)))
        data.order = order
        last = fit(config, data)
        net = data.new_net(config)
        net.load_state_dict(last.best)
        scored = predict(net, data, data.rows("test"), BATCH)
        results = {
            "valid": [epoch["valid_auc"] for epoch in last.progress.history],
            "test": metrics.auc(scored.label, scored.logit),
            "logloss": metrics.logloss(scored.label, scored.logit),
            "of_one_class": data.train.of_one_class,
            "rows": data.train.rows,
            "cpu_seconds": time.process_time() - begun,
        }
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(results))
        print(f"{time.strftime('%H:%M:%S')} {file.name} {results}", flush=True)
    kept: dict[str, Any] = json.loads(file.read_text())
    return kept


# --- report ------------------------------------------------------------------------------------------------------


def report(results: dict[str, Any]) -> str:
    """The page of results."""
    small, large = results["1.3 million"], results["3 million"]
    rows = {size: next(iter(one["runs"][NOW].values()))["rows"] for size, one in results.items()}
    differences = [
        now["test"] - whole["test"]
        for now, whole in zip(large["runs"][NOW].values(), large["runs"][WHOLE].values(), strict=True)
    ]
    error = stdev(differences) / len(differences) ** 0.5
    seconds = sum(
        run["cpu_seconds"] for one in results.values() for runs in one["runs"].values() for run in runs.values()
    )
    return f"""# The order of training rows

Made-up data: {SCENARIOS} scenarios, {ITEMS:,} skewed items on {SHELVES} shelves, ten interactions of each user, one
negative drawn for each; split by time within the user. A small shared bottom without knowledge (embeddings of 8, hidden
32 and 16), batches of {BATCH:,}, {EPOCHS} epochs, learning rate 0.002. All of a size train on the same rows; seeds
change the first weights and the order. Row groups have {schema.TRAIN_GROUP_ROWS:,} rows; {stream_count(BATCH)} streams
hold one each, and give its rows in random order.

## {rows["1.3 million"]:,} rows: as prepared, or one class after the other

`now`: rows are prepared in random order. `sorted`: the file has the positives first, then the negatives, so that a row
group holds one class, and streams mix whole row groups alone. AUC of the validation rows after each epoch; test rows
once, with the best epoch's weights. (Before November 2026 such a file was read in windows that could hold one class:
test AUC .65, below item popularity.)

{table(small)}

## {rows["3 million"]:,} rows: streams, or all rows at once

`at once` holds all rows in memory and shuffles them as one.

{table(large)}

Test AUC in streams less that of all rows at once, seed by seed: {", ".join(f"{d:+.4f}" for d in differences)}; mean
{mean(differences):+.4f} ± {error:.4f} (standard error). Seeds of all rows at once alone differ by
{stdev(run["test"] for run in large["runs"][WHOLE].values()):.4f} (standard deviation).

`python -m benchmarks.training_order` on {describe(("torch", "numpy", "pyarrow"))}, one thread;
{seconds / 60:.0f} CPU-minutes for the trainings.
"""


def table(results: dict[str, Any]) -> str:
    """A line for each order and seed, the means of each order, and popularity."""
    epochs = [f"epoch {epoch + 1}" for epoch in range(EPOCHS)]
    lines = [["order", "seed", *epochs, "test AUC", "test logloss", "batches of one class"]]
    lines.append(["---", *["---:"] * (len(lines[0]) - 1)])
    for order, runs in results["runs"].items():
        lines += [[order, str(seed), *shown(run)] for seed, run in runs.items()]
        means = {key: mean(run[key] for run in runs.values()) for key in ("test", "logloss", "of_one_class")}
        means["valid"] = [mean(aucs) for aucs in zip(*(run["valid"] for run in runs.values()), strict=True)]
        lines.append([f"**{order}**", "**mean**", *shown(means)])
    popularity_auc = results["popularity"]
    lines.append(
        ["item popularity", "", *[f"{popularity_auc['valid']:.4f}"] * EPOCHS, f"{popularity_auc['test']:.4f}", "", ""]
    )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def shown(run: dict[str, Any]) -> list[str]:
    """Cells of a line."""
    aucs = [f"{auc:.4f}" for auc in [*run["valid"], run["test"]]]
    return [*aucs, f"{run['logloss']:.3f}", f"{run['of_one_class']:g}"]


if __name__ == "__main__":
    main()
