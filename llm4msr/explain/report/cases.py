"""Single users: what they liked, what the LLM was asked and said, and how the layers moved the items for them.

"Without" is this very net with its levels left out, not a model that was trained without knowledge.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from llm4msr.arrays import Ints
from llm4msr.data import partitions
from llm4msr.errors import ConfigError
from llm4msr.explain.ablation import Levels, score_levels
from llm4msr.explain.candidates import (
    ScenarioLikes,
    choose_candidates,
    frequent_items,
    histories,
    main_scenario,
    ranks,
)
from llm4msr.explain.finished_run import FinishedRun, batch_of
from llm4msr.explain.report.tables import Table
from llm4msr.knowledge import interests
from llm4msr.text import shorten

TOP = 10
MOVED = 4
"""Items that are shown of those that rose, and of those that fell."""
REASONS = {
    "moved closer": "the layers moved the scores of the test rows furthest towards their labels (by logloss)",
    "moved away": "the layers moved the scores of the test rows furthest away from their labels (by logloss)",
    "typical": "as active, and moved as far, as the median user",
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
    loss: tuple[float, float] | None
    """Mean logloss of the test rows without and with the levels; None without test rows."""
    tested: int
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
    def without(self) -> pd.DataFrame:
        """The top candidates without the levels."""
        return self.ranked.sort_values("rank_without").head(TOP)

    @property
    def moved(self) -> pd.DataFrame:
        """The items near the top that rose most and fell most."""
        near = self.near
        risen = (near["rank_without"] - near["rank_with"]).sort_values(kind="stable")
        return near.loc[[*risen[risen > 0].index[::-1][:MOVED], *risen[risen < 0].index[:MOVED][::-1]]]

    @property
    def near(self) -> pd.DataFrame:
        """The candidates that are near the top in either ranking."""
        return self.ranked[self.ranked[["rank_without", "rank_with"]].min(axis=1) <= 2 * TOP]

    @property
    def shift(self) -> tuple[float, float]:
        """What user level and scenario level add to the items near the top on average, which changes no rank."""
        return float(self.near["user_part"].mean()), float(self.near["scenario_part"].mean())

    @property
    def against_mean(self) -> pd.DataFrame:
        """The items near the top with logits and parts less their means over these items, so that they still add up."""
        columns = ["logit_without", "user_part", "own_part", "scenario_part", "logit_with"]
        return self.near.assign(**{name: self.near[name] - self.near[name].mean() for name in columns})

    @property
    def largest_part(self) -> float:
        """The largest absolute part, against the mean, of the items that moved."""
        parts = self.against_mean.loc[self.moved.index, ["user_part", "scenario_part"]].to_numpy()
        return float(np.abs(parts).max())

    @property
    def finding(self) -> str:
        """One sentence."""
        moved = self.moved
        if moved.empty:
            return f"In “{shorten(self.scenario_id)}” the levels move no item near the top."
        furthest = int((moved["rank_without"] - moved["rank_with"]).abs().to_numpy().argmax())
        most = self.against_mean.loc[moved.index].iloc[furthest]
        up = 1 if most["rank_with"] < most["rank_without"] else -1
        parts = sorted((up * most[f"{level}_part"], level) for level in ("scenario", "user"))
        by = "by both levels alike" if parts[0][0] > 0.8 * parts[1][0] else f"mostly by the {parts[1][1]} level"
        way = "rises" if up > 0 else "falls"
        entered = int(((self.ranked["rank_with"] <= TOP) & (self.ranked["rank_without"] > TOP)).sum())
        top = min(TOP, len(self.ranked))
        return (
            f"In “{shorten(self.scenario_id)}” {entered or 'none'} of the top {top} came in with the levels; "
            f"“{shorten(most['title'])}” {way} from {most['rank_without']} to {most['rank_with']}, "
            f"{by}."
        )


@dataclass(frozen=True)
class CaseSection:
    """What the page shows."""

    cases: list[Case]

    def tables(self) -> dict[str, Table]:
        """A row per candidate of each user."""
        rankings = [
            case.ranked.assign(
                why=case.kind,
                user=case.user,
                user_id=case.user_id,
                scenario=case.scenario,
                scenario_id=case.scenario_id,
            )
            for case in self.cases
        ]
        description = "single users: every candidate with its ranks and the parts of its logit"
        return {"rankings.csv": Table(description, pd.concat(rankings) if rankings else pd.DataFrame())}


def case_section(run: FinishedRun, levels: Levels) -> CaseSection:
    """The chosen users, and those that `explain.users` names; `levels` are the logits of the test rows.

    Raises:
        ConfigError: `explain.users` names an unknown user.
    """
    gain = gains(run.test, levels)
    chosen, numbers = choose(run.users, gain), partitions.find_users(run.prepared, run.config.explain.users)
    for user_id in run.config.explain.users:
        if user_id not in numbers:
            raise ConfigError(f"explain.users: no user '{user_id}' in the prepared data")
        chosen.append(("asked for", numbers[user_id]))
    ids = np.array([user for _, user in chosen], np.int64)
    texts, likes, frequent = run.user_texts(ids), histories(run, ids), frequent_items(run)
    cases = []
    for kind, user in chosen:
        own = run.of_user(user)
        own_gain = gain if own is run else gains_of(own, user)
        loss = own_gain[own_gain.index == user].to_dict("index").get(user)
        text, scenario = texts.get(user, {}), main_scenario(own, user)
        cases.append(
            Case(
                kind=kind,
                user_id=str(own.users["user_id"].loc[user]),
                user=user,
                rows=int(own.users["rows"].loc[user]),
                known=bool(own.users["known"].loc[user]),
                loss=(loss["without"], loss["with"]) if loss else None,
                tested=loss["rows"] if loss else 0,
                history=likes.get(user, []),
                prompt=text.get("prompt", ""),
                answer=text.get("answer", ""),
                interests=interests.read(text.get("answer", ""), run.scenario_names[1:]),
                scenario=scenario,
                scenario_id=run.scenario_names[scenario],
                ranked=ranking(own, user, scenario, choose_candidates(own, frequent, user, scenario)),
            )
        )
    return CaseSection(cases)


def gains(test: pd.DataFrame, levels: Levels) -> pd.DataFrame:
    """Of each user with test rows: `rows`, mean logloss `without` and `with` the levels, and `gain`, by how much it
    falls."""
    label_B = test["label"].to_numpy(np.float64)
    loss = {
        name: np.logaddexp(0, logit) - logit * label_B
        for name, logit in (("without", levels.none), ("with", levels.both))
    }
    means = pd.DataFrame(loss).groupby(test["user"].to_numpy()).mean()
    return means.assign(gain=means["without"] - means["with"], rows=test.groupby("user").size())


def gains_of(run: FinishedRun, user: int) -> pd.DataFrame:
    """The same of one user, whose test rows are scored here."""
    (partition,) = run.partitions
    batches = run.data.rows("test").in_file_order(run.config.train.batch_size, partition)
    rows = [own for batch in batches if len((own := batch.take(batch.user_B == user)).user_B)]
    levels = [score_levels(run.net, run.data.batch(own, run.net)) for own in rows]
    if not levels:
        return pd.DataFrame()
    return gains(run.test[run.test["user"] == user].reset_index(drop=True), Levels.concatenate(levels))


def choose(users: pd.DataFrame, gain: pd.DataFrame) -> list[tuple[str, int]]:
    """Kind and number of up to four users: the newest one, and, among users with knowledge and enough test rows, those
    who moved closest and furthest and a typical one."""
    gain = gain[gain.index > 0]
    gain = gain.assign(activity=users["rows"].reindex(gain.index))
    able = gain[users["known"].loc[gain.index]] if users["known"].loc[gain.index].any() else gain
    able = able[able["rows"] >= able["rows"].median()]
    chosen: list[tuple[str, int]] = []

    def add(kind: str, ordered: pd.DataFrame) -> None:
        taken = {user for _, user in chosen}
        left = [int(user) for user in ordered.index if user not in taken]
        chosen.extend((kind, user) for user in left[:1])

    add("moved closer", able[able["gain"] > 0].sort_values("gain", ascending=False, kind="stable"))
    add("moved away", able[able["gain"] < 0].sort_values("gain", kind="stable"))
    far = (able[["gain", "activity"]].rank(pct=True) - 0.5).abs().sum(axis=1)
    add("typical", able.loc[far.sort_values(kind="stable").index])
    add("new", gain.sort_values(["activity", "rows"], ascending=[True, False], kind="stable"))
    return chosen


def ranking(run: FinishedRun, user: int, scenario: int, items: Ints) -> pd.DataFrame:
    """The items [B], best with the levels first.

    Columns: `item_id`, `title`, `rank_without`, `rank_with`, `logit_without`, `user_part`, `own_part` (what of
    `user_part` is this user's own), `scenario_part`, `logit_with` (the sum of `logit_without` and the two levels'
    parts), and `test_label`, NaN where the test rows do not hold the item.
    """
    levels = score_levels(run.net, batch_of(run.data, run.net, user, items, scenario))
    tested = run.test[(run.test["user"] == user) & (run.test["scenario"] == scenario)].groupby("item")["label"].max()
    table = pd.DataFrame(
        {
            "item_id": run.items["item_id"].to_numpy()[items],
            "title": run.items["title"].to_numpy()[items],
            "rank_without": ranks(levels.none),
            "rank_with": ranks(levels.both),
            "logit_without": levels.none,
            "user_part": levels.user_part,
            "own_part": levels.own_part,
            "scenario_part": levels.scenario_part,
            "logit_with": levels.both,
            "test_label": tested.reindex(items).to_numpy(np.float64),
        }
    )
    return table.sort_values("rank_with").reset_index(drop=True)
