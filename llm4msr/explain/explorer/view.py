"""What the explorer's page asks: users, one user's history and texts, rankings with more or less of each level.

An edited history gets a prompt, the prompt a vector from the frozen LLM, and the ranking is made with that vector as
if the knowledge store had it. Needs a trained run, not a bundle: histories and texts are no part of a bundle.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Annotated

import numpy as np
import pyarrow as pa
import torch
from pydantic import BaseModel, FailFast, Field

from llm4msr import schema
from llm4msr.arrays import Singles
from llm4msr.errors import ConfigError
from llm4msr.explain import candidates
from llm4msr.explain.opened_run import Opened, Seed, batch_of
from llm4msr.knowledge import interests
from llm4msr.knowledge.prompts import templates
from llm4msr.model.inputs import Strengths
from llm4msr.text import MAX_ID, block, shorten
from llm4msr.training.trained import TrainedModel

FOUND = 20
"""Users that a search shows."""
TITLE = 120
"""Characters of a title on the page."""

Id = Annotated[str, Field(max_length=MAX_ID)]
Title = Annotated[str, Field(max_length=500)]
Strength = Annotated[float, Field(ge=0, le=1.5, allow_inf_nan=False)]
LETTERS = 32
"""Characters that a token may have on average; a prompt with more of them is too long, whatever the tokenizer."""
ReadPrompt = Callable[[str], Singles]
"""From a prompt to its vector, float32 [Z]."""


class Liked(BaseModel):
    """What a user liked in one scenario, oldest first."""

    scenario: Id
    titles: Annotated[list[Title], FailFast()] = Field(max_length=200)


class Asked(BaseModel):
    """A ranking to make."""

    user_id: Id
    scenario: Id
    user_strength: Strength = 1.0
    scenario_strength: Strength = 1.0
    history: Annotated[list[Liked] | None, FailFast()] = Field(None, max_length=1000)
    """An edited one; without it the user's own vector is taken."""


class Line(BaseModel):
    """One candidate in both rankings, which count from 1."""

    title: str
    rank_without: int
    rank_with: int
    change: float
    """What the levels add to the logit."""


class Ranking(BaseModel):
    """The candidates, best with the levels first."""

    lines: list[Line]
    knowledge: str
    """`own`, `edited`, or `none` where the default code stands for the user."""
    prompt: str
    """Of an edited history."""


class Found(BaseModel):
    """A user in the list of a search."""

    user_id: str
    rows: int
    """Of training."""
    main: str
    """The scenario of most of them."""
    known: bool


class Person(BaseModel):
    """One user. Titles are as prompts have them, since the page sends them back; it cuts what it shows of them."""

    user_id: str
    known: bool
    history: list[Liked]
    scenario: str
    """The one to show first."""
    prompt: str
    answer: str
    interests: dict[str, list[str]]


class View:
    """See the module."""

    def __init__(self, model: TrainedModel, read_prompt: ReadPrompt):
        """Open a run with knowledge."""
        config = model.config
        self.run = Opened.read([Seed(model, None)])
        self.name, self.scenarios = config.name, self.run.scenario_names[1:]
        self.titles_read = config.extract.titles_per_scenario
        self._most_letters = LETTERS * config.extract.max_prompt_tokens
        self.editable = config.extract.reads == "users" and config.extract.pooling != "answer"
        self._template = templates.template("user", config.extract.user_template)
        self._number = dict(zip(self.run.users["user_id"][1:], range(1, len(self.run.users)), strict=True))
        self._popular = candidates.frequent_items(self.run)
        self._read = lru_cache(maxsize=256)(read_prompt)  # a slider moves without asking the LLM again

    def users(self, beginning: str) -> list[Found]:
        """Whose ids begin so, the most active first."""
        people = self.run.users.iloc[1:]
        people = people[people["user_id"].str.startswith(beginning)].nlargest(FOUND, "rows")
        names = self.run.scenario_names
        return [
            Found(user_id=p.user_id, rows=p.rows, main=names[p.main] if p.main else "", known=p.known)
            for p in people.itertuples()
        ]

    def person(self, user_id: str) -> Person:
        """What is known of a user.

        Raises:
            ConfigError: no such user.
        """
        user = self._user(user_id)
        text = self.run.user_texts(np.array([user])).get(user, {})
        history = candidates.histories(self.run, np.array([user])).get(user, [])
        return Person(
            user_id=user_id,
            known=bool(self.run.users["known"].iloc[user]),
            history=[Liked(scenario=p["scenario_id"], titles=templates.cleaned(p["titles"])) for p in history],
            scenario=self.run.scenario_names[candidates.main_scenario(self.run, user)],
            prompt=block(text.get("prompt", "")),
            answer=block(text.get("answer", "")),
            interests=interests.read(text.get("answer", ""), self.scenarios),
        )

    def ranking(self, asked: Asked) -> Ranking:
        """Both rankings of the candidates: the user's test items in the scenario, and its most frequent others.

        Raises:
            ConfigError: no such user or scenario, or the history is edited where that cannot be read, or is too long.
        """
        user = self._user(asked.user_id)
        if asked.scenario not in self.scenarios:
            raise ConfigError(f"scenario: no '{shorten(asked.scenario)}' in the prepared data")
        scenario = 1 + self.scenarios.index(asked.scenario)
        items = candidates.candidates(self.run, self._popular, user, scenario)
        batch = batch_of(self.run.data, self.run.net, user, items, scenario)
        knowledge, prompt = "own" if self.run.users["known"].iloc[user] else "none", ""
        if asked.history is not None:
            prompt = self._prompt(asked.history)
            knowledge = "edited" if prompt else "none"
            known_N, z_NZ = torch.full_like(batch.known_N, bool(prompt)), batch.z_NZ
            if prompt:
                z_NZ = torch.from_numpy(self._read(prompt).astype(np.float16))[None]
            batch = batch._replace(z_NZ=z_NZ, known_N=known_N)
        with torch.inference_mode():
            without_B = self.run.net(batch, Strengths(0, 0)).double().numpy()
            with_B = self.run.net(batch, Strengths(asked.user_strength, asked.scenario_strength)).double().numpy()
        titles = self.run.items["title"].to_numpy()[items]
        columns = (
            titles,
            candidates.ranks(without_B).tolist(),
            candidates.ranks(with_B).tolist(),
            (with_B - without_B).tolist(),
        )
        lines = [
            Line(title=shorten(title, TITLE), rank_without=before, rank_with=after, change=change)
            for title, before, after, change in zip(*columns, strict=True)
        ]
        lines.sort(key=lambda line: line.rank_with)
        return Ranking(lines=lines, knowledge=knowledge, prompt=block(prompt))

    def _user(self, user_id: str) -> int:
        if user_id not in self._number:
            raise ConfigError(f"user_id: no user '{shorten(user_id)}' in the prepared data")
        return self._number[user_id]

    def _prompt(self, history: list[Liked]) -> str:
        if not self.editable:
            raise ConfigError("history: a vector that is pooled from items or from an answer cannot be edited here")
        parts = [{"scenario_id": one.scenario, "titles": one.titles} for one in history if one.titles]
        column = pa.array([parts], schema.HISTORIES.field("history").type)
        prompt: str = templates.user_prompts(self._template, column, self.titles_read)[0].as_py()
        if len(prompt) > self._most_letters:
            told = f"a prompt of {len(prompt)} characters, allowed are {self._most_letters}"
            raise ConfigError(f"history: {told} (extract.max_prompt_tokens); shorten it")
        return prompt
