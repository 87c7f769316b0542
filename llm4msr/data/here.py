"""Data of one partition, prepared in this process: Ray is neither started nor loaded."""

from typing import NamedTuple

import pyarrow as pa
from upath import UPath

from llm4msr.config import Config
from llm4msr.data import (
    catalogue,
    partition,
    partitions,
    report_counts,
    report_figures,
    scan,
    scenarios,
    split,
    vocabularies,
)
from llm4msr.data.interactions import Interactions
from llm4msr.data.reading.raw_data import RawData, whole
from llm4msr.data.report import DataReport
from llm4msr.data.report_figures import PromptSampler
from llm4msr.errors import DataError
from llm4msr.storage import FileRecord, write_table

Fields = dict[str, dict[str, list[str] | int]]


class Prepared(NamedTuple):
    """The tables to publish, the content of `fields.json`, and what there is to say about the data."""

    tables: dict[str, pa.Table]
    item_fields: dict[str, list[str]]
    fields: Fields
    report: DataReport


class Files(NamedTuple):
    """The same with the tables in files, by name."""

    files: dict[str, FileRecord]
    fields: Fields
    report: DataReport
    segments: tuple[str, ...] = ()
    """Names of the segments of raw rows that they were made of."""


def write(prepared: Prepared, folder: UPath) -> Files:
    """Write the tables below a folder."""
    files = partitions.write(folder, 0, prepared.tables)
    for name in ("items", "scenarios"):
        files[f"{name}.parquet"] = write_table(folder / f"{name}.parquet", prepared.tables[name])
    return Files(files, prepared.fields, prepared.report)


def prepare(raw: RawData, config: Config, sample_prompt: PromptSampler) -> Prepared:
    """All tables.

    Raises:
        DataError: no id is described, or a split is empty.
    """
    every, users = Interactions.from_table(whole(raw.interactions)), raw.read_users()
    rows = split.divide_all(every, config.split, config.seed)
    held = scan.scan(rows, users, report_counts.count_rows(every, rows, users["user_id"] if len(users) else None))
    del every
    described = report_figures.describe(config, held.counts, users["user_id"], held.pairs, raw.items)
    split.require_rows(held.counts.splits, held.counts.orders, config.split)
    require_rest(held.pairs, config)
    least = config.split.min_value_count
    words = (
        {name: catalogue.vocabulary([held.features[name]], least) for name in raw.user_features},
        {name: catalogue.vocabulary([held.contexts[name]], least) for name in raw.context},
    )
    known = vocabularies.build(held.pairs, raw.items, raw.item_features, words, config)
    built = partition.build(rows, users, partition.Place(), known, config)
    tables = built.tables | {"items": known.items, "scenarios": statistics(held.pairs, known, built.sums)}
    sample = sample_prompt(tables, known.item)
    report = report_figures.build(held.counts, described, built.splits, held.pairs, raw.items, known.items, sample)
    return Prepared(tables, known.item, known.fields(held.trained), report)


def require_rest(pairs: scan.Pairs, config: Config) -> None:
    """Refuse histories of all training rows where only a share was wanted.

    Raises:
        DataError: no training row is left that prompts do not hold.
    """
    share = config.split.history_share
    if share < 1 and pairs.past_K.sum() == pairs.train_K.sum():
        raise DataError(f"split.history_share = {share}: prompts hold all training rows; lower it")


def statistics(pairs: scan.Pairs, known: vocabularies.Vocabularies, sums: scenarios.ScenarioSums) -> pa.Table:
    """The table `scenarios`."""
    items = vocabularies.scenario_items(pairs, known)
    words = known.item[known.category] if known.category else []
    return scenarios.scenario_table(known.scenarios, sums, items.count_S, items.titles, words)
