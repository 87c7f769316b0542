"""Statistics of the scenarios, for their prompts: all of them from counts, so that thousands of scenarios cost seconds.

Shape suffixes: H rows that may reach a prompt, S scenarios.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy import sparse

from llm4msr import schema
from llm4msr.arrays import Ints

MAX_SHARED = 32
"""Other scenarios that one names, those that share the most users; all of them where there are no more."""
TITLES, CATEGORIES = 10, 5
_BLOCK = 256


def scenario_table(
    names: list[str], past: pd.DataFrame, items: pa.Table, item_H: Ints, fields: dict[str, list[str]]
) -> pa.Table:
    """A row of `schema.SCENARIOS` for each of `names`, from the rows `past`, whose items' numbers are `item_H`."""
    scenario_H = pd.Index(names).get_indexer(past["scenario_id"])
    label_H = past["label"].to_numpy(np.float64)
    user_H, liked_H = pd.factorize(past["user_id"])[0], label_H > 0.5
    members, met = _counts(names, scenario_H, user_H), _counts(names, scenario_H, item_H)
    rows_S, users_S = np.bincount(scenario_H, minlength=len(names)), np.diff(members.indptr)
    positive_S = np.bincount(scenario_H, label_H, len(names)) / np.maximum(rows_S, 1)
    titles = _largest(_counts(names, scenario_H[liked_H], item_H[liked_H]), TITLES)
    columns = zip(names, rows_S, users_S, np.diff(met.indptr), positive_S, titles, strict=True)
    rows = [_unknown()]
    for number, (name, interactions, users, distinct, rate, liked) in enumerate(columns, start=1):
        counts = {"interactions": int(interactions), "users": int(users), "items": int(distinct)}
        shown = items["title"].take(pa.array(liked, pa.int64())).to_pylist()
        rows.append({"scenario": number, "scenario_id": name, **counts, "positive_rate": float(rate), "titles": shown})
    for row, shared, categories in zip(rows[1:], _shared(names, members), _categories(met, items, fields), strict=True):
        row |= {"shared_users": shared, "categories": categories}
    return pa.Table.from_pylist(rows, schema.SCENARIOS)


def _unknown() -> dict[str, Any]:
    numbers = dict.fromkeys(("scenario", "interactions", "users", "items"), 0)
    lists: dict[str, list[Any]] = {"shared_users": [], "categories": [], "titles": []}
    return {**numbers, "scenario_id": "", "positive_rate": 0.0, **lists}


def _counts(names: list[str], scenario_H: Ints, other_H: Ints) -> sparse.csr_array:
    """How often each other thing meets each scenario: [S, others]."""
    shape = (len(names), int(other_H.max(initial=0)) + 1)
    counts = sparse.csr_array((np.ones(len(other_H), np.int64), (scenario_H, other_H)), shape)
    counts.sum_duplicates()
    return counts


def _largest(counts: sparse.csr_array, most: int) -> Iterator[Ints]:
    """Of each row the columns with the largest counts; of equal ones the first."""
    for start, end in pairwise(counts.indptr):
        columns = counts.indices[start:end]
        yield columns[np.lexsort((columns, -counts.data[start:end]))[:most]]


def _shared(names: list[str], members: sparse.csr_array) -> Iterator[list[dict[str, Any]]]:
    """Of each scenario the share of its users who are also users of others, by name."""
    met = (members > 0).astype(np.int64)
    users_S = np.diff(met.indptr)
    for start in range(0, len(names), _BLOCK):
        both = sparse.csr_array(met[start : start + _BLOCK] @ met.T)
        for own, found in enumerate(_largest(both, MAX_SHARED + 1), start=start):
            row = both[[own - start]]
            count = dict(zip(row.indices.tolist(), row.data.tolist(), strict=True))
            others = range(len(names)) if len(names) <= MAX_SHARED + 1 else sorted(found.tolist())
            yield [
                {"scenario_id": names[other], "fraction": count.get(other, 0) / max(int(users_S[own]), 1)}
                for other in others
                if other != own
            ][:MAX_SHARED]


def _categories(met: sparse.csr_array, items: pa.Table, fields: dict[str, list[str]]) -> Iterator[list[str]]:
    """Of each scenario the most frequent values of the feature that prompts show."""
    field = schema.category_field(items, fields)
    if field is None:
        yield from ([] for _ in range(met.shape[0]))
        return
    values = items[f"f:{field}"].combine_chunks()
    ends = values.offsets.to_numpy()
    held = sparse.csr_array(
        (np.ones(ends[-1] - ends[0], np.int64), values.flatten().to_numpy(), ends - ends[0]),
        (len(items), len(fields[field]) + 1),
    )
    for numbers in _largest(sparse.csr_array(met @ held[: met.shape[1]]), CATEGORIES):
        yield [fields[field][number - 1] for number in numbers]
