"""Training-serving skew: what a log of requests says was served, and what the trained net makes of the same requests.

The run's own files say what a user's features should have been, and torch, with the net as it was trained, what the
scores should, given what serving read. What the run cannot know is not compared: features of the request, events that
came after the bundle, in requests or to the endpoint, and codes of a refresh.

Shape suffixes: B candidates, K numbers of a code, N events of a past.
"""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from llm4msr import storage
from llm4msr.arrays import strings
from llm4msr.bundle import request_rows
from llm4msr.bundle.self_test import TOLERANCE
from llm4msr.config import Config
from llm4msr.data import partitions
from llm4msr.errors import ConfigError, DataError
from llm4msr.export.as_trained import AsTrained
from llm4msr.export.calibration import calibrate
from llm4msr.export.export import as_trained
from llm4msr.knowledge.forget import ids_to_forget
from llm4msr.model.inputs import Batch
from llm4msr.storage import StageOutput
from llm4msr.training.pasts import PastEvents, Pasts
from llm4msr.training.trained import TrainedModel

CODE_TOLERANCE = 1e-3
"""The most that a number of a code may differ: about two steps of float16 just below 1, the largest there is."""

Row = Mapping[str, Any]
"""Of a log of requests."""


@dataclass
class Difference:
    """How often one thing was served otherwise than it was trained."""

    rows: int = 0
    """That were compared."""
    differ: int = 0
    largest: float | None = None
    """The largest difference, where it has a size."""
    example: str = ""
    """Request id of the first row that differs."""

    def add(self, row: Row, differs: bool, size: float | None = None) -> None:
        """Count a row."""
        self.rows += 1
        self.differ += differs
        self.largest = self.largest if size is None else max(self.largest or 0.0, size)
        if differs and not self.example:
            self.example = str(row["request_id"])


@dataclass
class Skew:
    """What a comparison found."""

    model_version: str
    rows: int = 0
    """Of this model, that were compared."""
    others: int = 0
    """Rows of other models, which were passed over."""
    found: dict[str, Difference] = field(default_factory=dict)
    """By what was compared: `user.` and a feature's name, `code`, `events`, `scores`."""

    def of(self, name: str) -> Difference:
        """What was found of one thing."""
        return self.found.setdefault(name, Difference())


def check(config: Config, model: TrainedModel, bundle: StageOutput, most: int) -> Skew:
    """Compare the newest rows of the log, so many at most, that this bundle of the model answered.

    Raises:
        ConfigError: the config names no log, or the bundle is of another model.
        DataError: the log has no row of this bundle.
        StorageError: a file of the log or of the run is missing or damaged.
    """
    if not config.serve.log.folder:
        raise ConfigError("serve.log.folder is empty: there is no log of requests; set it, and serve")
    if bundle.manifest.inputs.get("train") != model.output.folder.name:
        raise ConfigError(f"{bundle.folder}: made of another training than this config's, {model.output.folder}")
    skew = Skew(bundle.manifest.fingerprint)
    table = _read(config.serve.log.folder, skew, most)
    if not len(table):
        raise DataError(
            f"{config.serve.log.folder}: no request that bundle {skew.model_version} answered, {skew.others} that "
            "others did; serve.bundle names another bundle of the same training"
        )
    calibrated = calibrate(model) if config.export.calibration == "platt" else None
    run = _Run(config, as_trained(model, calibrated))
    for row in run.by_partition(table):
        run.compare(row, skew)
    skew.rows = len(table)
    return skew


def _read(folder: str, skew: Skew, most: int) -> pa.Table:
    """The newest rows of the model."""
    tables, left = [request_rows.SCHEMA.empty_table()], most
    for table in request_rows.read_each(storage.path(folder)):
        mine = table.filter(pc.equal(table["model_version"], pa.scalar(skew.model_version)))
        skew.others += len(table) - len(mine)
        tables.append(mine.slice(max(len(mine) - left, 0)))
        left -= len(tables[-1])
        if not left:
            break
    return pa.concat_tables(tables)


class _Run:
    """The files of the run, looked up by raw ids."""

    def __init__(self, config: Config, trained: AsTrained):
        self._trained, self._data, prepared = trained, trained.data, trained.data.prepared
        self._forget = set(strings(ids_to_forget(config)))
        self._items = _numbers(strings(prepared.table("items.parquet", ["item_id"])["item_id"]))
        self._scenarios = _numbers(self._data.scenario_names)
        self._context = {
            name: _numbers(["", *known]) for name, known in prepared.json("fields.json")["context"].items()
        }
        self._pasts = Pasts(prepared, config.model.past_events, fresh=True)
        self._latest = functools.lru_cache(1)(self._pasts.latest)

    def by_partition(self, table: pa.Table) -> Iterator[dict[str, Any]]:
        """The rows with their `user`, a number; those of a partition of the run follow each other."""
        ids = strings(pc.unique(table["user_id"]))
        known = partitions.find_users(self._data.prepared, [one for one in ids if one not in self._forget])
        user_N = np.array([known.get(one, 0) for one in strings(table["user_id"])])
        for at in np.argsort(user_N, kind="stable").tolist():
            (row,) = table.slice(at, 1).to_pylist()
            yield row | {"user": int(user_N[at])}

    def compare(self, row: Row, skew: Skew) -> None:
        """Count what differs in a row."""
        self._compare_features(row, skew)
        served = self._served_past(row)
        code_K = None if row["code"] is None else torch.tensor(row["code"])
        is_known = row["knowledge_version"] == row["model_version"] and row["history_mode"] == "extend"
        if is_known and row["knowledge"] in ("stored", "none"):
            known = self._known_past(row["user"]) if self._trained.reads_events else None
            if known is not None:
                skew.of("events").add(row, not all(map(np.array_equal, known, served)))
            if self._trained.net.uses_users:
                self._compare_code(row, self._trained.code(self._batch(row, known)), code_K, skew)
        batch = self._batch(row, served)
        batch.slots_BS[:, : len(row["user_slots"])] = torch.tensor(row["user_slots"])
        if code_K is None:
            batch = batch._replace(known_N=torch.zeros_like(batch.known_N))
        score_B = np.array(row["scores"], np.float32)
        size = float(np.abs(self._trained.scores(batch, code_K).numpy() - score_B).max())
        skew.of("scores").add(row, not size <= TOLERANCE, size)

    def _batch(self, row: Row, past: PastEvents | None) -> Batch:
        given = dict(row["context"])
        context_C = torch.tensor([values.get(given.get(name, ""), 0) for name, values in self._context.items()])
        item_B = torch.tensor([self._items.get(item, 0) for item in row["items"]])
        scenario = self._scenarios.get(row["scenario"], 0)
        return self._trained.batch(row["user"], item_B, scenario, context_C.long(), past)

    def _compare_features(self, row: Row, skew: Skew) -> None:
        slots_S = self._data.tables.users.take(np.array([row["user"]]))[0].tolist()
        at = 0
        for one in (one for one in self._data.tables.fields if one.side == "user"):
            here = slice(at, at + one.slots)
            if one.name not in row["told_features"]:
                skew.of(f"user.{one.name}").add(row, slots_S[here] != row["user_slots"][here])
            at += one.slots

    def _compare_code(self, row: Row, code_K: torch.Tensor | None, served_K: torch.Tensor | None, skew: Skew) -> None:
        if code_K is None or served_K is None:
            skew.of("code").add(row, code_K is not served_K)
            return
        size = float((code_K - served_K).abs().max())
        skew.of("code").add(row, not size <= CODE_TOLERANCE, size)

    def _served_past(self, row: Row) -> PastEvents:
        """The events of a row, the latest first, [1, N]."""
        events = row["events"][::-1]
        item_N = [self._items.get(event["item_id"], 0) for event in events]
        scenario_N = [self._scenarios.get(event["scenario"], 0) for event in events]
        return _past(item_N, scenario_N, [event["liked"] for event in events])

    def _known_past(self, user: int) -> PastEvents:
        """What the run knows of a user, as `_served_past` has it."""
        (home,) = partitions.homes(self._data.prepared, np.array([user])).tolist()
        events = self._latest(home).filter(pc.field("user") == user)
        columns = (events[name].to_numpy()[::-1] for name in ("item", "scenario", "label"))
        return _past(*columns)


def _past(item_N: Any, scenario_N: Any, liked_N: Any) -> PastEvents:
    """At least one event; item 0 stands for none."""
    columns = (item_N, scenario_N, np.asarray(liked_N, float) > 0.5) if len(item_N) else np.zeros((3, 1))
    return PastEvents(*(np.asarray(column, np.int32)[None].copy() for column in columns))


def _numbers(names: list[str]) -> dict[str, int]:
    return {name: number for number, name in enumerate(names) if number}
