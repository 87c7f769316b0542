"""The rows of one partition of users -> its tables. A pure function: it knows neither Ray nor where anything lies.

Shape suffixes: R rows of the partition, H of them that may reach a prompt, U its users, N rows of a table.
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from llm4msr import schema
from llm4msr.arrays import Array, Column, Ints
from llm4msr.config import Config
from llm4msr.data import catalogue, events, histories, negatives, scan, scenarios
from llm4msr.data.histories import Past
from llm4msr.data.negatives import Drawn
from llm4msr.data.report import Split
from llm4msr.data.report_counts import count_split
from llm4msr.data.scenarios import ScenarioSums
from llm4msr.data.split import SPLITS, SplitRows
from llm4msr.data.vocabularies import Vocabularies, number


class Place(NamedTuple):
    """Which partition it is, and the users of earlier partitions: all of them, and those of training rows."""

    partition: int = 0
    users: int = 0
    trained: int = 0


class Partition(NamedTuple):
    """The tables to publish, and what adds up over partitions."""

    tables: dict[str, pa.Table]
    sums: ScenarioSums
    splits: dict[str, Split]


def build(split: SplitRows, described: pa.Table, place: Place, words: Vocabularies, config: Config) -> Partition:
    """The tables of a partition; in them `user`, `seen` and `event` count from its own first row.

    Args:
        split: its rows.
        described: its users as the source describes them.
        place: where its users stand among all.
        words: the numbers of everything else.
        config: the section `split` and the seed.
    """
    rows = split.rows
    users = _users(split, described, place, words)
    user_R = _number_users(rows.user.distinct, users, place)[rows.user.number_R]
    item_R = number(rows.item, words.items["item_id"])
    scenario_R = number(rows.scenario, pa.array(words.scenarios))
    chosen = np.flatnonzero(split.history_R)
    past = Past(user_R, item_R, scenario_R, rows.label_R, rows.order_R).take(chosen)
    liked = histories.build(past, users["user_id"], words.items["title"], words.scenarios)
    seen_R = np.zeros(len(rows), np.int64)
    seen_R[chosen] = liked.place_H + 1
    timed = events.build(rows, split.split_R, user_R, item_R, scenario_R, liked.table["user"].to_numpy())
    drawn = _draw(split, item_R, scenario_R, place, words, config)
    columns: dict[str, Array] = {
        "user": user_R,
        "item": item_R,
        "scenario": scenario_R,
        "label": rows.label_R,
        "seen": seen_R,
        "event": timed.place_R,
    }
    for name, known in words.context.items():
        columns[schema.CONTEXT + name] = number(rows.context[name], pa.array(["", *known]))
    tables = {"users": users, "histories": liked.table, "seen": liked.seen, "events": timed.table}
    splits = {}
    for name, code in SPLITS.items():
        negative = np.flatnonzero(split.split_R[drawn.row_N] == code)
        tables[name] = _rows(columns, np.flatnonzero(split.split_R == code), drawn, negative, place, name)
        splits[name] = count_split(split, name, len(negative))
    category = words.category
    lists = words.items[schema.FEATURE + category] if category else None
    values = len(words.item[category]) + 1 if category else 0
    sums = scenarios.sum_scenarios(past, len(words.scenarios), lists, values)
    return Partition(tables, sums, splits)


def _users(split: SplitRows, described: pa.Table, place: Place, words: Vocabularies) -> pa.Table:
    trained = scan.trained_users(split)
    ids = catalogue.order_ids(trained, described["user_id"])
    theirs = catalogue.describe(described, "user_id", ids)
    first = place.trained + 1
    return catalogue.build("user", ids, len(trained), theirs, words.user, first, unknown=place.partition == 0)


def _number_users(ids: Column, users: pa.Table, place: Place) -> Ints:
    """Places in the partition's `users`; that of the unknown user is so many rows before it as make it number 0."""
    if place.partition == 0:
        return catalogue.number_ids(ids, users["user_id"].slice(1))
    number_U = catalogue.number_ids(ids, users["user_id"]) - 1
    return np.where(number_U < 0, -place.users, number_U)


def _draw(split: SplitRows, item_R: Ints, scenario_R: Ints, place: Place, words: Vocabularies, config: Config) -> Drawn:
    if words.pools is None:
        return Drawn(np.zeros(0, np.int64), np.zeros(0, np.int64))
    user_R, seed = split.rows.user.number_R, [config.seed, place.partition]
    return negatives.draw(user_R, item_R, scenario_R, split.split_R, words.pools, config.split.negatives, seed)


def _rows(columns: dict[str, Array], positive: Ints, drawn: Drawn, negative: Ints, place: Place, name: str) -> pa.Table:
    """A table of rows as they are and of drawn ones; those of `train` in a random order."""
    source_N = np.concatenate([positive, drawn.row_N[negative]])
    item_N = np.concatenate([columns["item"][positive], drawn.item_N[negative]])
    label_N = np.concatenate([columns["label"][positive], np.zeros(len(negative), np.float32)])
    if name == "train":
        order = np.random.default_rng(place.partition).permutation(len(source_N))
        source_N, item_N, label_N = source_N[order], item_N[order], label_N[order]
    rows = {key: values[source_N] for key, values in columns.items()} | {"item": item_N, "label": label_N}
    table = pa.table({key: pa.array(values) for key, values in rows.items()})
    return schema.check(table, schema.INTERACTIONS, name)
