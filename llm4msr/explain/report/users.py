"""The users: a map of their codes, groups of users with similar codes and what is typical of each, and who has
knowledge at all.

Shape suffixes: N users with knowledge, K code width, V items or words.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.metrics import silhouette_score

from llm4msr.arrays import Floats, Ints
from llm4msr.explain.finished_run import FinishedRun
from llm4msr.explain.report.tables import Table
from llm4msr.text import count_of, percent

MAX_POINTS = 1500
"""Users on the map; users.parquet has all."""
MAX_CLUSTERED = 20_000
"""Users who are clustered, and whose texts are read; the others join the nearest group."""
GROUPS = range(3, 8)
MIN_USERS = 30
"""With fewer there are no groups."""
TYPICAL = 6
"""Items and words that are shown of a group."""
LETTERS = "ABCDEFGH"
_NO_CODES = "this model reads no codes of them, so there is no map of codes."


@dataclass(frozen=True)
class Group:
    """Users whose codes lie together."""

    letter: str
    users: int
    main: list[tuple[str, float]]
    """The most frequent main scenarios and their shares."""
    rows: int
    """Median of the users' training rows."""
    items: list[str]
    words: list[str]
    centre: tuple[float, float]
    """Median place on the map."""


class KnowledgeShare(NamedTuple):
    """Who has knowledge, among all users (`scenario` None) or those of one scenario; the columns of knowledge.csv."""

    scenario: int | None
    scenario_id: str
    users: int
    """Of the training rows."""
    known: int
    test_rows: int
    test_rows_of_known: int


@dataclass(frozen=True)
class UserSection:
    """What the page shows; `points` is empty if the model reads no user knowledge."""

    finding: str
    shares: list[KnowledgeShare]
    """Of all users, then of each scenario; empty if the model reads no knowledge."""
    points: pd.DataFrame
    """`user`, `user_id`, `x`, `y`, `main`, `group`, `rows`, of every user with knowledge."""
    sample: Ints
    """Places of the points that the map draws."""
    groups: list[Group] = field(default_factory=list)
    explained: tuple[float, float] = (0.0, 0.0)
    """Share of the codes' variance that each axis shows."""
    by_scenario: float = 0.0
    """Share of the codes' variance that lies between users of different main scenarios."""
    words_from: str = ""

    def tables(self) -> dict[str, Table]:
        """Who has knowledge, and, if the model reads it, the map and the groups."""
        tables = {}
        if self.shares:
            shares = pd.DataFrame(self.shares).astype({"scenario": "Int64"})
            tables["knowledge.csv"] = Table("who has knowledge", shares)
        if self.groups:
            tables["users.parquet"] = Table("the map: every user with knowledge", self.points)
            rows = [
                (group.letter, group.users, group.rows, "; ".join(group.items), " ".join(group.words))
                for group in self.groups
            ]
            columns = ["group", "users", "rows", "items", "words"]
            tables["groups.csv"] = Table("the groups of users", pd.DataFrame(rows, columns=columns))
        return tables


def user_section(run: FinishedRun) -> UserSection:
    """Map, groups and shares."""
    nobody = np.zeros(0, np.int64)
    if run.extracted is None:
        return UserSection("This model reads no knowledge, so there is none of users.", [], pd.DataFrame(), nobody)
    shares = _shares(run)
    ids = np.flatnonzero(run.users["known"].to_numpy())
    coverage = f"{count_of(shares[0].known, shares[0].users)} users have knowledge"
    if not run.net.uses_users:
        return UserSection(f"{coverage}; {_NO_CODES}", shares, pd.DataFrame(), nobody)
    codes_NK = run.codes(ids)
    rng = np.random.default_rng(0)
    pca = PCA(min(2, *codes_NK.shape), random_state=0).fit(codes_NK)
    place_N2 = np.pad(pca.transform(codes_NK), ((0, 0), (0, 2 - pca.n_components_)))
    sample = np.sort(rng.permutation(len(ids))[:MAX_CLUSTERED])
    group_N = _cluster(codes_NK, sample)
    points = run.users.loc[ids, ["user_id", "main", "rows"]].reset_index(names="user")
    points = points.assign(x=place_N2[:, 0], y=place_N2[:, 1], group=group_N)
    texts, words_from = _texts(run, ids[sample])
    items, words = _typical_items(run, ids[sample], group_N[sample]), _typical_words(texts, group_N[sample])
    groups = [
        _group(number, points[group_N == number], run.scenario_names, items[number], words[number])
        for number in range(group_N.max(initial=-1) + 1)
    ]
    between = variance_between(codes_NK, points["main"].to_numpy())
    explained = (*np.nan_to_num(pca.explained_variance_ratio_).tolist(), 0.0)[:2]
    drawn = np.sort(rng.permutation(len(ids))[:MAX_POINTS])
    finding = f"{coverage}. {_describe(groups, between)}"
    return UserSection(finding, shares, points, drawn, groups, explained, between, words_from)


def variance_between(codes_NK: Floats, label_N: Ints) -> float:
    """Share of the codes' variance that lies between the means of the labels [N] (eta squared)."""
    total = ((codes_NK - codes_NK.mean(0)) ** 2).sum()
    counts = np.bincount(label_N)
    sums = np.zeros((len(counts), codes_NK.shape[1]))
    np.add.at(sums, label_N, codes_NK - codes_NK.mean(0))
    used = counts > 0
    return float(((sums[used] ** 2).sum(1) / counts[used]).sum() / total) if total > 0 else 0.0


def distinctive_columns(has_NV: sparse.csr_matrix, group_N: Ints, groups: int, top: int) -> list[list[int]]:
    """Of each group at most `top` columns that its rows have more often than the others'.

    By the z-score of the log odds ratio, 2 at least (Haldane 1956: half a count is added to each cell).
    """
    count_V, total = np.asarray(has_NV.sum(0))[0], len(group_N)
    columns = []
    for number in range(groups):
        inside = group_N == number
        a_V, size = np.asarray(has_NV[inside].sum(0))[0], inside.sum()
        b_V = count_V - a_V
        odds_V = np.log((a_V + 0.5) / (size - a_V + 0.5)) - np.log((b_V + 0.5) / (total - size - b_V + 0.5))
        z_V = odds_V / np.sqrt(1 / (a_V + 0.5) + 1 / (b_V + 0.5))
        best = np.argsort(-z_V, kind="stable")[:top]
        columns.append([int(v) for v in best if z_V[v] >= 2])
    return columns


def _cluster(codes_NK: Floats, sample: Ints) -> Ints:
    """[N]: the group of each user, numbered from the largest; as many groups as give the best silhouette.

    K-means on the sample; Rousseeuw (1987), "Silhouettes".
    """
    if len(codes_NK) < MIN_USERS or len(np.unique(codes_NK, axis=0)) < max(GROUPS):
        return np.zeros(len(codes_NK), np.int64)
    sampled = codes_NK[sample]
    fits = [KMeans(k, n_init=3, random_state=0).fit(sampled) for k in GROUPS]
    size = min(len(sampled), 2000)
    scores = [silhouette_score(sampled, fit.labels_, sample_size=size, random_state=0) for fit in fits]
    labels = fits[int(np.argmax(scores))].predict(codes_NK)
    by_size = np.argsort(-np.bincount(labels), kind="stable")
    return np.asarray(np.argsort(by_size)[labels], np.int64)


def _texts(run: FinishedRun, ids: Ints) -> tuple[list[str], str]:
    """A text per user and its source: the LLM's answers, else its prompts, else the titles that were liked."""
    rows = run.user_texts(ids)
    sources = {"answer": "the LLM's answers", "prompt": "the prompts, as users' answers were not asked"}
    for column, source in sources.items():
        texts = [rows.get(int(user), {}).get(column, "") for user in ids]
        if any(texts):
            return texts, source
    liked = run.train[(run.train["label"] > 0.5) & run.train["user"].isin(ids)]
    titles = run.items["title"].loc[liked["item"]].set_axis(liked["user"]).groupby(level=0).agg(" ".join)
    return titles.reindex(ids, fill_value="").tolist(), "titles that were liked, as the LLM read items, not users"


def _typical_items(run: FinishedRun, ids: Ints, group_N: Ints) -> list[list[str]]:
    """Titles of each group's typical items, among those that were liked, since likes are what the LLM read."""
    liked = run.train[(run.train["label"] > 0.5) & run.train["user"].isin(ids)][["user", "item"]].drop_duplicates()
    row = np.searchsorted(ids, liked["user"])
    has = sparse.csr_matrix((np.ones(len(liked)), (row, liked["item"])), shape=(len(ids), len(run.items)))
    groups = group_N.max(initial=-1) + 1
    return [[run.items["title"][v] for v in best] for best in distinctive_columns(has, group_N, groups, TYPICAL)]


def _typical_words(texts: list[str], group_N: Ints) -> list[list[str]]:
    """Typical words of each group's texts; words of most texts, such as the instruction's, tell nothing."""
    groups = group_N.max(initial=-1) + 1
    counter = CountVectorizer(binary=True, token_pattern=r"(?u)[^\W\d_]{3,30}", stop_words="english", max_df=0.6)
    try:
        has = counter.fit_transform(texts)
    except ValueError:  # no text has a word that others lack
        return [[] for _ in range(groups)]
    words = counter.get_feature_names_out()
    return [[str(words[v]) for v in best] for best in distinctive_columns(has, group_N, groups, TYPICAL)]


def _group(number: int, members: pd.DataFrame, names: list[str], items: list[str], words: list[str]) -> Group:
    main = members["main"].value_counts(normalize=True).head(2)
    centre = (float(members["x"].median()), float(members["y"].median()))
    frequent = [(names[scenario], float(share)) for scenario, share in zip(main.index.to_numpy(), main, strict=True)]
    return Group(LETTERS[number], len(members), frequent, int(members["rows"].median()), items, words, centre)


def _shares(run: FinishedRun) -> list[KnowledgeShare]:
    known_N = run.users["known"].to_numpy()
    seen = run.train[["user", "scenario"]].drop_duplicates()

    def share(number: int | None, name: str, users: Ints, tested: Ints) -> KnowledgeShare:
        known, tested_known = int(known_N[users].sum()), int(known_N[tested].sum())
        return KnowledgeShare(number, name, len(users), known, len(tested), tested_known)

    rows = [share(None, "", seen["user"].unique(), run.test["user"].to_numpy())]
    for number, name in enumerate(run.scenario_names[1:], start=1):
        users, tested = seen["user"][seen["scenario"] == number], run.test["user"][run.test["scenario"] == number]
        rows.append(share(number, name, users.to_numpy(), tested.to_numpy()))
    return rows


def _describe(groups: list[Group], between: float) -> str:
    scenario = f"the main scenario explains {percent(between)} of how their codes differ"
    if len(groups) < 2:
        return f"Their codes fall into no groups; {scenario}."
    return f"Their codes fall into {len(groups)} groups; {scenario}."
