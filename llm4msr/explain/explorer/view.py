"""What the explorer's page shows: users, a user's history and texts, and rankings by this model and a rival.

An edited history becomes what the model reads of it (`histories`), and the net ranks as if the user's own were so. This
needs a trained run: a bundle has neither histories nor texts.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch

from llm4msr.arrays import Floats, Ints
from llm4msr.data import partitions
from llm4msr.errors import ConfigError
from llm4msr.explain.candidates import (
    choose_candidates,
    first_test_event,
    frequent_items,
    main_scenario,
    ranks,
    test_labels,
)
from llm4msr.explain.explorer.histories import ReadPrompt, open_histories
from llm4msr.explain.explorer.messages import (
    MAX_TITLE,
    LateEvent,
    Near,
    RankedItem,
    Ranking,
    RankingRequest,
    Rival,
    RunDetails,
    UserDetails,
)
from llm4msr.explain.explorer.nearest import nearest, nearness
from llm4msr.explain.explorer.search import Search
from llm4msr.explain.finished_run import FinishedRun, batch_of
from llm4msr.knowledge import interests
from llm4msr.model.inputs import WHOLE, Batch, Strengths
from llm4msr.model.net import RankerNet
from llm4msr.serve.event_log import LoggedEvent
from llm4msr.text import block, shorten
from llm4msr.training.trained import TrainedModel

TITLE_LENGTH = 120
"""Characters of a title on the page."""


ReadEvents = Callable[[str], Sequence[LoggedEvent] | None]
"""Gives the latest events of a user id, the latest first; None where the log does not answer."""


class View:
    """Answers the page's questions about one finished run.

    Args:
        model: whose rankings are explored.
        plain: the model without knowledge of the same seed, where it is trained.
        read_prompt: asks the LLM.
        read_events: asks the endpoint's log; None if it keeps none.
        calibrated: whether the bundle that is served calibrates its scores.
    """

    def __init__(
        self,
        model: TrainedModel,
        plain: TrainedModel | None,
        read_prompt: ReadPrompt,
        read_events: ReadEvents | None = None,
        calibrated: bool = False,
    ):
        self.run, self._read_events, self._calibrated = FinishedRun.open(model), read_events, calibrated
        self.name, self.scenarios = model.config.name, self.run.scenario_names[1:]
        self._plain = plain.load() if plain else None
        self.search = Search(self.run)
        self._frequent = frequent_items(self.run)
        read_once = lru_cache(maxsize=256)(read_prompt)  # a slider that moves does not ask the LLM again
        self.histories = open_histories(self.run, read_once)

    def details(self) -> RunDetails:
        """The run, and what the page can do with it."""
        net, rivals = self.run.net, [*(["plain"] if self._plain else []), "bare"]
        levels = [("user", net.uses_users), ("scenario", net.has_scenario_level)]
        return RunDetails(
            name=self.name,
            scenarios=self.scenarios,
            editable=self.histories.editable,
            levels=[level for level, is_there in levels if is_there],
            titles_read=self.histories.titles_read,
            history_note=self.histories.note,
            rivals=[*rivals],
            takes_events=self._read_events is not None,
            calibrated=self._calibrated,
        )

    def user(self, user_id: str, scenario: str = "") -> UserDetails:
        """Knowledge of a user, and the history before the first test row in a scenario (the main one by default).

        Raises:
            ConfigError: there is no such user or scenario.
        """
        user = self._number(user_id)
        own = self.search.run_of(user)
        place = self._scenario(scenario) if scenario else main_scenario(own, user)
        text = self.run.user_texts(np.array([user])).get(user, {})
        return UserDetails(
            user_id=user_id,
            known=self.search.is_known(bool(own.users["known"].loc[user]), int(own.users["rows"].loc[user])),
            history=self.histories.of(user, first_test_event(own, user, place)),
            scenario=self.run.scenario_names[place],
            prompt=block(text.get("prompt", "")),
            answer=block(text.get("answer", "")),
            interests=interests.read(text.get("answer", ""), self.scenarios),
            events=self._events(user_id),
        )

    def rank(self, request: RankingRequest) -> Ranking:
        """Rank the user's candidates in the scenario, by a rival and by this model with its levels at these strengths.

        Both know what was before the first of the user's test rows there.

        Raises:
            ConfigError: there is no such user, scenario or rival, or the edited history cannot be read.
        """
        user = self._number(request.user_id)
        scenario = self._scenario(request.scenario)
        own, net = self.search.run_of(user), self.run.net
        items = choose_candidates(own, self._frequent, user, scenario)
        event = first_test_event(own, user, scenario)
        own_batch = batch_of(self.run.data, net, user, items, scenario, event)
        batch, prompt, is_edited = own_batch, "", request.history is not None
        if request.history is not None:  # first, since a bad one is refused
            batch, prompt = self.histories.put(own_batch, user, event, request.history)
        without_B = self._rival(request.rival, own_batch, user, items, scenario, event)
        with_B = _logits(net, batch, Strengths(request.user_strength, request.scenario_strength))
        label_B = test_labels(own, user, scenario, items)
        titles = [shorten(title, TITLE_LENGTH) for title in self.run.items["title"].to_numpy()[items]]
        columns = zip(
            *(titles, ranks(without_B).tolist(), ranks(with_B).tolist(), _probabilities(without_B)),
            *(_probabilities(with_B), label_B.tolist(), nearest(net, batch)),
            strict=True,
        )
        lines = [
            RankedItem(
                title=title,
                rank_without=before,
                rank_with=after,
                score_without=low,
                score_with=high,
                held_out="liked" if label > 0.5 else "negative" if label <= 0.5 else "",
                nearest=[Near(title=self._title(item), near=value) for item, value in near],
            )
            for title, before, after, low, high, label, near in columns
        ]
        lines.sort(key=lambda line: line.rank_with)
        knowledge = ("edited" if is_edited else "own") if _knows(net, batch) else "none"
        return Ranking(lines=lines, knowledge=knowledge, prompt=block(prompt), nearness=nearness(net))

    def _rival(self, rival: Rival, batch: Batch, user: int, items: Ints, scenario: int, event: int | None) -> Floats:
        """[B]: its logits."""
        if rival == "bare":
            past = batch.past
            if past is not None:
                past = past._replace(item_BN=torch.zeros_like(past.item_BN), liked_BN=torch.zeros_like(past.liked_BN))
            return _logits(self.run.net, batch._replace(past=past), Strengths(0, 0))
        if self._plain is None:
            raise ConfigError("rival: no plain model of this seed is trained (evaluate.variants)")
        net, data = self._plain
        return _logits(net, batch_of(data, net, user, items, scenario, event))

    def _title(self, item: int) -> str:
        return shorten(str(self.run.items["title"].iat[item]), TITLE_LENGTH)

    def _events(self, user_id: str) -> list[LateEvent] | None:
        told = self._read_events(user_id) if self._read_events is not None else []
        if told is None:
            return None
        numbers = self.run.items["item_id"].isin([event.item_id for event in told])
        titles: dict[str, str] = dict(self.run.items.loc[numbers, ["item_id", "title"]].itertuples(index=False))
        return [
            LateEvent(
                title=titles.get(one.item_id, one.item_id)[:MAX_TITLE],
                scenario=one.scenario,
                liked=one.liked,
                time=one.time,
            )
            for one in told
        ]

    def _scenario(self, name: str) -> int:
        if name not in self.scenarios:
            raise ConfigError(f"scenario: no '{shorten(name)}' in the prepared data")
        return 1 + self.scenarios.index(name)

    def _number(self, user_id: str) -> int:
        numbers = partitions.find_users(self.run.prepared, [user_id])
        if user_id not in numbers:
            raise ConfigError(f"user_id: no user '{shorten(user_id)}' in the prepared data")
        return numbers[user_id]


def _logits(net: RankerNet, batch: Batch, strengths: Strengths = WHOLE) -> Floats:
    with torch.inference_mode():
        return np.asarray(net.eval()(batch, strengths).double())


def _probabilities(logit_B: Floats) -> list[float]:
    scores: list[float] = np.exp(-np.logaddexp(0, -logit_B)).tolist()
    return scores


def _knows(net: RankerNet, batch: Batch) -> bool:
    """Whether anything is known of the user."""
    has_past = batch.past is not None and bool((batch.past.item_BN > 0).any())
    return has_past or (net.uses_users and bool(batch.known_N.any()))
