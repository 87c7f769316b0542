"""Single users: what they liked, what the LLM was asked and said, and both models' lists with the held-out items."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from llm4msr.arrays import Floats, Ints
from llm4msr.data import partitions
from llm4msr.errors import ConfigError
from llm4msr.explain.candidates import (
    ScenarioLikes,
    choose_candidates,
    first_test_event,
    frequent_items,
    histories,
    main_scenario,
    ranks,
    test_labels,
)
from llm4msr.explain.finished_run import FinishedRun, batch_of
from llm4msr.explain.report.rows import ScoredRows
from llm4msr.explain.report.tables import Table
from llm4msr.knowledge import interests
from llm4msr.model.net import RankerNet
from llm4msr.text import shorten
from llm4msr.training.dataset import Dataset
from llm4msr.training.results import PLAIN
from llm4msr.training.trained import TrainedModel

TOP = 10
SHOWN = 3
"""Held-out items that are shown beyond the top."""
REASONS = {
    "gains most": "this model’s logloss of the user’s test rows is furthest below the plain model’s",
    "loses most": "this model’s logloss of the user’s test rows is furthest above the plain model’s",
    "typical": "as active, and the two models as far apart, as for the median user",
    "new": "the fewest training rows",
    "asked for": "named in the configuration",
}


@dataclass(frozen=True)
class Case:
    """One user's explanation."""

    kind: str
    user_id: str
    user: int
    rows: int
    known: bool
    history: list[ScenarioLikes]
    prompt: str
    answer: str
    interests: dict[str, list[str]]
    """What the answer names of each scenario, where it can be read so."""
    scenario: int
    scenario_id: str
    ranked: pd.DataFrame
    """The candidates as `ranking` gives them."""

    @property
    def reason(self) -> str:
        """Why this user is shown."""
        return REASONS[self.kind]

    @property
    def plain(self) -> pd.DataFrame:
        """The plain model's list; empty where it is not trained."""
        return self._list("rank_plain")

    @property
    def own(self) -> pd.DataFrame:
        """This model's list."""
        return self._list("rank_model")

    def _list(self, rank: str) -> pd.DataFrame:
        """The top, and what was held out and liked below it."""
        ranked = self.ranked.sort_values(rank)
        below = ranked[(ranked[rank] > TOP) & (ranked["test_label"] > 0.5)].head(SHOWN)
        return pd.concat([ranked[ranked[rank] <= TOP], below])

    @property
    def finding(self) -> str:
        """Where the first item that was held out and liked stands."""
        liked = self.ranked[self.ranked["test_label"] > 0.5]
        if liked.empty:
            return f"No item of “{shorten(self.scenario_id)}” that this user liked was held out."
        first = liked.iloc[0]
        text = (
            f"“{shorten(first['title'])}”, held out and liked, is at rank {first['rank_model']} of {len(self.ranked)}"
        )
        if np.isnan(first["rank_plain"]):
            return f"{text}."
        return f"{text}; the plain model puts it at {first['rank_plain']:.0f}."


@dataclass(frozen=True)
class CaseSection:
    """What the page shows."""

    cases: list[Case]

    def tables(self) -> dict[str, Table]:
        """A row per candidate of each user."""
        names = ("kind", "user", "user_id", "scenario", "scenario_id")
        rankings = [case.ranked.assign(**{name: getattr(case, name) for name in names}) for case in self.cases]
        description = "single users: every candidate with its rank and logit by either model"
        return {"rankings.csv": Table(description, pd.concat(rankings) if rankings else pd.DataFrame())}


def case_section(run: FinishedRun, rows: ScoredRows, plain: TrainedModel | None) -> CaseSection:
    """The chosen users, and those that `explain.users` names; `rows` are the test rows of the run's seed.

    Raises:
        ConfigError: `explain.users` names an unknown user.
    """
    chosen = choose(run.users, gains(rows, run.config.model.variant))
    numbers = partitions.find_users(run.prepared, run.config.explain.users)
    for user_id in run.config.explain.users:
        if user_id not in numbers:
            raise ConfigError(f"explain.users: no user '{user_id}' in the prepared data")
        chosen.append(("asked for", numbers[user_id]))
    ids = np.array([user for _, user in chosen], np.int64)
    texts, likes, frequent = run.user_texts(ids), histories(run, ids), frequent_items(run)
    other = plain.load() if plain else None
    cases = []
    for kind, user in chosen:
        own = run.of_user(user)
        text, scenario = texts.get(user, {}), main_scenario(own, user)
        cases.append(
            Case(
                kind=kind,
                user_id=str(own.users["user_id"].loc[user]),
                user=user,
                rows=int(own.users["rows"].loc[user]),
                known=bool(own.users["known"].loc[user]),
                history=likes.get(user, []),
                prompt=text.get("prompt", ""),
                answer=text.get("answer", ""),
                interests=interests.read(text.get("answer", ""), run.scenario_names[1:]),
                scenario=scenario,
                scenario_id=run.scenario_names[scenario],
                ranked=ranking(own, other, user, scenario, choose_candidates(own, frequent, user, scenario)),
            )
        )
    return CaseSection(cases)


def gains(rows: ScoredRows, variant: str) -> pd.DataFrame:
    """Of each user with test rows: `rows`, and `gain`, by how much the mean logloss is below the plain model's.

    Without a plain model every gain is zero.
    """
    loss = {
        name: np.logaddexp(0, rows.logits[name]) - rows.logits[name] * rows.label_B
        for name in (variant, PLAIN)
        if name in rows.logits
    }
    of_users = pd.DataFrame(loss).groupby(rows.user_B)
    means = of_users.mean()
    gain = means[PLAIN] - means[variant] if PLAIN in means else 0.0
    return pd.DataFrame({"gain": gain, "rows": of_users.size()})


def choose(users: pd.DataFrame, gain: pd.DataFrame) -> list[tuple[str, int]]:
    """Kind and number of up to four users: the newest one, and, among users with knowledge and enough test rows, those
    who gained and lost most and a typical one."""
    gain = gain[gain.index > 0]
    gain = gain.assign(activity=users["rows"].reindex(gain.index))
    able = gain[users["known"].loc[gain.index]] if users["known"].loc[gain.index].any() else gain
    able = able[able["rows"] >= able["rows"].median()]
    chosen: list[tuple[str, int]] = []

    def add(kind: str, ordered: pd.DataFrame) -> None:
        taken = {user for _, user in chosen}
        left = [int(user) for user in ordered.index if user not in taken]
        chosen.extend((kind, user) for user in left[:1])

    add("gains most", able[able["gain"] > 0].sort_values("gain", ascending=False, kind="stable"))
    add("loses most", able[able["gain"] < 0].sort_values("gain", kind="stable"))
    far = (able[["gain", "activity"]].rank(pct=True) - 0.5).abs().sum(axis=1)
    add("typical", able.loc[far.sort_values(kind="stable").index])
    add("new", gain.sort_values(["activity", "rows"], ascending=[True, False], kind="stable"))
    return chosen


def ranking(
    run: FinishedRun, plain: tuple[RankerNet, Dataset] | None, user: int, scenario: int, items: Ints
) -> pd.DataFrame:
    """The items [B], this model's best first, as it would have ranked them before the first of the user's test rows.

    Columns: `item_id`, `title`, `rank_plain` and `logit_plain` (NaN without a plain model), `rank_model`,
    `logit_model`, and `test_label`, NaN where the test rows do not hold the item.
    """
    event = first_test_event(run, user, scenario)

    def logits(net: RankerNet, data: Dataset) -> Floats:
        with torch.inference_mode():
            return np.asarray(net.eval()(batch_of(data, net, user, items, scenario, event)).double())

    model_B = logits(run.net, run.data)
    plain_B = logits(*plain) if plain else np.full(len(items), np.nan)
    table = pd.DataFrame(
        {
            "item_id": run.items["item_id"].to_numpy()[items],
            "title": run.items["title"].to_numpy()[items],
            "rank_plain": ranks(plain_B) if plain else np.nan,
            "rank_model": ranks(model_B),
            "logit_plain": plain_B,
            "logit_model": model_B,
            "test_label": test_labels(run, user, scenario, items),
        }
    )
    return table.sort_values("rank_model").reset_index(drop=True)
