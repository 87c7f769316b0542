"""Which items are ranked for a user, in the report and in the explorer, and what the user liked before."""

from typing import TypedDict

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from llm4msr.arrays import Floats, Ints
from llm4msr.data import partitions
from llm4msr.explain.finished_run import FinishedRun

CANDIDATES = 60
"""Items that are ranked for a user."""


class ScenarioLikes(TypedDict):
    """Titles that a user liked in one scenario, oldest first."""

    scenario_id: str
    titles: list[str]


def frequent_items(run: FinishedRun) -> pd.DataFrame:
    """`scenario`, `item` and `rows` (of training), the most frequent items first."""
    counts = run.train.groupby(["scenario", "item"]).size().reset_index(name="rows")
    return counts.sort_values(["rows", "item"], ascending=[False, True])


def choose_candidates(run: FinishedRun, frequent: pd.DataFrame, user: int, scenario: int) -> Ints:
    """At most `CANDIDATES` item numbers: those of the user's test rows in the scenario, then its most frequent items
    that are new to the user, whose partition the run holds."""
    tested = run.test["item"][(run.test["user"] == user) & (run.test["scenario"] == scenario)].unique()
    met = set(run.train["item"][run.train["user"] == user]) | set(tested)
    fresh = frequent["item"][(frequent["scenario"] == scenario) & ~frequent["item"].isin(met)]
    return np.concatenate([tested, fresh.to_numpy()])[:CANDIDATES].astype(np.int64)


def first_test_event(run: FinishedRun, user: int, scenario: int) -> int | None:
    """The event of the first of the user's test rows in the scenario; None without any.

    A list is made from what was before it: what came after would tell what was held out.
    """
    events = run.test["event"][(run.test["user"] == user) & (run.test["scenario"] == scenario)]
    return int(events.min()) if len(events) else None


def test_labels(run: FinishedRun, user: int, scenario: int, items: Ints) -> Floats:
    """[B]: the labels of the items in the user's test rows of the scenario, NaN for an item that is in none."""
    rows = run.test[(run.test["user"] == user) & (run.test["scenario"] == scenario)]
    return rows.groupby("item")["label"].max().reindex(items).to_numpy(np.float64)


def ranks(logit_B: Floats) -> Ints:
    """[B]: from 1, the highest logit first; ties in the given order."""
    ranks = np.empty(len(logit_B), np.int64)
    ranks[np.argsort(-logit_B, kind="stable")] = np.arange(1, len(logit_B) + 1)
    return ranks


def main_scenario(run: FinishedRun, user: int) -> int:
    """The scenario with most of the user's test rows, else of the training rows, else the largest scenario."""
    tested = run.test["scenario"][(run.test["user"] == user) & (run.test["scenario"] > 0)]
    if len(tested):
        return int(tested.value_counts(sort=True).index[0])
    main = int(run.users["main"].loc[user])
    return main or 1 + int(np.argmax([row["interactions"] for row in run.scenarios]))


def histories(run: FinishedRun, ids: Ints) -> dict[int, list[ScenarioLikes]]:
    """What each of these users liked, by user number; only the partitions that hold them are read."""
    numbers = pa.array(ids)
    found: dict[int, list[ScenarioLikes]] = {}
    for partition in np.unique(partitions.homes(run.prepared, ids)).tolist():
        table = partitions.read(run.prepared, "histories", partition, ["user", "history"])
        for row in table.filter(pc.is_in(table["user"], value_set=numbers)).to_pylist():
            found[row["user"]] = [likes for likes in row["history"] if likes["titles"]]
    return found
