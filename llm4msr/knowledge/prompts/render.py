"""Rows of the prepared tables rendered with the templates."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from upath import UPath

from llm4msr import schema, storage
from llm4msr.arrays import Column, strings, typed_rows
from llm4msr.config import Config
from llm4msr.data import partitions
from llm4msr.data.catalogue import item_fields
from llm4msr.data.scenarios import MAX_SHARED
from llm4msr.knowledge import snapshots
from llm4msr.knowledge.prompts import templates
from llm4msr.knowledge.prompts.own_text import item_texts, scenario_texts
from llm4msr.knowledge.reader import Reader, SourceName
from llm4msr.schema import PROMPTS, ScenarioStatistics
from llm4msr.storage import StageOutput

TEXT_ROWS = 1 << 13
"""Users whose histories are rendered at once: their titles fit into an Arrow text column, which ends at 2 GiB."""


class Window(NamedTuple):
    """Rows [start, stop) of a partition's `users` or of all `items`, the first row being 0; or all `scenarios`.

    Of `snapshots` those of the users [start, stop).
    """

    kind: str
    start: int = 0
    stop: int = 0
    partition: int = 0

    @property
    def file(self) -> str:
        """Name of the file that holds what is made of these rows."""
        return f"{self.kind}-{self.partition:05d}-{self.start:09d}.parquet"

    @classmethod
    def ranges(cls, kind: str, count: int, rows: int, partition: int = 0) -> "list[Window]":
        """All `count` rows, cut into windows of `rows`."""
        return [cls(kind, start, min(start + rows, count), partition) for start in range(0, count, rows)]


def windows(users: Sequence[int], items: Mapping[str, int], rows: int, histories: int = 1) -> list[Window]:
    """What is read: scenarios, ranges of `rows` of each partition's first `users`, and of the `items` of each kind.

    If more than one of the `histories` of a user is read, also their snapshots, as many users as have so many rows.
    """
    sizes = {"users": rows} | ({snapshots.KIND: math.ceil(rows / histories)} if histories > 1 else {})
    of_users = [
        window
        for kind, size in sizes.items()
        for p, count in enumerate(users)
        for window in Window.ranges(kind, count, size, p)
    ]
    of_items = [window for kind, count in items.items() for window in Window.ranges(kind, count, rows)]
    return [Window("scenarios"), *of_users, *of_items]


def render(window: Window, config: Config, data: StageOutput, scenarios: UPath, reader: Reader) -> pa.Table:
    """id, raw_id and prompt of a window's rows, read from the prepared `data` or the file of `scenarios`."""
    if window.kind == "scenarios":
        rows = storage.read_table(scenarios)
        return plain_scenarios(rows) if reader.own_text else scenario_prompts(rows, config)
    if window.kind == snapshots.KIND:
        most = config.extract.snapshots
        return user_prompts(snapshots.read_histories(data, window.partition, window.start, window.stop, most), config)
    if window.kind != "users":
        rows = slice_rows(data, "items.parquet", window.start + 1, window.stop + 1)  # row 0: the unknown item
        return item_rows(rows, item_fields(data), config, reader.source, reader.own_text)
    histories = partitions.file_name("histories", window.partition)
    return user_prompts(slice_rows(data, histories, window.start, window.stop), config)


def scenario_prompts(scenarios: pa.Table, config: Config) -> pa.Table:
    """id, raw_id and prompt of each scenario in a table of `schema.SCENARIOS`."""
    template = templates.read("scenario", config.extract.scenario_template)
    rows = [row for row in typed_rows(scenarios, ScenarioStatistics) if row["scenario"]]
    names = [row["scenario_id"] for row in rows]
    most = config.extract.max_prompt_tokens
    texts = [templates.scenario_prompt(template, row, _named(row, names), most) for row in rows]
    numbers = pa.array([row["scenario"] for row in rows], pa.int64())
    return _prompts(numbers, pa.array(names, pa.string()), pa.array(texts, pa.string()))


def _named(row: ScenarioStatistics, names: list[str]) -> list[str]:
    """All scenarios as a row's statistics know them: one that came later, with few users, changes no prompt."""
    others = [other["scenario_id"] for other in row["shared_users"]]
    return sorted([row["scenario_id"], *others]) if len(others) < MAX_SHARED else names


def plain_scenarios(scenarios: pa.Table) -> pa.Table:
    """id, raw_id and, as a prompt, what data says of each scenario in a table of `schema.SCENARIOS`."""
    rows = scenarios.filter(pc.greater(scenarios["scenario"], pa.scalar(0)))
    return _prompts(rows["scenario"], rows["scenario_id"], pa.array(scenario_texts(rows), pa.string()))


def user_prompts(histories: pa.Table, config: Config) -> pa.Table:
    """id, raw_id and prompt of each user in a table of `schema.HISTORIES`."""
    template = templates.read("user", config.extract.user_template)
    render_batch = partial(templates.user_prompts, template, titles_per_scenario=config.extract.titles_per_scenario)
    texts = [render_batch(batch["history"]) for batch in histories.to_batches(max_chunksize=TEXT_ROWS)]
    return _prompts(histories["user"], histories["user_id"], pa.chunked_array(texts, pa.string()))


def item_rows(
    items: pa.Table, fields: dict[str, list[str]], config: Config, source: SourceName = "llm", own_text: bool = False
) -> pa.Table:
    """id, raw_id and prompt of each item as a source reads it: in a template, or what data says and nothing else."""
    if own_text and (source == "words" or not config.extract.item_template):
        return _prompts(items["item"], items["item_id"], pa.array(item_texts(items, fields), pa.string()))
    return item_prompts(items, fields, config)


def item_prompts(items: pa.Table, fields: dict[str, list[str]], config: Config) -> pa.Table:
    """id, raw_id and prompt of each item; `fields` are the vocabularies of its features."""
    template = templates.read("item", config.extract.item_template)
    field = schema.category_field(items, fields)
    numbers = items[f"f:{field}"].to_pylist() if field else [[]] * len(items)
    categories = [[fields[field][number - 1] for number in row or ()] if field else [] for row in numbers]
    texts = map(partial(templates.item_prompt, template), strings(items["title"]), categories)
    return _prompts(items["item"], items["item_id"], pa.array(list(texts), pa.string()))


def _prompts(ids: Column, raw_ids: Column, texts: Column) -> pa.Table:
    return pa.Table.from_arrays([ids, raw_ids, texts], PROMPTS.names).cast(PROMPTS)


def trained_items(items: pa.Table) -> int:
    """How many items stand in training rows; they are the first after the unknown one."""
    return int((items["f:item_id"].to_numpy() > 0).sum())


def items_to_read(config: Config, items: pa.Table) -> int:
    """How many of the prepared items are read, the first ones after the unknown one."""
    return len(items) - 1 if config.extract.items == "all" else trained_items(items)


def slice_rows(data: StageOutput, name: str, start: int, stop: int) -> pa.Table:
    """Rows [start, stop) of a Parquet file of an output, decoding only the row groups that hold them.

    They are decoded piece by piece: a row group may hold more text than an Arrow column can, which ends at 2 GiB.
    """
    with data.parquet(name) as parquet:
        sizes = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
        ends = np.cumsum(sizes)
        groups = [i for i in range(len(sizes)) if ends[i] > start and ends[i] - sizes[i] < stop]
        first = int(ends[groups[0]]) - sizes[groups[0]]
        batches = parquet.iter_batches(TEXT_ROWS, groups)
        return pa.Table.from_batches(batches, parquet.schema_arrow).slice(start - first, stop - start)
