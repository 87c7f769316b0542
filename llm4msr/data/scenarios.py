"""Statistics of the scenarios, for their prompts: all of them from counts, so that thousands of scenarios cost seconds.

Shape suffixes: H rows that may reach a prompt, S scenarios, U users, I items.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import TypedDict

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from scipy import sparse

from llm4msr import schema
from llm4msr.arrays import Ints, strings

MAX_SHARED = 32
"""Other scenarios that a scenario's prompt names: those that share the most users with it."""
MAX_TITLES, MAX_CATEGORIES = 10, 5
_BLOCK = 256
"""Scenarios whose users are compared with those of all others at once."""


def scenario_table(
    names: list[str], past: pd.DataFrame, items: pa.Table, item_H: Ints, fields: dict[str, list[str]]
) -> pa.Table:
    """A row of `schema.SCENARIOS` for the unknown scenario and for each of `names`.

    Args:
        names: the scenarios' ids.
        past: rows that may reach a prompt.
        items: the catalogue's items; `item_H` are the places there of the items of `past`.
        fields: the vocabulary of each field of the items.
    """
    scenario_H = pd.Index(names).get_indexer(pd.Index(past["scenario_id"]))
    label_H = past["label"].to_numpy(np.float64)
    user_H, liked_H = pd.factorize(past["user_id"])[0], label_H > 0.5
    count_SU, count_SI = _counts(names, scenario_H, user_H), _counts(names, scenario_H, item_H)
    rows_S = np.bincount(scenario_H, minlength=len(names))
    liked = _largest(_counts(names, scenario_H[liked_H], item_H[liked_H]), MAX_TITLES)
    columns = {
        "scenario": range(len(names) + 1),
        "scenario_id": ["", *names],
        "interactions": np.r_[0, rows_S],
        "users": np.r_[0, np.diff(count_SU.indptr)],
        "items": np.r_[0, np.diff(count_SI.indptr)],
        "positive_rate": np.r_[0, np.bincount(scenario_H, label_H, len(names)) / np.maximum(rows_S, 1)],
        "shared_users": [[], *_shared_users(names, count_SU)],
        "categories": [[], *_categories(count_SI, items, fields)],
        "titles": [[], *(strings(items["title"].take(places)) for places in liked)],
    }
    return pa.Table.from_pydict(columns, schema.SCENARIOS)


def _counts(names: list[str], scenario_H: Ints, other_H: Ints) -> sparse.csr_array:
    """How often each user (or item) meets each scenario: [S, U or I], int64."""
    shape = (len(names), int(other_H.max(initial=0)) + 1)
    counts = sparse.csr_array((np.ones(len(other_H), np.int64), (scenario_H, other_H)), shape)
    counts.sum_duplicates()
    return counts


def _largest(counts: sparse.csr_array, most: int) -> Iterator[Ints]:
    """Of each row the at most `most` columns with the largest counts; of equal ones the first."""
    for start, end in pairwise(counts.indptr):
        columns = counts.indices[start:end]
        yield columns[np.lexsort((columns, -counts.data[start:end]))[:most]]


class _Shared(TypedDict):
    """The share of a scenario's users who are also users of another one."""

    scenario_id: str
    fraction: float


def _shared_users(names: list[str], count_SU: sparse.csr_array) -> Iterator[list[_Shared]]:
    """Of each scenario the others, by name, that share the most users with it."""
    met_SU = (count_SU > 0).astype(np.int64)
    users_S = np.diff(met_SU.indptr)
    for start in range(0, len(names), _BLOCK):
        both = sparse.csr_array(met_SU[start : start + _BLOCK] @ met_SU.T)
        for scenario, nearest in enumerate(_largest(both, MAX_SHARED + 1), start=start):
            row = both[[scenario - start]]
            count = dict(zip(row.indices.tolist(), row.data.tolist(), strict=True))
            others = range(len(names)) if len(names) <= MAX_SHARED + 1 else sorted(nearest.tolist())
            yield [
                _Shared(scenario_id=names[other], fraction=count.get(other, 0) / max(int(users_S[scenario]), 1))
                for other in others
                if other != scenario
            ][:MAX_SHARED]


def _categories(count_SI: sparse.csr_array, items: pa.Table, fields: dict[str, list[str]]) -> Iterator[list[str]]:
    """Of each scenario the most frequent values of the feature that prompts show."""
    field = schema.category_field(items, fields)
    if field is None:
        yield from ([] for _ in range(count_SI.shape[0]))
        return
    lists = items[f"f:{field}"]
    values = pc.list_flatten(lists).to_numpy()
    ends = np.r_[0, np.cumsum(pc.list_value_length(lists).to_numpy())]
    held = sparse.csr_array((np.ones(len(values), np.int64), values, ends), (len(items), len(fields[field]) + 1))
    for numbers in _largest(sparse.csr_array(count_SI @ held[: count_SI.shape[1]]), MAX_CATEGORIES):
        yield [fields[field][number - 1] for number in numbers]
