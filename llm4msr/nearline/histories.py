"""What users liked: what the prepared data has, and what an endpoint was told since."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm4msr import schema
from llm4msr.data import partitions
from llm4msr.hashes import hash_ids, numbers_of
from llm4msr.serve.event_log import LoggedEvent
from llm4msr.storage import StageOutput

Liked = dict[str, list[str]]
"""Titles by scenario, the oldest first."""


def read(prepared: StageOutput, user_ids: Sequence[str]) -> dict[str, Liked]:
    """Of the users whom the data has, by their ids; only row groups that hold one are decoded."""
    sought, found = pa.array(user_ids, pa.string()), dict[str, Liked]()
    for partition in np.unique(numbers_of(hash_ids(user_ids), partitions.count(prepared))).tolist():
        name = partitions.file_name("histories", partition)
        with prepared.read_errors(name), prepared.row_groups(name) as file:
            for group in range(file.num_row_groups):
                is_sought = pc.is_in(file.read_row_group(group, ["user_id"])["user_id"], value_set=sought)
                if pc.any(is_sought).as_py():
                    rows = file.read_row_group(group, ["user_id", "history"]).filter(is_sought).to_pylist()
                    found |= {r["user_id"]: {h["scenario_id"]: h["titles"] for h in r["history"]} for r in rows}
    return found


def extend(
    liked: Liked, told: Iterable[LoggedEvent], title_of: Callable[[str], str], scenarios: Sequence[str]
) -> Liked:
    """With what was told since, as far as it was liked and is known; a title that comes again moves to the end.

    Args:
        liked: before.
        told: in any order.
        title_of: an item's title, empty where the item is unknown.
        scenarios: those that are known, in the order of a prompt.
    """
    extended = {scenario: [*liked.get(scenario, ())] for scenario in scenarios}
    for event in sorted(told, key=lambda one: (one.time, one.sequence)):
        title = title_of(event.item_id)
        if event.liked and title and event.scenario in extended:
            titles = extended[event.scenario]
            titles[:] = [*(other for other in titles if other != title), title]
    return {scenario: titles for scenario, titles in extended.items() if titles}


def table(liked: Sequence[Liked]) -> pa.Table:
    """Rows of `schema.HISTORIES`, of which a prompt is made; users are named by their places."""
    histories = [[{"scenario_id": name, "titles": titles} for name, titles in one.items()] for one in liked]
    places = range(len(liked))
    columns = {
        "user": [*places],
        "user_id": [*map(str, places)],
        "interactions": [0] * len(liked),
        "history": histories,
    }
    return pa.Table.from_pydict(columns, schema.HISTORIES)
