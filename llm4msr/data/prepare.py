"""Raw data -> split rows, vocabularies, statistics and histories. Everything is fitted on training rows only.

The users and items that the source describes in files of their own are all kept, so that a new item with known
features can be ranked; but only those of training rows get an id embedding of their own.

Shape suffix: R rows of the interactions.
"""

import json
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from upath import UPath

from llm4msr import schema, storage
from llm4msr.arrays import Column, Ints, strings
from llm4msr.config import Config
from llm4msr.data import catalogue, histories, partitions, sources, split
from llm4msr.data.reading.raw_data import whole
from llm4msr.data.report import DataReport, report_lines
from llm4msr.data.report_figures import PromptSampler, ReportBuilder, SamplerOpener
from llm4msr.data.report_warnings import find_warnings
from llm4msr.data.scenarios import scenario_table
from llm4msr.errors import ConfigError, DataError
from llm4msr.progress import say
from llm4msr.storage import StageOutput, StageResult

VERSION = 9
SEEN = "seen"
"""A column of ours among those of the source, whose own names have a prefix."""


def prepare(config: Config, open_sampler: SamplerOpener) -> StageOutput:
    """Publish `items`, `scenarios`, `fields.json` and, by partition of users, the tables `partitions.PARTITIONED`.

    The data report goes to standard error and into the manifest; if the output is there already, only its warnings
    are repeated.

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
        lambda at: _build(config, open_sampler, at),
    )
    _print_report(output)
    return output


def _print_report(output: StageOutput) -> None:
    info = output.manifest.info
    for line in [] if output.reused else report_lines(DataReport.model_validate(info["report"])):
        say(line)
    for warning in info.get("warnings", []):
        say(f"warning: {warning}")


def goes_by_seed(config: Config) -> bool:
    """Whether each seed has data of its own: it decides the split of `random` and the negatives, and nothing else."""
    return config.split.kind == "random" or config.split.negatives > 0


def folder(config: Config) -> UPath:
    """Where this config's prepared data lies, or will."""
    seed = config.seed if goes_by_seed(config) else 0
    identity = [VERSION, sources.fingerprint(config.source), config.split.identity(), seed]
    return storage.path(config.root) / "prepare" / storage.digest_json(identity)[:12]


class PromptData(NamedTuple):
    """What prompts are made of: the tables `histories`, `scenarios` and `items`, and the items' fields."""

    tables: dict[str, pa.Table]
    item_fields: dict[str, list[str]]
    warnings: list[str]


def prompt_data(config: Config, open_sampler: SamplerOpener) -> PromptData:
    """Read from the published output, or computed in memory if there is none; writes nothing."""
    output = storage.open_output(folder(config))
    if output is None:
        data = _prepare_tables(config, open_sampler(config))
        return PromptData(data.tables, data.fields["item"], find_warnings(data.report, config))
    tables = {name: output.table(f"{name}.parquet") for name in ("scenarios", "items")}
    tables["histories"] = pa.concat_tables(partitions.read_each(output, "histories"))
    return PromptData(tables, catalogue.item_fields(output), output.manifest.info.get("warnings", []))


def _build(config: Config, open_sampler: SamplerOpener, folder: UPath) -> StageResult:
    data = _prepare_tables(config, open_sampler(config))
    names = {name: partitions.file_name(name, 0) for name in partitions.PARTITIONED}
    files: dict[str, int | storage.FileRecord] = {"fields.json": 1}
    for name, table in data.tables.items():
        file = names.get(name, f"{name}.parquet")
        rows_per_group = schema.TRAIN_GROUP_ROWS if name == "train" else storage.GROUP_ROWS
        files[file] = storage.write_table(folder / file, table, rows_per_group)
    storage.write_bytes(folder / "fields.json", json.dumps(data.fields, ensure_ascii=False).encode())
    counts = {name: table.num_rows for name, table in data.tables.items()}
    info = {"report": data.report.model_dump(), "warnings": find_warnings(data.report, config)}
    return StageResult(files=files, rows=sum(counts[name] for name in split.SPLITS), info=counts | info)


class PreparedTables(NamedTuple):
    """The tables to publish, the vocabulary of each field of each side, and what there is to say about the data."""

    tables: dict[str, pa.Table]
    fields: dict[str, dict[str, list[str]]]
    report: DataReport


def _prepare_tables(config: Config, sample_prompt: PromptSampler) -> PreparedTables:
    raw = sources.read(config.source)
    interactions, raw_users = whole(raw.interactions), whole(raw.users)
    rows = _used_rows(raw, interactions, config)
    report = ReportBuilder(config, interactions, raw_users, raw.items, rows)
    split_R = split.assign(rows, config.split, config.seed)
    history_R = split.history_rows(rows, split_R, config.split)
    train = rows[split_R == split.TRAIN]
    users, user_fields = catalogue.build(raw_users, "user", raw.user_features, train["user_id"])
    items = catalogue.complete_items(raw.items, train)
    items, item_fields = catalogue.build(items, "item", raw.item_features, train["item_id"])
    context_fields = {name: catalogue.vocabulary(train[f"c:{name}"]) for name in raw.context}
    past = rows[history_R]
    user_H, item_H = _dense_ids(past["user_id"], users["user_id"]), _dense_ids(past["item_id"], items["item_id"])
    scenarios = scenario_table(sorted(train["scenario_id"].unique()), past, items, item_H, item_fields)
    liked = histories.history_table(past, user_H, item_H, users, items)
    scenario_H = _dense_ids(past["scenario_id"], scenarios["scenario_id"])
    seen = histories.seen_rows(past, user_H, item_H, scenario_H, liked, users.num_rows)
    tables = {
        "users": schema.check(users, schema.USERS, "users"),
        "items": schema.check(items, schema.ITEMS, "items"),
        "scenarios": schema.check(scenarios, schema.SCENARIOS, "scenarios"),
        "histories": schema.check(liked, schema.HISTORIES, "histories"),
        "seen": schema.check(seen.table, schema.SEEN, "seen"),
    }
    rows[SEEN] = 0
    rows.loc[history_R, SEEN] = seen.place_H + 1
    if config.split.history_share < 1 and history_R[split_R == split.TRAIN].all():
        raise DataError(f"split.history_share = {config.split.history_share}: prompts hold all training rows; lower it")
    negatives = split.draw_negatives(rows, split_R, config.split.negatives, config.seed)
    data_report = report.build(split_R, history_R, negatives.split_N, tables, item_fields, sample_prompt)
    rows, split_R = pd.concat([rows, negatives.rows], ignore_index=True), np.r_[split_R, negatives.split_N]
    for name, code in split.SPLITS.items():
        encoded = _encode(rows[split_R == code], users, items, scenarios, context_fields)
        tables[name] = schema.check(encoded, schema.INTERACTIONS, name)
    tables["train"] = tables["train"].take(np.random.default_rng(0).permutation(tables["train"].num_rows))
    fields = {"user": user_fields, "item": item_fields, "context": context_fields}
    return PreparedTables(tables, fields, data_report)


def _used_rows(raw: sources.RawData, interactions: pa.Table, config: Config) -> pd.DataFrame:
    """The interactions, or the latest of them; in the order of the source."""
    if raw.implicit and not config.split.negatives:
        raise ConfigError("all rows of this source are positives; set split.negatives, such as 4")
    if not raw.implicit and config.split.negatives:
        raise ConfigError("split.negatives is for data without labels; this source gives labels")
    rows = interactions.to_pandas()
    if config.split.latest:
        rows = rows.loc[rows["order"].sort_values(kind="stable").index[-config.split.latest :].sort_values()]
        rows = rows.reset_index(drop=True)
    return rows


def _encode(
    rows: pd.DataFrame, users: pa.Table, items: pa.Table, scenarios: pa.Table, context: dict[str, list[str]]
) -> pa.Table:
    columns: dict[str, Column | Ints] = {
        "user": _dense_ids(rows["user_id"], users["user_id"]),
        "item": _dense_ids(rows["item_id"], items["item_id"]),
        "scenario": _dense_ids(rows["scenario_id"], scenarios["scenario_id"]),
        "label": pa.array(rows["label"], pa.float32()),
        "seen": pa.array(rows[SEEN], pa.int64()),
    }
    columns |= {f"c:{n}": _dense_ids(rows[f"c:{n}"], pa.array(["", *words])) for n, words in context.items()}
    return pa.Table.from_pydict(columns)


def _dense_ids(values: "pd.Series[str]", ids: Column) -> Ints:
    """Place of each value among ids[1:], counted from 1; 0 = not there."""
    return pd.Index(strings(ids)[1:]).get_indexer(pd.Index(values)).astype(np.int64) + 1
