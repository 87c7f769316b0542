"""Users by the beginning of their ids, and titles of the catalogue by a part of them."""

from functools import lru_cache

import numpy as np
import pandas as pd

from llm4msr.data import partitions
from llm4msr.explain.explorer.messages import MAX_TITLE, UserSummary
from llm4msr.explain.finished_run import FinishedRun
from llm4msr.knowledge.prompts import templates

MOST = 20
"""Users or titles that a search finds."""
KEPT = 4
"""Partitions that are searched, and kept, beside those of the sample."""


class Search:
    """Looks in a run, and in partitions beside those that it holds."""

    def __init__(self, run: FinishedRun):
        self._run = run
        self._at = lru_cache(maxsize=KEPT)(run.at)
        self._find = lru_cache(maxsize=256)(self._search)
        rows_I = np.bincount(run.train["item"], minlength=len(run.items))
        by_rows = np.argsort(-rows_I[1:], kind="stable")
        self._titles = run.items["title"].iloc[1:].iloc[by_rows].drop_duplicates()
        self._low_titles = self._titles.str.lower()

    def run_of(self, user: int) -> FinishedRun:
        """The run with the tables that hold this user."""
        home = self._run.home(user)
        return self._run if home in self._run.partitions else self._at(home)

    def is_known(self, known: bool, rows: int) -> bool:
        """Whether a model knows anything of a user: a vector, or training rows that its match reads."""
        return bool(known or (self._run.net.match is not None and rows))

    def users(self, prefix: str) -> list[UserSummary]:
        """Users whose ids begin so, the most active first; of many users not all are searched."""
        names = ["", *self._run.scenario_names[1:]]
        columns = self._find(prefix)[["user_id", "rows", "main", "known"]].itertuples(index=False)
        return [
            UserSummary(user_id=user_id, rows=rows, main=names[main], known=self.is_known(known, rows))
            for user_id, rows, main, known in columns
        ]

    def titles(self, part: str) -> list[str]:
        """Titles that hold this part: those that begin so first, then those with most training rows."""
        low = part.lower().strip()
        if not low:
            return []
        found = self._low_titles[self._low_titles.str.contains(low, regex=False)]
        first = found.str.startswith(low).sort_values(ascending=False, kind="stable").index[:MOST]
        return templates.clean(self._titles.loc[first].tolist(), MAX_TITLE)  # a field of the page has no line breaks

    def _search(self, prefix: str) -> pd.DataFrame:
        """Rows of `FinishedRun.users`: the first found, from the sample and then at most `KEPT` other partitions."""
        exact = partitions.find_users(self._run.prepared, [prefix])
        homes = [self._run.home(user) for user in exact.values()]
        others = dict.fromkeys([*homes, *range(partitions.count(self._run.prepared))])
        places = [number for number in others if number not in self._run.partitions][:KEPT]
        hits = _begin_so(self._run.users, prefix)
        for number in places:
            if len(hits) >= MOST and not (exact and number in homes):
                break
            hits = pd.concat([hits, _begin_so(self._at(number).users, prefix)])
        return hits.nlargest(MOST, "rows")


def _begin_so(users: pd.DataFrame, prefix: str) -> pd.DataFrame:
    return users[users["user_id"].str.startswith(prefix) & (users.index > 0)]
