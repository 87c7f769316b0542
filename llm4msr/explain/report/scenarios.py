"""The scenarios: what the LLM says of them, and how alike they are by their vectors and to users.

Shape suffixes: S known scenarios, Z width of the LLM's vector.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import sparse

from llm4msr.arrays import Floats
from llm4msr.explain.finished_run import FinishedRun
from llm4msr.explain.report.tables import Table
from llm4msr.knowledge.rows import read_texts
from llm4msr.schema import ScenarioStatistics
from llm4msr.text import shorten

VECTORS_MAP = "What the vectors say"
MAX_SHOWN = 10
"""Scenarios in a heat map, the largest; similarity.csv has all."""
MIN_ROWS, MIN_COMMON = 3, 10
"""Rows that a rate needs, and items (or users) with a rate in both scenarios that a correlation needs."""


@dataclass(frozen=True)
class HeatMap:
    """How alike each two scenarios are, -1 to 1 (or 0 to 1); NaN where that is undefined."""

    key: str
    title: str
    note: str
    values_SS: Floats


class ScenarioRow(ScenarioStatistics):
    """A scenario's statistics, and what the LLM says of it; "" where it was not asked."""

    answer: str


@dataclass(frozen=True)
class ScenarioSection:
    """What the page shows."""

    finding: str
    rows: list[ScenarioRow]
    """By scenario number, from 1."""
    maps: list[HeatMap]
    """Those that say something of at least one pair."""
    shown: list[int]
    """Places of the scenarios that the heat maps draw."""

    def tables(self) -> dict[str, Table]:
        """A row per scenario, and a row per pair of scenarios with a column per heat map."""
        columns = ["scenario", "scenario_id", "interactions", "users", "items", "positive_rate", "answer"]
        names = [row["scenario_id"] for row in self.rows]
        pairs = list(itertools.combinations(range(len(names)), 2))
        similarities = {"scenario": [names[a] for a, _ in pairs], "other": [names[b] for _, b in pairs]}
        similarities |= {m.key: [m.values_SS[pair] for pair in pairs] for m in self.maps}
        return {
            "scenarios.csv": Table(
                "the LLM's text on each scenario, and its statistics", pd.DataFrame(self.rows)[columns]
            ),
            "similarity.csv": Table("each pair of scenarios in each heat map", pd.DataFrame(similarities)),
        }


def scenario_section(run: FinishedRun) -> ScenarioSection:
    """Texts and heat maps."""
    texts = read_texts(run.extracted) if run.extracted else []
    answers = {text["raw_id"]: text["answer"] for text in texts}
    rows: list[ScenarioRow] = [{**row, "answer": answers.get(row["scenario_id"], "")} for row in run.scenarios]
    maps = behaviour(run.train, len(rows)) if len(rows) > 1 else []
    if len(rows) > 2 and run.data.knowledge is not None:  # of two, standardised, the cosine is -1 whatever they are
        note = "cosine of the scenarios' vectors, standardised over the scenarios as the model reads them"
        vectors_SZ = run.data.knowledge.scenarios_SZ[1:].astype(np.float64)
        maps.insert(0, HeatMap("knowledge", VECTORS_MAP, note, similar(vectors_SZ)))
    others = ~np.eye(len(rows), dtype=bool)
    maps = [one for one in maps if np.isfinite(one.values_SS[others]).any()]
    shown = sorted(np.argsort([-row["interactions"] for row in rows], kind="stable")[:MAX_SHOWN].tolist())
    finding = _finding([shorten(row["scenario_id"]) for row in rows], maps)
    return ScenarioSection(finding, rows, maps, shown)


def similar(rows_SZ: Floats) -> Floats:
    """[S, S]: cosines of the rows, less their mean and over their deviation."""
    centred_SZ = (rows_SZ - rows_SZ.mean(0)) / (rows_SZ.std(0) + 1e-6)
    length_S = np.linalg.norm(centred_SZ, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((centred_SZ @ centred_SZ.T) / np.outer(length_S, length_S))


def behaviour(train: pd.DataFrame, scenarios: int) -> list[HeatMap]:
    """What users do: how many both scenarios share, and whether the same items are liked in both (else: the same users
    like in both)."""
    pairs = train[["user", "scenario"]].drop_duplicates()
    member = sparse.csr_matrix(
        (np.ones(len(pairs)), (pairs["user"], pairs["scenario"] - 1)), shape=(pairs["user"].max() + 1, scenarios)
    )
    common_SS = (member.T @ member).toarray()
    size_S = common_SS.diagonal()
    shared_SS = common_SS / np.maximum(size_S[:, None] + size_S[None, :] - common_SS, 1)
    shared = HeatMap("shared_users", "Who comes to both", "users of both, as a share of the users of either", shared_SS)
    rates_SS, owners = rates(train, "item", scenarios), "items"
    if np.isnan(rates_SS[~np.eye(scenarios, dtype=bool)]).all():
        rates_SS, owners = rates(train, "user", scenarios), "users"
    note = f"correlation of the {owners}' rates of likes in the two scenarios"
    note += "" if owners == "items" else "; no two scenarios have enough items in common"
    return [shared, HeatMap("rates", "What is liked in both", note, rates_SS)]


def rates(train: pd.DataFrame, by: str, scenarios: int) -> Floats:
    """[S, S]: Pearson correlation, over items (or users) with enough rows in both, of their share of likes."""
    counts = train.groupby([by, "scenario"])["label"].agg(["size", "mean"]).reset_index()
    wide = counts[counts["size"] >= MIN_ROWS].pivot(index=by, columns="scenario", values="mean")
    wide = wide.reindex(columns=range(1, scenarios + 1))
    return np.asarray(wide.corr(min_periods=MIN_COMMON).to_numpy(np.float64))


def _finding(names: list[str], maps: list[HeatMap]) -> str:
    if len(names) < 3:
        return f"There {'is one scenario' if len(names) == 1 else 'are two scenarios'}."
    if not maps or maps[0].title != VECTORS_MAP:
        return f"There are {len(names)} scenarios."
    pairs = list(itertools.combinations(range(len(names)), 2))
    near, far = (choose(pairs, key=lambda pair: maps[0].values_SS[pair]) for choose in (max, min))
    return (
        f"By their vectors, “{names[near[0]]}” and “{names[near[1]]}” are most alike, “{names[far[0]]}” and "
        f"“{names[far[1]]}” least."
    )
