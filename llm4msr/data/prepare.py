"""Raw data -> split rows, vocabularies, statistics and histories. Everything is fitted on training rows only.

The users and items that the source describes in files of their own are all kept, so that a new item with known
features can be ranked; but only those of training rows get an id embedding of their own.
"""

import json
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from upath import UPath

from llm4msr import schema, storage
from llm4msr.arrays import Ints
from llm4msr.config import Config
from llm4msr.data import catalogue, data_report, data_warnings, histories, sources, split
from llm4msr.data.data_report import DataReport
from llm4msr.data.scenario_table import scenario_table
from llm4msr.data.survey import PromptSample, PromptSampler, Survey
from llm4msr.errors import ConfigError, DataError
from llm4msr.progress import say
from llm4msr.storage import StageOutput, StageResult

VERSION = 8
SEEN = "seen"
"""A column of ours among those of the source, whose own names have a prefix."""


def prepare(config: Config, sampler: PromptSampler) -> StageOutput:
    """Publish `train`, `valid`, `test`, `users`, `items`, `scenarios`, `histories`, `seen` and `fields.json`.

    The data report goes to standard error and into the manifest; of an output that is found, its warnings are told.

    Raises:
        DataError: the source is wrong; the message names file, column and row.
        ConfigError: implicit data without `split.negatives`.
    """
    output = storage.publish(
        folder(config),
        "prepare",
        config.seed,
        config.model_dump(include={"source", "split"}),
        {"source": sources.fingerprint(config.source)},
        lambda at: _build(config, sampler, at),
    )
    _tell(output)
    return output


def _tell(output: StageOutput) -> None:
    info = output.manifest.info
    for line in [] if output.reused else data_report.lines(DataReport.model_validate(info["report"])):
        say(line)
    for warning in info.get("warnings", []):
        say(f"warning: {warning}")


def goes_by_seed(config: Config) -> bool:
    """Whether each seed has data of its own: it decides the split of `random` and the negatives, and nothing else."""
    return config.split.kind == "random" or config.split.negatives > 0


def folder(config: Config) -> UPath:
    """Where this config's prepared data lies, or will."""
    seed = config.seed if goes_by_seed(config) else 0
    wanted = [VERSION, sources.fingerprint(config.source), config.split.identity(), seed]
    return storage.path(config.root) / "prepare" / storage.digest_json(wanted)[:12]


class PromptData(NamedTuple):
    """What prompts are made of: the tables `histories`, `scenarios` and `items`, and the items' fields."""

    tables: dict[str, pa.Table]
    item_fields: dict[str, list[str]]
    warnings: list[str]


def to_ask(config: Config, sampler: PromptSampler) -> PromptData:
    """Found where it was published, else computed in memory; writes nothing."""
    found = storage.open_output(folder(config))
    if found is None:
        made = _made(config, sampler(config))
        return PromptData(made.tables, made.fields["item"], data_warnings.warnings(made.report, config))
    tables = {name: found.table(f"{name}.parquet") for name in ("histories", "scenarios", "items")}
    return PromptData(tables, catalogue.item_fields(found), found.manifest.info.get("warnings", []))


def _build(config: Config, sampler: PromptSampler, folder: UPath) -> StageResult:
    made = _made(config, sampler(config))
    for name, table in made.tables.items():
        storage.write_table(
            folder / f"{name}.parquet", table, schema.TRAIN_GROUP_ROWS if name == "train" else storage.GROUP_ROWS
        )
    storage.write_bytes(folder / "fields.json", json.dumps(made.fields, ensure_ascii=False).encode())
    counts = {name: table.num_rows for name, table in made.tables.items()}
    info = {"report": made.report.model_dump(), "warnings": data_warnings.warnings(made.report, config)}
    files = {f"{name}.parquet": count for name, count in counts.items()} | {"fields.json": 1}
    return StageResult(files=files, rows=sum(counts[name] for name in split.PARTS), info=counts | info)


class Made(NamedTuple):
    """The tables to publish, the vocabulary of each field of each side, and what there is to say about the data."""

    tables: dict[str, pa.Table]
    fields: dict[str, dict[str, list[str]]]
    report: DataReport


def _made(config: Config, sample: PromptSample) -> Made:
    raw = sources.read(config.source)
    if raw.implicit and not config.split.negatives:
        raise ConfigError("all rows of this source are positives; set split.negatives, such as 4")
    if not raw.implicit and config.split.negatives:
        raise ConfigError("split.negatives is for data without labels; this source gives labels")
    rows = raw.interactions.to_pandas()
    if config.split.latest:
        rows = rows.loc[rows["order"].sort_values(kind="stable").index[-config.split.latest :].sort_values()]
        rows = rows.reset_index(drop=True)
    survey = Survey(config, raw, rows)
    part = split.assign(rows, config.split, config.seed)
    history = split.history_rows(rows, part, config.split)
    train = rows[part == split.TRAIN]
    users, user_fields = catalogue.numbered(raw.users, "user", raw.user_features, train["user_id"])
    items, item_fields = catalogue.numbered(catalogue.titled(raw, train), "item", raw.item_features, train["item_id"])
    context_fields = {name: catalogue.vocabulary(train[f"c:{name}"]) for name in raw.context}
    past = rows[history]
    user_H, item_H = _numbers(past["user_id"], users["user_id"]), _numbers(past["item_id"], items["item_id"])
    scenarios = scenario_table(sorted(train["scenario_id"].unique()), past, items, item_H, item_fields)
    lists = histories.histories(past, user_H, item_H, users, items)
    seen = histories.seen(past, user_H, item_H, lists, users.num_rows)
    tables = {
        "users": schema.check(users, schema.USERS, "users"),
        "items": schema.check(items, schema.ITEMS, "items"),
        "scenarios": schema.check(scenarios, schema.SCENARIOS, "scenarios"),
        "histories": schema.check(lists, schema.HISTORIES, "histories"),
        "seen": schema.check(seen.table, schema.SEEN, "seen"),
    }
    rows[SEEN] = 0
    rows.loc[history, SEEN] = seen.place_H + 1
    if config.split.history_share < 1 and history[part == split.TRAIN].all():
        raise DataError(f"split.history_share = {config.split.history_share}: prompts hold all training rows; lower it")
    drawn = split.negatives(rows, part, config.split.negatives, config.seed)
    report = survey.report(part, history, drawn.part, tables, item_fields, sample)
    rows, part = pd.concat([rows, drawn.rows], ignore_index=True), np.concatenate([part, drawn.part])
    for name, code in split.PARTS.items():
        encoded = _encode(rows[part == code], users, items, scenarios, context_fields)
        tables[name] = schema.check(encoded, schema.INTERACTIONS, name)
    tables["train"] = tables["train"].take(np.random.default_rng(0).permutation(tables["train"].num_rows))
    return Made(tables, {"user": user_fields, "item": item_fields, "context": context_fields}, report)


def _encode(
    rows: pd.DataFrame, users: pa.Table, items: pa.Table, scenarios: pa.Table, context: dict[str, list[str]]
) -> pa.Table:
    columns = {
        "user": _numbers(rows["user_id"], users["user_id"]),
        "item": _numbers(rows["item_id"], items["item_id"]),
        "scenario": _numbers(rows["scenario_id"], scenarios["scenario_id"]),
        "label": pa.array(rows["label"], pa.float32()),
        "seen": pa.array(rows[SEEN], pa.int64()),
    }
    return pa.table(
        columns | {f"c:{n}": _numbers(rows[f"c:{n}"], pa.array(["", *values])) for n, values in context.items()}
    )


def _numbers(values: "pd.Series[str]", ids: pa.Array) -> Ints:
    """Place of each value among ids[1:], counted from 1; 0 = not there."""
    return pd.Index(ids.to_pylist()[1:]).get_indexer(values).astype(np.int64) + 1
