"""The models' scores of the test rows as Parquet, so that anyone can compute a metric of their own from them.

There is a file for each partition of users. A row is a test row: its raw ids, its label, and a logit of each model in
a column that is named after variant and seed. On the way there each model scores each partition, on all of Ray where
there are several; what an interrupted run has scored is not scored again.
"""

import io
import json
import zipfile
from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from upath import UPath

from llm4msr import storage
from llm4msr.arrays import Singles
from llm4msr.data import partitions
from llm4msr.errors import StorageError
from llm4msr.ray_session import run_each
from llm4msr.storage import FileRecord, StageOutput
from llm4msr.training.dataset import Dataset, scenario_names
from llm4msr.training.metrics import Predictions, Report, Sums
from llm4msr.training.partition_tasks import run_partitions
from llm4msr.training.score_counts import ScoreCounts
from llm4msr.training.scoring import predict
from llm4msr.training.trained import TrainedModel

FOLDER, SCORES = "predictions", "scores"
"""Of the published files, and of what is gone when they are."""


class Scored(NamedTuple):
    """A model's scores of a partition's test rows."""

    logit_B: Singles
    known: int
    """Rows of users of whom the model knows something."""
    sums: Sums

    def write(self, file: UPath) -> None:
        """In one piece."""
        data = io.BytesIO()
        sums = np.frombuffer(self.sums.to_bytes(), np.uint8)
        np.savez(data, logit_B=self.logit_B, known=np.asarray(self.known), sums=sums)
        storage.write_bytes(file, data.getvalue())

    @classmethod
    def read(cls, file: UPath) -> "Scored":
        """As it was written; nothing is unpickled.

        Raises:
            StorageError: it is damaged.
        """
        try:
            with np.load(io.BytesIO(storage.read_bytes(file)), allow_pickle=False) as arrays:
                return cls(arrays["logit_B"], int(arrays["known"]), Sums.from_bytes(arrays["sums"].tobytes()))
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile):
            raise StorageError(f"{file}: damaged; delete it and run `llm4msr evaluate` again") from None


def column_of(model: TrainedModel) -> str:
    """The name of a model's scores."""
    return f"{model.variant}-{model.config.seed}"


def score(model: TrainedModel, folder: UPath) -> Iterator[int]:
    """Score the test rows, partition by partition; yields how many partitions are done, as they come."""
    there = storage.files_below(folder)
    files = {n: _file_of(folder, column_of(model), n) for n in range(partitions.count(model.prepared))}
    todo = [n for n, file in files.items() if str(file.relative_to(folder)) not in there]
    if len(todo) < len(files):
        yield len(files) - len(todo)
    gpus = int(model.config.train.device == "gpu")
    for done in run_partitions(_score, len(files), todo, gpus, model=model, folder=str(folder)):
        yield done["partitions"]


def _score(numbers: list[int], model: TrainedModel, folder: str) -> dict[str, Any]:
    for number, data, scored in _predict(model, "test", numbers):
        users = scored.user[scored.user < partitions.rows(model.prepared, "users")]
        known = int(data.knowledge.known(users).sum()) if data.knowledge is not None else 0
        sums = Sums.of(scored, len(data.scenario_names))
        file = _file_of(storage.path(folder), column_of(model), number)
        Scored(scored.logit.astype(np.float32), known, sums).write(file)
    return {"partitions": len(numbers)}


def count_scores(model: TrainedModel, part: str) -> ScoreCounts:
    """Score all rows of `valid` or `test`, partition by partition, and count the logits."""
    total, gpus = partitions.count(model.prepared), int(model.config.train.device == "gpu")
    results = run_partitions(_count_scores, total, gpus=gpus, model=model, part=part)
    return reduce(_add, (Sums.from_bytes(result["sums"]).counts for result in results))


def _count_scores(numbers: list[int], model: TrainedModel, part: str) -> dict[str, Any]:
    names = scenario_names(model.prepared)
    return {"sums": Sums.add(Sums.of(scored, len(names)) for *_, scored in _predict(model, part, numbers)).to_bytes()}


def _add(one: ScoreCounts, other: ScoreCounts) -> ScoreCounts:
    return ScoreCounts.add([one, other])


def _predict(model: TrainedModel, part: str, numbers: list[int]) -> Iterator[tuple[int, Dataset, Predictions]]:
    """Of each of these partitions its number, what the net reads beside rows, and the scored rows."""
    net, data = model.load()
    gpu = model.config.train.device == "gpu" and torch.cuda.is_available()
    net.to("cuda" if gpu else "cpu")
    rows = data.rows(part)
    for number in numbers:
        yield number, data, predict(net, data, rows, model.config.train.batch_size, number)


def reports(models: Sequence[TrainedModel], folder: UPath) -> list[tuple[Report, int]]:
    """Of each model, which has scored all partitions: the metrics, and how many rows are of users it knows."""
    if all(partitions.count(model.prepared) == 1 for model in models):
        return [_report(model, folder) for model in models]
    items = [{"at": at} for at in range(len(models))]
    done = {one["at"]: one for one in run_each(_report_task, items, models=models, folder=str(folder))}
    return [(json.loads(done[at]["report"]), done[at]["known"]) for at in range(len(models))]


def _report_task(batch: pa.Table, models: Sequence[TrainedModel], folder: str) -> pa.Table:
    at: int = batch["at"][0].as_py()
    report, known = _report(models[at], storage.path(folder))
    return pa.Table.from_pylist([{"at": at, "report": json.dumps(report), "known": known}])


def _report(model: TrainedModel, folder: UPath) -> tuple[Report, int]:
    files = [_file_of(folder, column_of(model), n) for n in range(partitions.count(model.prepared))]
    first = Scored.read(files[0])
    sums, known = first.sums, first.known
    for file in files[1:]:
        part = Scored.read(file)
        sums, known = Sums.add([sums, part.sums]), known + part.known
    return sums.report(scenario_names(model.prepared)), known


def write(models: Sequence[TrainedModel], folder: UPath, name: str) -> dict[str, FileRecord]:
    """Write the files of the models, which have scored all partitions of the same prepared data.

    `name` is that of the folder of the files, which is below `folder`; gives back the records by name.
    """
    prepared, columns = models[0].prepared, [column_of(model) for model in models]
    total = partitions.count(prepared)
    done = run_partitions(_write, total, prepared=prepared, columns=columns, folder=str(folder), name=name)
    return {record["file"]: FileRecord.model_validate(record) for one in done for record in one["files"]}


def _write(numbers: list[int], prepared: StageOutput, columns: list[str], folder: str, name: str) -> dict[str, Any]:
    items = prepared.table("items.parquet", ["item_id"])["item_id"]
    scenarios = prepared.table("scenarios.parquet", ["scenario_id"])["scenario_id"]
    files = []
    for number in numbers:
        users = prepared.table(partitions.file_name("users", number), ["user_id"])["user_id"]
        names = ["user", "item", "scenario", "label"]
        rows = prepared.table(partitions.file_name("test", number), names)
        ids = [partitions.local_ids(users, rows["user"]), items.take(rows["item"]), scenarios.take(rows["scenario"])]
        counted = partitions.read(prepared, "test", number, ["user", "event"])
        person = partitions.people(prepared, counted["user"].to_numpy(), counted["event"].to_numpy())
        names = ["user_id", "item_id", "scenario_id", "label", "person"]
        table = pa.table([*ids, rows["label"], pa.array(person)], names)
        for column in columns:
            scored = Scored.read(_file_of(storage.path(folder), column, number))
            table = table.append_column(column, pa.array(scored.logit_B))
        file = partitions.file_name(name, number)
        record = storage.write_table(storage.path(folder) / file, table.combine_chunks())
        files.append({"file": file, **record.model_dump()})
    return {"files": files}


def _file_of(folder: UPath, column: str, partition: int) -> UPath:
    return folder / SCORES / column / f"p={partition:05d}.npz"
