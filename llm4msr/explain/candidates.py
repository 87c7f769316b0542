"""Which items are ranked for a user, in the report and in the explorer, and what the user liked before."""

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from llm4msr.arrays import Floats, Ints
from llm4msr.explain.opened_run import Opened

CANDIDATES = 60
"""Items that are ranked for a user: those of the test rows, then the most frequent ones that the user has not met."""


def frequent_items(run: Opened) -> pd.DataFrame:
    """`scenario`, `item` and `rows` (of training), the most frequent items first."""
    counted = run.train.groupby(["scenario", "item"]).size().reset_index(name="rows")
    return counted.sort_values(["rows", "item"], ascending=[False, True])


def candidates(run: Opened, popular: pd.DataFrame, user: int, scenario: int) -> Ints:
    """Item numbers: those of the user's test rows in the scenario, then its most frequent ones that are new to them."""
    tested = run.test["item"][(run.test["user"] == user) & (run.test["scenario"] == scenario)].unique()
    met = set(run.train["item"][run.train["user"] == user]) | set(tested)
    fresh = popular["item"][(popular["scenario"] == scenario) & ~popular["item"].isin(met)]
    return np.concatenate([tested, fresh.to_numpy()])[:CANDIDATES].astype(np.int64)


def ranks(logit_B: Floats) -> Ints:
    """From 1, the highest logit first; ties in the given order."""
    ranks = np.empty(len(logit_B), np.int64)
    ranks[np.argsort(-logit_B, kind="stable")] = np.arange(1, len(logit_B) + 1)
    return ranks


def main_scenario(run: Opened, user: int) -> int:
    """The scenario with most of the user's test rows, else the main one, else the largest."""
    tested = run.test["scenario"][(run.test["user"] == user) & (run.test["scenario"] > 0)]
    if len(tested):
        return int(tested.value_counts(sort=True).index[0])
    main = int(run.users["main"].iloc[user])
    return main or 1 + int(np.argmax([row["interactions"] for row in run.scenarios]))


def histories(run: Opened, ids: Ints) -> dict[int, list[dict[str, Any]]]:
    """By user number, what each of these users liked: `scenario_id` and `titles`, oldest first."""
    wanted = pa.array(ids)
    with run.prepared.parquet("histories.parquet") as parquet:
        users = [parquet.read_row_group(group, ["user"])["user"] for group in range(parquet.num_row_groups)]
        groups = [group for group, there in enumerate(users) if pc.any(pc.is_in(there, value_set=wanted)).as_py()]
        table = parquet.read_row_groups(groups, ["user", "history"])
    rows = table.filter(pc.is_in(table["user"], value_set=wanted)).to_pylist()
    return {row["user"]: [part for part in row["history"] if part["titles"]] for row in rows}
