"""A loaded bundle that ranks: `Ranker.load(uri).rank(request)`, the same code in a notebook and behind Ray Serve.

What a request costs in Python does not grow with its candidates: ids become numbers, rows and answers in calls that
run over all of them in C. Shape suffix: B candidates.
"""

import copy
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from llm4msr.arrays import AnyInts, Array, Ints, Singles
from llm4msr.bundle import files, self_test
from llm4msr.bundle.id_table import IdTable, Place
from llm4msr.bundle.messages import ModelInfo, RankedItem, RankRequest, RankResponse, RecentEvent, Unknown
from llm4msr.bundle.scorer import FoldedScorer, Query, Scorer
from llm4msr.bundle.torch_scorer import TorchScorer
from llm4msr.bundle.user_features import UserFeatures
from llm4msr.bundle.user_knowledge import Known, UserKnowledge
from llm4msr.errors import ConfigError, LLM4MSRError, StorageError
from llm4msr.storage.local_copy import open_local
from llm4msr.text import shorten

AT_ONCE = 8192
"""Candidates of a list that a scorer gets at once, to bound what torch holds."""


def load_error(uri: str, error: BaseException) -> StorageError:
    """What is said of a bundle or codes that cannot be loaded for a reason that this package does not foresee."""
    return StorageError(f"{uri}: cannot be loaded ({type(error).__name__}: {error})"[:1000])


def _seconds(created: str) -> float:
    """When an output was published, in seconds since 1970."""
    return datetime.fromisoformat(created).timestamp()


@contextmanager
def _loading(uri: str) -> Iterator[None]:
    try:
        yield
    except LLM4MSRError:
        raise
    except Exception as error:  # a backbone of somebody else's, no memory, a full disk
        raise load_error(uri, error) from error


class Scored(NamedTuple):
    """A request in numbers, and what came out."""

    query: Query
    score_B: Singles
    """In the order of the request."""


class Ranker:
    """A model and its users' codes, loaded from a bundle."""

    _holds: tuple[object, ...] = ()
    """What keeps the local copies whose files are mapped from being deleted."""

    def __init__(self, folder: Path, version: str, allow_backbones: Sequence[str] = ()):
        """From a bundle's files on this machine.

        Raises:
            ConfigError: its backbone is code from outside of this package, and not allowed.
            StorageError: a file is damaged, of another version, or the self-test gives other scores.
        """
        self.model_version = self.knowledge_version = version
        self.description = files.read_description(folder)
        files.check_backbone(folder, self.description, allow_backbones)
        self.net = files.read_net(folder, self.description)
        self.users = IdTable(folder / files.USERS)
        self.items = files.read_items(folder)
        make = FoldedScorer if self.description.scorer == "folded" else TorchScorer
        self.scorer: Scorer = make(self.net, self.items)
        self._user_features = UserFeatures(self.description.fields, self.description.user_features)
        self._scenarios = {name: number for number, name in enumerate(self.description.scenarios) if number}
        self._context = {n: {v: i for i, v in enumerate(known, 1)} for n, known in self.description.context.items()}
        self._folder = folder
        self.knowledge = UserKnowledge(
            files.read_codes(folder, folder),
            IdTable(folder / files.PASTS),
            self.net.uses_users,
            self.description.model.reads_pasts,
            files.read_pooled_codes(folder, self.description, self.items),
            self._scenarios,
            self.description.model.past_events,
        )
        self_test.repeat(folder / files.SELF_TEST, self.rank)

    @classmethod
    def load(cls, uri: str, codes: str = "", allow_backbones: Sequence[str] = ()) -> Self:
        """From any URI; `codes` is what `llm4msr refresh` printed, empty for the bundle's own codes.

        Args:
            uri: of a bundle.
            codes: of newer knowledge.
            allow_backbones: import paths of backbones that the bundle may name, whose code is then run.

        Raises:
            ConfigError: its backbone is code from outside of this package, and not allowed.
            StorageError: it cannot be loaded: not a finished bundle, damaged, of another version (the message names
                the file), or its backbone raises.
        """
        with _loading(uri):
            folder, output, hold = open_local(uri)
            ranker = cls(folder, output.manifest.fingerprint, allow_backbones)
            ranker.knowledge = replace(ranker.knowledge, made=_seconds(output.manifest.created))
            ranker._holds = (hold,)
        return ranker.with_codes(codes) if codes else ranker

    def with_codes(self, uri: str) -> Self:
        """The same model with what `llm4msr refresh` has published of users; this one stays as it is.

        Raises:
            StorageError: not finished, damaged, or codes of another model.
        """
        other = copy.copy(self)
        with _loading(uri):
            folder, output, hold = open_local(uri, "refresh")
            other._holds = (*self._holds, hold)
            if files.CODES in output.manifest.files:
                other.knowledge = replace(other.knowledge, codes=files.read_codes(folder, self._folder))
            if files.PASTS in output.manifest.files:
                pasts, made = files.read_pasts(folder, self._folder), _seconds(output.manifest.created)
                other.knowledge = replace(other.knowledge, pasts=pasts, made=made)
            if files.USERS in output.manifest.files:
                other.users = files.read_users(folder, self._folder)
        other.knowledge_version = output.manifest.fingerprint
        return other

    def rank(self, request: RankRequest, request_id: str = "") -> RankResponse:
        """Score the items and sort them.

        Raises:
            ConfigError: a context field or a feature of users that this model does not know.
        """
        self.check(request)
        return self.rank_many([request], [request_id])[0]

    def check(self, request: RankRequest) -> None:
        """Refuse what this model cannot understand.

        Raises:
            ConfigError: a context field or a feature of users that this model does not know.
        """
        self._user_features.check(request.user_features)
        if unknown := request.context.keys() - self._context.keys():
            known = ", ".join(self._context) or "none"
            raise ConfigError(f"context: unknown field '{shorten(min(unknown))}'; this model knows: {known}")

    def rank_many(
        self,
        requests: Sequence[RankRequest],
        request_ids: Sequence[str],
        recent: Sequence[Sequence[RecentEvent]] | None = None,
        codes: Sequence[Array | None] | None = None,
        scored: list[Scored] | None = None,
    ) -> list[RankResponse]:
        """Rank several requests at once, each as if alone; unknown context fields and features are passed over.

        Args:
            requests: what is asked.
            request_ids: one for each; empty ones are made up.
            recent: for each, what its user was said to have taken, in the order of time; none where it is left out.
            codes: for each, what an LLM has made of that, where it has; they take the place of the stored ones.
            scored: gets what each was for the model, where it is given.

        Raises:
            ValueError: not as many ids as requests.
        """
        if len(requests) != len(request_ids):
            raise ValueError(f"{len(requests)} requests, but {len(request_ids)} request_ids; give one for each")
        if not requests:
            return []
        counts = [len(request.items) for request in requests]
        parts = [slice(end - count, end) for count, end in zip(counts, accumulate(counts), strict=True)]
        recent, codes = recent or [()] * len(requests), codes or [None] * len(requests)
        item_B, known = self._find(requests, parts[-1].stop, recent, codes)
        users = [self.users.find(request.user_id) for request in requests]
        queries = [
            self._query(request, user, item_B[at], one)
            for request, user, at, one in zip(requests, users, parts, known, strict=True)
        ]
        scores = self.scorer.score(queries)
        if scored is not None:
            scored += map(Scored, queries, scores)
        return [
            self._answer(request, id_ or str(uuid.uuid4()), user is not None, one, query.item_B, scores_B)
            for request, id_, user, one, query, scores_B in zip(
                requests, request_ids, users, known, queries, scores, strict=True
            )
        ]

    def score_rows(self, user_id: str, scenario: str, item_B: Ints) -> Singles:
        """The scores that `rank` gives of many items, [B], in their order and without an object for each.

        Args:
            user_id: of one user, known or not.
            scenario: the scenario.
            item_B: rows in `items`, -1 for unknown ones.
        """
        request = RankRequest.model_construct(user_id=user_id, scenario=scenario, items=[])
        known, user = self.knowledge.look_up(request, item_B[:0]), self.users.find(user_id)
        query = self._query(request, user, item_B, known)
        parts = np.split(item_B, range(AT_ONCE, len(item_B), AT_ONCE))
        return np.concatenate([self.scorer.score([query._replace(item_B=part_B)])[0] for part_B in parts])

    def title(self, item_id: str) -> str:
        """The title of an item, empty where the item is unknown."""
        row = self.items.find(item_id)
        return "" if row < 0 else self.items.texts["title"][row].decode()

    def item_ids(self, item_E: AnyInts) -> list[str]:
        """The ids of items by their rows."""
        ids = self.items.texts["id"]
        return [ids[row].decode() for row in item_E.tolist()]

    def info(self) -> ModelInfo:
        """What is loaded."""
        return ModelInfo(
            model_version=self.model_version,
            knowledge_version=self.knowledge_version,
            name=self.description.name,
            backbone=self.description.model.backbone,
            knowledge=self.description.model.variant,
            scorer=self.description.scorer,
            scenarios=list(self._scenarios),
            context=list(self._context),
            user_features=self._user_features.names,
            users=len(self.users),
            users_with_knowledge=len(self.knowledge.codes),
            users_with_past=len(self.knowledge.pasts),
            reads_history=self.knowledge.reads_history,
            items=len(self.items),
            calibration=self.description.calibration,
        )

    def _find(
        self,
        requests: Sequence[RankRequest],
        candidates: int,
        recent: Sequence[Sequence[RecentEvent]],
        codes: Sequence[Array | None],
    ) -> tuple[Ints, list[Known]]:
        """Rows of all candidates, -1 for unknown ones, and what is known of the users."""
        recent = [() if r.history_mode == "replace" else one for r, one in zip(requests, recent, strict=True)]
        told = [
            [event.item_id for event in one] + [event.item_id for event in request.history]
            for request, one in zip(requests, recent, strict=True)
        ]
        row_X = self.items.find_all([*chain.from_iterable([*(request.items for request in requests), *told])])
        bounds = pairwise(accumulate(map(len, told), initial=candidates))
        users = [
            self.knowledge.look_up(request, row_X[at:end], one, code_K)
            for request, one, code_K, (at, end) in zip(requests, recent, codes, bounds, strict=True)
        ]
        return row_X[:candidates], users

    def _query(self, request: RankRequest, user: Place | None, item_B: Ints, known: Known) -> Query:
        context = [values.get(request.context.get(name, ""), 0) for name, values in self._context.items()]
        kept_S = self._user_features.nobody_S if user is None else self.users.numbers("slots", user)
        user_S = self._user_features.put(kept_S, request.user_features)
        scenario = self._scenarios.get(request.scenario, 0)
        return Query(user_S, item_B, scenario, context, known.code_K, known.events)

    def _answer(
        self,
        request: RankRequest,
        request_id: str,
        user_known: bool,
        known: Known,
        item_B: Ints,
        scores_B: Singles,
    ) -> RankResponse:
        best = np.argsort(-scores_B, kind="stable")[: request.top_k]
        items = request.items
        return RankResponse.model_construct(
            model_version=self.model_version,
            knowledge_version=self.knowledge_version,
            request_id=request_id,
            scenario=request.scenario,
            ranked=list(map(RankedItem, map(items.__getitem__, best.tolist()), scores_B[best].tolist())),
            unknown=Unknown.model_construct(
                user=not user_known,
                scenario=request.scenario not in self._scenarios,
                items=[items[i] for i in np.flatnonzero(item_B < 0).tolist()],
                history=known.left_out,
            ),
            knowledge=known.source,
        )
