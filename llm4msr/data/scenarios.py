"""Statistics of the scenarios, for their prompts: all of them from counts, so that thousands of scenarios cost seconds.

Shape suffixes: H rows that may reach a prompt, S scenarios with the unknown one, P pairs of a user and a scenario.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm4msr import schema
from llm4msr.arrays import Column, Ints, in_one_piece
from llm4msr.data.histories import Past
from llm4msr.data.interactions import Keys, count_keys
from llm4msr.schema import SharedUsers

MAX_SHARED = 32
"""Other scenarios that a scenario's prompt names: those that share the most users with it."""
MAX_TITLES, MAX_CATEGORIES = 10, 5
LABEL_UNIT = 1 << 30
"""Labels are summed as whole numbers of this part of 1, so that the sum does not depend on the order of rows."""
_BLOCK = 1 << 22
"""Pairs of scenarios of users that are counted at once."""


class ScenarioSums(NamedTuple):
    """What adds up over partitions."""

    rows_S: Ints
    label_S: Ints
    """In parts of `LABEL_UNIT`."""
    users_S: Ints
    shared: Keys
    """Users that two scenarios share, by the key `one * S + other`."""
    categories: Keys
    """Rows of items that have a value of the feature that prompts show, by `scenario * values + value`."""


def sum_scenarios(past: Past, scenarios: int, categories: "Column | None", values: int) -> ScenarioSums:
    """The sums of a partition.

    Args:
        past: the rows that may reach a prompt.
        scenarios: how many there are, with the unknown one.
        categories: lists of numbers below `values` for each item, or None.
        values: how many different numbers there are.
    """
    part_H = np.rint(past.label_H.astype(np.float64) * LABEL_UNIT).astype(np.int64)
    label_S = np.zeros(scenarios, np.int64)
    np.add.at(label_S, past.scenario_H, part_H)
    users = int(past.user_H.max(initial=0)) + 1
    pair_P = count_keys(past.user_H * scenarios + past.scenario_H, users * scenarios).key_K
    return ScenarioSums(
        np.bincount(past.scenario_H, minlength=scenarios),
        label_S,
        np.bincount(pair_P % scenarios, minlength=scenarios),
        _count_shared(pair_P // scenarios, pair_P % scenarios, scenarios),
        _count_categories(past, categories, values) if categories is not None else NO_KEYS,
    )


NO_KEYS = Keys(np.zeros(0, np.int64), np.zeros(0, np.int64))


def add_sums(one: ScenarioSums, other: ScenarioSums) -> ScenarioSums:
    """The sums of two partitions, or of many of them."""
    return ScenarioSums(
        one.rows_S + other.rows_S,
        one.label_S + other.label_S,
        one.users_S + other.users_S,
        _add_keys(one.shared, other.shared),
        _add_keys(one.categories, other.categories),
    )


def _add_keys(one: Keys, other: Keys) -> Keys:
    key = np.concatenate([one.key_K, other.key_K])
    return count_keys(key, int(key.max(initial=0)) + 1, np.concatenate([one.count_K, other.count_K]))


def _count_shared(user_P: Ints, scenario_P: Ints, scenarios: int) -> Keys:
    """Users who are in both of two scenarios; the pairs come user by user."""
    start_U = np.flatnonzero(np.diff(user_P, prepend=-1))
    size_U = np.diff(start_U, append=len(user_P))
    size_P, start_P = np.repeat(size_U, size_U), np.repeat(start_U, size_U)
    ends = np.cumsum(size_P)
    shared = NO_KEYS
    for block in np.split(np.arange(len(user_P)), np.searchsorted(ends, np.arange(_BLOCK, ends[-1:].sum(), _BLOCK))):
        size = size_P[block]
        first = np.repeat(np.cumsum(size) - size, size)
        other = np.repeat(start_P[block], size) + np.arange(size.sum()) - first
        key = np.repeat(scenario_P[block], size) * scenarios + scenario_P[other]
        shared = _add_keys(shared, count_keys(key, scenarios**2))
    return shared


def _count_categories(past: Past, categories: Column, values: int) -> Keys:
    items = len(categories)
    scenarios = int(past.scenario_H.max(initial=0)) + 1
    pairs = count_keys(past.scenario_H * items + past.item_H, scenarios * items)
    scenario, item = pairs.key_K // items, pairs.key_K % items
    lists = cast("pa.ListArray[Any]", in_one_piece(categories))
    end, length = lists.offsets.to_numpy(), pc.list_value_length(lists).to_numpy()[item]
    first = np.repeat(np.cumsum(length) - length, length)
    held = lists.values.to_numpy()[np.repeat(end[item], length) + np.arange(length.sum()) - first]
    key = np.repeat(scenario, length) * values + held
    return count_keys(key, scenarios * values, np.repeat(pairs.count_K, length))


def scenario_table(
    names: list[str], sums: ScenarioSums, items_S: Ints, titles: list[list[str]], categories: list[str]
) -> pa.Table:
    """A row of `schema.SCENARIOS` for each scenario.

    Args:
        names: the scenarios' ids by number, that of the unknown one first.
        sums: over all partitions.
        items_S: distinct items.
        titles: the titles that are shown.
        categories: the words of the values that `sums` counts; value 1 is the first.
    """
    columns = {
        "scenario": range(len(names)),
        "scenario_id": names,
        "interactions": sums.rows_S,
        "users": sums.users_S,
        "items": items_S,
        "positive_rate": sums.label_S / LABEL_UNIT / np.maximum(sums.rows_S, 1),
        "shared_users": [*_shared_users(names, sums)],
        "categories": [
            [categories[value - 1] for value in value_K[largest(count_K)[:MAX_CATEGORIES]]]
            for value_K, count_K in _of_each(sums.categories, len(names), len(categories) + 1)
        ],
        "titles": titles,
    }
    return pa.Table.from_pydict(columns, schema.SCENARIOS)


def largest(count_N: Ints) -> Ints:
    """Places by falling count; of equal ones the first comes first."""
    return np.argsort(-count_N, kind="stable")


def _of_each(keys: Keys, scenarios: int, others: int) -> Iterator[tuple[Ints, Ints]]:
    """Of each scenario the others and their counts."""
    ends = np.searchsorted(keys.key_K, np.arange(scenarios + 1) * others)
    for start, end in pairwise(ends):
        yield keys.key_K[start:end] % others, keys.count_K[start:end]


def _shared_users(names: list[str], sums: ScenarioSums) -> Iterator[list[SharedUsers]]:
    """Of each scenario the others, by name, that share the most users with it."""
    for scenario, (other, count) in enumerate(_of_each(sums.shared, len(names), len(names))):
        shared = dict(zip(other.tolist(), count.tolist(), strict=True))
        others = [*range(1, len(names))]
        if len(others) > MAX_SHARED + 1:
            others = sorted(other[largest(count)[: MAX_SHARED + 1]].tolist())
        yield [
            SharedUsers(scenario_id=names[o], fraction=shared.get(o, 0) / max(int(sums.users_S[scenario]), 1))
            for o in (others if scenario else ())
            if o != scenario
        ][:MAX_SHARED]
