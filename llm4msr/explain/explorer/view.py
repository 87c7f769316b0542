"""What the explorer's page shows: users, a user's history and texts, and rankings with more or less of each level.

An edited history becomes a prompt, the frozen LLM turns the prompt into a vector, and the net ranks with that vector
as if the knowledge store held it. This needs a trained run: a bundle has neither histories nor texts.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Annotated

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from pydantic import BaseModel, FailFast, Field

from llm4msr import schema
from llm4msr.arrays import Singles
from llm4msr.data import partitions
from llm4msr.errors import ConfigError
from llm4msr.explain.candidates import choose_candidates, frequent_items, histories, main_scenario, ranks
from llm4msr.explain.finished_run import FinishedRun, batch_of
from llm4msr.knowledge import interests
from llm4msr.knowledge.prompts import templates
from llm4msr.model.inputs import Strengths
from llm4msr.text import MAX_ID, block, shorten
from llm4msr.training.trained import TrainedModel

MAX_USERS = 20
"""Users that a search shows."""
KEPT = 4
"""Partitions that are searched, and kept, beside those of the sample."""
TITLE_LENGTH = 120
"""Characters of a title on the page."""

Id = Annotated[str, Field(max_length=MAX_ID)]
Title = Annotated[str, Field(max_length=500)]
Strength = Annotated[float, Field(ge=0, le=1.5, allow_inf_nan=False)]
TOKEN_LENGTH = 32
"""Characters of a token on average, at most: a longer prompt is too long for any tokenizer."""
ReadPrompt = Callable[[str], Singles]
"""Turns a prompt into its vector, float32 [Z]."""


class ScenarioHistory(BaseModel):
    """What a user liked in one scenario, oldest first."""

    scenario: Id
    titles: Annotated[list[Title], FailFast()] = Field(max_length=200)


class RankingRequest(BaseModel):
    """Whom to rank for, with how much of each level: 0 is without, 1 is as trained."""

    user_id: Id
    scenario: Id
    user_strength: Strength = 1.0
    scenario_strength: Strength = 1.0
    history: Annotated[list[ScenarioHistory] | None, FailFast()] = Field(None, max_length=1000)
    """An edited history; without it the user's own vector is used."""


class RankedItem(BaseModel):
    """One candidate in both rankings; ranks count from 1."""

    title: str
    rank_without: int
    rank_with: int
    change: float
    """What the levels add to the logit."""


class Ranking(BaseModel):
    """The candidates, best with the levels first."""

    lines: list[RankedItem]
    knowledge: str
    """Whose vector: `own`, `edited`, or `none` for the default code."""
    prompt: str
    """The prompt of an edited history."""


class UserSummary(BaseModel):
    """A user in the results of a search."""

    user_id: str
    rows: int
    """Training rows."""
    main: str
    """The scenario of most of these rows."""
    known: bool


class UserDetails(BaseModel):
    """One user. Titles are whole, as in prompts, since the page sends them back; it shows them shortened."""

    user_id: str
    known: bool
    history: list[ScenarioHistory]
    scenario: str
    """The scenario to show first."""
    prompt: str
    answer: str
    interests: dict[str, list[str]]


class View:
    """Answers the page's questions about one finished run with knowledge."""

    def __init__(self, model: TrainedModel, read_prompt: ReadPrompt):
        config = model.config
        self.run = FinishedRun.open(model)
        self.name, self.scenarios = config.name, self.run.scenario_names[1:]
        self.titles_read = config.extract.titles_per_scenario
        self._max_length = TOKEN_LENGTH * config.extract.max_prompt_tokens
        self.editable = config.extract.reads == "users" and config.extract.pooling != "answer"
        self._template = templates.read("user", config.extract.user_template)
        self._at = lru_cache(maxsize=KEPT)(self.run.at)
        self._find = lru_cache(maxsize=256)(self._search)
        self._frequent = frequent_items(self.run)
        self._read_prompt = lru_cache(maxsize=256)(read_prompt)  # a slider that moves does not ask the LLM again

    def users(self, prefix: str) -> list[UserSummary]:
        """Users whose ids begin so, the most active first; of many users not all are searched."""
        names = ["", *self.scenarios]
        columns = self._find(prefix)[["user_id", "rows", "main", "known"]].itertuples(index=False)
        return [
            UserSummary(user_id=user_id, rows=rows, main=names[main], known=known)
            for user_id, rows, main, known in columns
        ]

    def user(self, user_id: str) -> UserDetails:
        """History and knowledge of a user.

        Raises:
            ConfigError: there is no such user.
        """
        user = self._number(user_id)
        own = self._of_user(user)
        text = self.run.user_texts(np.array([user])).get(user, {})
        history = histories(self.run, np.array([user])).get(user, [])
        return UserDetails(
            user_id=user_id,
            known=bool(own.users["known"].loc[user]),
            history=[
                ScenarioHistory(scenario=likes["scenario_id"], titles=templates.clean(likes["titles"]))
                for likes in history
            ],
            scenario=self.run.scenario_names[main_scenario(own, user)],
            prompt=block(text.get("prompt", "")),
            answer=block(text.get("answer", "")),
            interests=interests.read(text.get("answer", ""), self.scenarios),
        )

    def rank(self, request: RankingRequest) -> Ranking:
        """Rank the user's candidates in the scenario, without the levels and with them at the given strengths.

        Raises:
            ConfigError: there is no such user or scenario, or the edited history is too long or cannot be read.
        """
        user = self._number(request.user_id)
        if request.scenario not in self.scenarios:
            raise ConfigError(f"scenario: no '{shorten(request.scenario)}' in the prepared data")
        scenario = 1 + self.scenarios.index(request.scenario)
        own = self._of_user(user)
        items = choose_candidates(own, self._frequent, user, scenario)
        batch = batch_of(self.run.data, self.run.net, user, items, scenario)
        knowledge, prompt = "own" if own.users["known"].loc[user] else "none", ""
        if request.history is not None:
            prompt = self._prompt(request.history)
            knowledge = "edited" if prompt else "none"
            known_N, z_NZ = torch.full_like(batch.known_N, bool(prompt)), batch.z_NZ
            if prompt:
                z_NZ = torch.from_numpy(self._read_prompt(prompt).astype(np.float16))[None]
            batch = batch._replace(z_NZ=z_NZ, known_N=known_N)
        with torch.inference_mode():
            without_B = self.run.net(batch, Strengths(0, 0)).double().numpy()
            with_B = self.run.net(batch, Strengths(request.user_strength, request.scenario_strength)).double().numpy()
        titles, change_B = self.run.items["title"].to_numpy()[items], with_B - without_B
        columns = zip(titles, ranks(without_B).tolist(), ranks(with_B).tolist(), change_B.tolist(), strict=True)
        lines = [
            RankedItem(title=shorten(title, TITLE_LENGTH), rank_without=before, rank_with=after, change=change)
            for title, before, after, change in columns
        ]
        lines.sort(key=lambda line: line.rank_with)
        return Ranking(lines=lines, knowledge=knowledge, prompt=block(prompt))

    def _number(self, user_id: str) -> int:
        numbers = partitions.find_users(self.run.prepared, [user_id])
        if user_id not in numbers:
            raise ConfigError(f"user_id: no user '{shorten(user_id)}' in the prepared data")
        return numbers[user_id]

    def _of_user(self, user: int) -> FinishedRun:
        """The run with the tables that hold this user."""
        home = self.run.home(user)
        return self.run if home in self.run.partitions else self._at(home)

    def _search(self, prefix: str) -> pd.DataFrame:
        """Rows of `FinishedRun.users`: the first found, from the sample and then at most `KEPT` other partitions."""
        exact = partitions.find_users(self.run.prepared, [prefix])
        homes = [self.run.home(user) for user in exact.values()]
        others = dict.fromkeys([*homes, *range(partitions.count(self.run.prepared))])
        places = [number for number in others if number not in self.run.partitions][:KEPT]
        hits = _begin_so(self.run.users, prefix)
        for number in places:
            if len(hits) >= MAX_USERS and not (exact and number in homes):
                break
            hits = pd.concat([hits, _begin_so(self._at(number).users, prefix)])
        return hits.nlargest(MAX_USERS, "rows")

    def _prompt(self, history: list[ScenarioHistory]) -> str:
        if not self.editable:
            raise ConfigError("history: a vector that is pooled from items or from an answer cannot be edited here")
        parts = [{"scenario_id": likes.scenario, "titles": likes.titles} for likes in history if likes.titles]
        column = pa.array([parts], schema.HISTORIES.field("history").type)
        prompt: str = templates.user_prompts(self._template, column, self.titles_read)[0].as_py()
        if len(prompt) > self._max_length:
            length = f"a prompt of {len(prompt)} characters, allowed are {self._max_length}"
            raise ConfigError(f"history: {length} (extract.max_prompt_tokens); shorten it")
        return prompt


def _begin_so(users: pd.DataFrame, prefix: str) -> pd.DataFrame:
    return users[users["user_id"].str.startswith(prefix) & (users.index > 0)]
