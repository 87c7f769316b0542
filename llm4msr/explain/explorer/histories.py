"""What a model reads of a user's history, and what it would make of another one.

Where an LLM has read users, a history is titles in a prompt, and another one is asked of it. Where users are pooled
from items, or matched with candidates, it is items, and what the model reads of it is made again without an LLM.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import torch

from llm4msr import schema
from llm4msr.arrays import Bools, Ints, Singles
from llm4msr.config import Config
from llm4msr.errors import ConfigError
from llm4msr.explain import candidates
from llm4msr.explain.explorer.messages import MAX_TITLE, SHOWN_TITLES, ScenarioHistory
from llm4msr.explain.finished_run import FinishedRun
from llm4msr.knowledge import item_vectors
from llm4msr.knowledge.prompts import templates
from llm4msr.model.inputs import Batch
from llm4msr.model.pooling import pool_events
from llm4msr.text import shorten
from llm4msr.training.batches import to_past
from llm4msr.training.pasts import PastEvents, Pasts

TOKEN_LENGTH = 32
"""Characters of a token on average, at most: a longer prompt is too long for any tokenizer."""
MOST_EVENTS = 1000
"""Of a history of items; a match may read fewer."""
ReadPrompt = Callable[[str], Singles]
"""Turns a prompt into its vector, float32 [Z]."""


class Histories(Protocol):
    """Users' histories as one kind of model reads them."""

    editable: bool
    note: str
    """What an edited history does, or why there can be none."""
    titles_read: int
    """How many of the latest titles of each scenario are read; 0 = all that are shown."""

    def of(self, user: int, event: int | None) -> list[ScenarioHistory]:
        """What the user had liked before an event; all of it without one."""

    def put(self, batch: Batch, user: int, event: int | None, history: list[ScenarioHistory]) -> tuple[Batch, str]:
        """The batch as if this were the user's history, and the prompt that was asked, if any.

        Raises:
            ConfigError: the history cannot be read.
        """


def open_histories(run: FinishedRun, read_prompt: ReadPrompt) -> Histories:
    """Those of this run's model."""
    config = run.config
    if config.model.match or config.extract.reads == "items":
        return ItemHistories(run)
    return ReadHistories(run, read_prompt)


def asks_llm(config: Config) -> bool:
    """Whether an edited history is asked of the LLM."""
    return not config.model.match and config.extract.reads == "users" and config.extract.pooling != "answer"


class ReadHistories:
    """Histories that the frozen LLM has read, as titles."""

    def __init__(self, run: FinishedRun, read_prompt: ReadPrompt):
        self._run, self._read_prompt, extract = run, read_prompt, run.config.extract
        self.titles_read, self.editable = extract.titles_per_scenario, asks_llm(run.config)
        self.note = "This run pools vectors from answers, so a history cannot be edited here."
        if self.editable:
            self.note = (
                "Take a title out, or add one: what if this user had also liked it? The LLM reads the last "
                f"{self.titles_read} of each scenario."
            )
        self._max_length = TOKEN_LENGTH * extract.max_prompt_tokens
        self._template = templates.read("user", extract.user_template)

    def of(self, user: int, event: int | None) -> list[ScenarioHistory]:
        """What may reach a prompt, whatever the event."""
        liked = candidates.histories(self._run, np.array([user])).get(user, [])
        return [
            ScenarioHistory(scenario=one["scenario_id"], titles=templates.clean(one["titles"][-SHOWN_TITLES:]))
            for one in liked
        ]

    def put(self, batch: Batch, user: int, event: int | None, history: list[ScenarioHistory]) -> tuple[Batch, str]:
        """The users' vector is that of the history's prompt; of an empty one nothing is known."""
        prompt = self._prompt(history)
        batch = batch._replace(known_N=torch.full_like(batch.known_N, bool(prompt)))
        if prompt:
            z_Z = torch.from_numpy(self._read_prompt(prompt).astype(np.float16))
            batch = batch._replace(z_NZ=z_Z.expand(len(batch.known_N), -1))
        return batch, prompt

    def _prompt(self, history: list[ScenarioHistory]) -> str:
        if not self.editable:
            raise ConfigError("history: a vector that is pooled from an answer cannot be edited here")
        parts = [{"scenario_id": likes.scenario, "titles": likes.titles} for likes in history if likes.titles]
        column = pa.array([parts], schema.HISTORIES.field("history").type)
        prompt: str = templates.user_prompts(self._template, column, self.titles_read)[0].as_py()
        if len(prompt) > self._max_length:
            length = f"a prompt of {len(prompt)} characters, allowed are {self._max_length}"
            raise ConfigError(f"history: {length} (extract.max_prompt_tokens); shorten it")
        return prompt


class _Events(NamedTuple):
    """A history as numbers."""

    item_E: Ints
    scenario_E: Ints
    liked_E: Bools


class ItemHistories:
    """Histories of items, which users are pooled from, or candidates are matched with."""

    titles_read = 0

    def __init__(self, run: FinishedRun):
        self._run, model, extract = run, run.config.model, run.config.extract
        self._pools = run.net.uses_users and extract.reads == "items"
        self.editable = model.control == "none" and (self._pools or not run.net.uses_users)
        self.note = "Here an LLM has read users whom a match compares too, so a history cannot be edited."
        if model.control != "none":
            self.note = "This model’s vectors are wrong ones, so a history cannot be edited here."
        if self.editable:
            self.note = "Take a title out, or add one of the catalogue: what if this user had also liked it?"
        is_fresh = model.past == "fresh" and (extract.point_in_time or bool(model.match))
        self._pasts = run.data.pasts or Pasts(run.prepared, MOST_EVENTS, is_fresh)
        self._titles = _clean(run.items["title"].tolist())
        self._number = {title: number for number, title in reversed([*enumerate(self._titles)]) if number}
        if self._pools and self.editable:
            assert run.extracted is not None
            self._vectors = item_vectors.read(run.extracted)

    def of(self, user: int, event: int | None) -> list[ScenarioHistory]:
        """By scenario, the one of the latest event last."""
        events = self._events(user, event)
        liked: dict[int, list[str]] = {}
        for item, scenario in zip(events.item_E[events.liked_E], events.scenario_E[events.liked_E], strict=True):
            liked.setdefault(int(scenario), []).append(self._titles[item])
        names = self._run.scenario_names
        return [ScenarioHistory(scenario=names[one], titles=liked[one][-SHOWN_TITLES:]) for one in liked]

    def put(self, batch: Batch, user: int, event: int | None, history: list[ScenarioHistory]) -> tuple[Batch, str]:
        """The user's past is these liked items, and what they had not liked before."""
        if not self.editable:
            raise ConfigError(f"history: {self.note}")
        before = self._events(user, event)
        events = _join(self._numbers(history, before), _Events._make(column[~before.liked_E] for column in before))
        if batch.past is not None:
            told = [column[None, ::-1].astype(np.int32) for column in events]
            rows = [column_1N.repeat(len(batch.slots_BS), 0) for column_1N in told]
            batch = batch._replace(past=to_past(batch.past.candidate_B, _padded(rows), self._run.data.tables))
        return (self._pooled(batch, events) if self._pools else batch), ""

    def _events(self, user: int, event: int | None) -> _Events:
        """The oldest first."""
        past = self._pasts.now(user) if event is None else self._pasts.before(np.array([event]))
        item_E, scenario_E, liked_E = (column_1N[0, ::-1].astype(np.int64) for column_1N in past)
        return _Events._make(column[item_E > 0] for column in (item_E, scenario_E, liked_E > 0))

    def _numbers(self, history: list[ScenarioHistory], before: _Events) -> _Events:
        """The items with these titles, the user's own ones first where several have the same."""
        own = {self._titles[item]: item for item in before.item_E[before.liked_E].tolist()}
        places = {name: number for number, name in enumerate(self._run.scenario_names)}
        told = [(title, places.get(part.scenario, 0)) for part in history for title in _clean(part.titles)]
        if len(told) > MOST_EVENTS:
            raise ConfigError(f"history: {len(told)} titles, allowed are {MOST_EVENTS}; shorten it")
        for title, _ in told:
            if title not in own and title not in self._number:
                raise ConfigError(f"history: no item is called “{shorten(title)}”; choose one of the catalogue")
        item_E = np.array([own.get(title) or self._number[title] for title, _ in told], np.int64)
        return _Events(item_E, np.array([place for _, place in told], np.int64), np.ones(len(told), bool))

    def _pooled(self, batch: Batch, events: _Events) -> Batch:
        vectors_ED, known_E = self._vectors.vectors_ID[events.item_E], self._vectors.known_I[events.item_E]
        z_Z = pool_events(vectors_ED.astype(np.float64), events.liked_E, known_E).astype(np.float16)
        z_NZ = torch.from_numpy(z_Z).expand(len(batch.known_N), -1)
        return batch._replace(z_NZ=z_NZ, known_N=torch.full_like(batch.known_N, bool(known_E.any())))


def _clean(titles: list[str]) -> list[str]:
    return templates.clean(titles, MAX_TITLE)


def _join(one: _Events, other: _Events) -> _Events:
    return _Events._make(np.concatenate(pair) for pair in zip(one, other, strict=True))


def _padded(rows: list[np.ndarray]) -> PastEvents:
    """A past has a place at least."""
    return PastEvents(*(row_BN if row_BN.shape[1] else np.zeros((len(row_BN), 1), np.int32) for row_BN in rows))
