"""The users: a map of their codes, groups of users with similar codes, and what is typical of each.

Shape suffixes: N users with knowledge, K code width, V items.
"""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_score

from llm4msr.arrays import Floats, Ints
from llm4msr.explain.finished_run import FinishedRun
from llm4msr.explain.report.tables import Table
from llm4msr.text import count_of

MAX_POINTS = 1500
"""Users on the map; users.parquet has all."""
MAX_CLUSTERED = 20_000
"""Users who are clustered; the others join the nearest group."""
GROUPS = range(3, 8)
MIN_USERS = 30
"""With fewer there are no groups."""
TYPICAL = 6
"""Items that are shown of a group."""
LETTERS = "ABCDEFGH"


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
    centre: tuple[float, float]
    """Median place on the map."""


@dataclass(frozen=True)
class UserSection:
    """What the page shows; `points` is empty if the model reads no user knowledge."""

    finding: str
    points: pd.DataFrame
    """`user`, `user_id`, `x`, `y`, `main`, `group`, `rows`, of every user with knowledge."""
    sample: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    """Places of the points that the map draws."""
    groups: list[Group] = field(default_factory=list)
    explained: tuple[float, float] = (0.0, 0.0)
    """Share of the codes' variance that each axis shows."""

    def tables(self) -> dict[str, Table]:
        """The map and the groups, if there are any."""
        if not self.groups:
            return {}
        rows = [(group.letter, group.users, group.rows, "; ".join(group.items)) for group in self.groups]
        groups = pd.DataFrame(rows, columns=["group", "users", "rows", "items"])
        return {
            "users.parquet": Table("the map: every user with knowledge", self.points),
            "groups.csv": Table("the groups of users", groups),
        }


def user_section(run: FinishedRun) -> UserSection:
    """Map and groups."""
    ids = np.flatnonzero(run.users["known"].to_numpy())
    coverage = f"{count_of(len(ids), len(run.users) - 1)} users have knowledge"
    if not run.net.uses_users:
        none = "This model reads no codes of users, so there is no map of them."
        return UserSection(f"{coverage}. {none}" if run.extracted else none, pd.DataFrame())
    codes_NK = run.codes(ids)
    rng = np.random.default_rng(0)
    pca = PCA(min(2, *codes_NK.shape), random_state=0).fit(codes_NK)
    place_N2 = np.pad(pca.transform(codes_NK), ((0, 0), (0, 2 - pca.n_components_)))
    sample = np.sort(rng.permutation(len(ids))[:MAX_CLUSTERED])
    group_N = _cluster(codes_NK, sample)
    points = run.users.loc[ids, ["user_id", "main", "rows"]].reset_index(names="user")
    points = points.assign(x=place_N2[:, 0], y=place_N2[:, 1], group=group_N)
    items = _typical_items(run, ids[sample], group_N[sample])
    groups = [
        _group(number, points[group_N == number], run.scenario_names, titles) for number, titles in enumerate(items)
    ]
    explained = (*np.nan_to_num(pca.explained_variance_ratio_).tolist(), 0.0)[:2]
    drawn = np.sort(rng.permutation(len(ids))[:MAX_POINTS])
    finding = f"{coverage}. Their codes fall into {len(groups) if len(groups) > 1 else 'no'} groups."
    return UserSection(finding, points, drawn, groups, explained)


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


def _typical_items(run: FinishedRun, ids: Ints, group_N: Ints) -> list[list[str]]:
    """Titles of each group's typical items, among those that were liked, since likes are what the LLM read."""
    liked = run.train[(run.train["label"] > 0.5) & run.train["user"].isin(ids)][["user", "item"]].drop_duplicates()
    row = np.searchsorted(ids, liked["user"])
    has = sparse.csr_matrix((np.ones(len(liked)), (row, liked["item"])), shape=(len(ids), len(run.items)))
    groups = group_N.max(initial=-1) + 1
    return [[run.items["title"][v] for v in best] for best in distinctive_columns(has, group_N, groups, TYPICAL)]


def _group(number: int, members: pd.DataFrame, names: list[str], items: list[str]) -> Group:
    main = members["main"].value_counts(normalize=True).head(2)
    centre = (float(members["x"].median()), float(members["y"].median()))
    frequent = [(names[scenario], float(share)) for scenario, share in zip(main.index.to_numpy(), main, strict=True)]
    return Group(LETTERS[number], len(members), frequent, int(members["rows"].median()), items, centre)
