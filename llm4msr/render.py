"""Prompts of shards: rows of the prepared tables rendered with the templates."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from upath import UPath

from llm4msr import prompts, storage
from llm4msr.ask import NOTHING_LIKED
from llm4msr.config import Config
from llm4msr.prepare import item_fields


def shards(config: Config, users: int, items: int) -> list[dict[str, Any]]:
    """What the LLM reads: the scenarios in one shard, then ranges of the most active users, or of all items."""
    e = config.extract
    if e.reads == "items":
        ranges = user_shards(config, items, kind="items") if e.item_vectors == "llm" else []
    else:
        ranges = user_shards(config, users)
    return [{"kind": "scenarios", "start": 0, "stop": 0}, *ranges]


def user_shards(config: Config, rows: int, kind: str = "users") -> list[dict[str, Any]]:
    """Ranges of `rows_per_shard` rows; of users, only the first `max_users`."""
    e = config.extract
    count = min(rows, e.max_users) if e.max_users and kind == "users" else rows
    starts = range(0, count, e.rows_per_shard)
    return [{"kind": kind, "start": at, "stop": min(at + e.rows_per_shard, count)} for at in starts]


def shard_name(shard: Mapping[str, Any]) -> str:
    """Its file."""
    return f"{shard['kind']}-{shard['start']:09d}.parquet"


def render_shard(batch: pa.Table, config: Config, data_uri: str, reads: str) -> pa.Table:
    """The rows of one shard with their prompts: id, raw_id, prompt, fingerprint and error, and the file's name."""
    (shard,) = batch.to_pylist()
    rendered = render(shard, config, storage.path(data_uri))
    columns = {"id": pa.int64(), "raw_id": pa.string(), "prompt": pa.string()}
    table = pa.Table.from_pylist(rendered, pa.schema(list(columns.items())))
    table = table.append_column("fingerprint", pa.array([prompts.fingerprint(r["prompt"], reads) for r in rendered]))
    table = table.append_column("error", pa.array(["" if r["prompt"] else NOTHING_LIKED for r in rendered]))
    return table.append_column("file", pa.array([shard_name(shard)] * len(rendered), pa.string()))


def render(shard: Mapping[str, Any], config: Config, data: UPath) -> list[dict[str, Any]]:
    """Ids and prompts of a shard's rows, read from the prepared `data`."""
    if shard["kind"] == "scenarios":
        return scenario_prompts(storage.read_table(data / "scenarios.parquet"), config)
    if shard["kind"] == "items":
        rows = slice_rows(data / "items.parquet", shard["start"] + 1, shard["stop"] + 1)  # row 0 is the unknown item
        return item_prompts(rows, item_fields(data), config)
    return user_prompts(slice_rows(data / "histories.parquet", shard["start"], shard["stop"]), config)


def scenario_prompts(scenarios: pa.Table, config: Config) -> list[dict[str, Any]]:
    """Id, raw_id and prompt of each scenario in a table of `schema.SCENARIOS`."""
    instruction = prompts.template("scenario", config.extract.scenario_template)
    rows = [row for row in scenarios.to_pylist() if row["scenario"]]
    names = [row["scenario_id"] for row in rows]
    return [
        {
            "id": r["scenario"],
            "raw_id": r["scenario_id"],
            "prompt": prompts.scenario_prompt(instruction, r, names),
        }
        for r in rows
    ]


def user_prompts(histories: pa.Table, config: Config) -> list[dict[str, Any]]:
    """Id, raw_id and prompt of each user in a table of `schema.HISTORIES`."""
    e = config.extract
    instruction = prompts.template("user", e.user_template)
    return [
        {
            "id": row["user"],
            "raw_id": row["user_id"],
            "prompt": prompts.user_prompt(instruction, row["history"], e.titles_per_scenario),
        }
        for row in histories.to_pylist()
    ]


def item_prompts(items: pa.Table, fields: dict[str, list[str]], config: Config) -> list[dict[str, Any]]:
    """Id, raw_id and prompt of each item; `fields` are the vocabularies, of which the first list is shown."""
    instruction = prompts.template("item", config.extract.item_template)
    shown = next((name for name in fields if pa.types.is_list(items.schema.field(f"f:{name}").type)), None)
    numbers = items[f"f:{shown}"].to_pylist() if shown else [[]] * len(items)
    words = [[fields[shown][number - 1] for number in row] if shown else [] for row in numbers]
    columns = (items[name].to_pylist() for name in ("item", "item_id", "title"))
    return [
        {"id": item, "raw_id": raw_id, "prompt": prompts.item_prompt(instruction, title, categories)}
        for item, raw_id, title, categories in zip(*columns, words, strict=True)
    ]


def items_to_read(items: pa.Table) -> int:
    """How many items stand in training rows; they are the first."""
    return int((items["f:item_id"].to_numpy() > 0).sum())


def slice_rows(file: UPath, start: int, stop: int) -> pa.Table:
    """Rows [start, stop) of a Parquet file, reading only the row groups that hold them."""
    with storage.open_parquet(file) as parquet:
        sizes = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
        ends = np.cumsum(sizes)
        groups = [i for i in range(len(sizes)) if ends[i] > start and ends[i] - sizes[i] < stop]
        first = int(ends[groups[0]]) - sizes[groups[0]]
        return parquet.read_row_groups(groups).slice(start - first, stop - start)
