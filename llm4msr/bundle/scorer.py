"""What scores candidates: products of numpy where the net folds, torch for all others.

A folded net makes one matrix of a request, of all that is linear before its first activation (`model/serving_fold.py`).
What of that is an item's alone lies ready in `items.arrow`, a row of few float32 numbers an item, which is mapped into
memory. A scenario's layers are folded once, at its first request: the self-test has one for each.

Shape suffixes: N requests, B candidates of one, I items, R numbers of a row, P those of a candidate,
D those of an item's vector.
"""

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import NamedTuple, Protocol

import numpy as np
import torch

from llm4msr.arrays import AnyInts, Array, Ints, Singles
from llm4msr.bundle.id_table import Partition
from llm4msr.bundle.pasts import Events
from llm4msr.model.embedding import Side
from llm4msr.model.fold import array, sigmoid
from llm4msr.model.match_fold import FoldedPast, MatchFold
from llm4msr.model.serving_fold import ServingFold
from llm4msr.model.serving_net import ServingNet
from llm4msr.model.slot_embedding import SlotEmbedding

SCENARIOS = 256
"""Folds that are kept at once: some 0.3 MB each at the default sizes."""
BLOCK = 512
"""Candidates that are scored at once: a layer's outputs stay in a core's own cache, and memory is bounded."""
CHUNK = 1 << 16
"""Items whose rows are made at once."""


class Query(NamedTuple):
    """A request in numbers."""

    user_S: AnyInts
    """Places of the user's features in the embedding table."""
    item_B: Ints
    """Rows of the candidates in the table of items, -1 for unknown ones."""
    scenario: int
    """Its number, 0 for an unknown one."""
    context: list[int]
    """Number of each context field's value, 0 for an unknown one."""
    code_K: Array | None
    """The user's code, None for who has none."""
    events: Events
    """What the user took before."""


class Scorer(Protocol):
    """Scores the candidates of requests."""

    def score(self, queries: Sequence[Query]) -> list[Singles]:
        """Probabilities of the candidates of each, [B]."""
        ...


class FoldedScorer:
    """Scores with numpy, request by request.

    Args:
        net: one that `can_fold`.
        items: the table of items, with the column `row`.
    """

    def __init__(self, net: ServingNet, items: Partition):
        self._net, config = net, net.config
        self._match = MatchFold(net.match) if net.match is not None else None
        self._row_IR: Singles = items.numbers["row"]
        self._unit_ID: Array = items.numbers.get("unit", np.zeros((len(items), 0), np.float16))
        nothing_1S = _embedding(net, "item").nothing_S[None]
        self._nothing_R = candidate_rows(net, nothing_1S, np.zeros((1, self._unit_ID.shape[1]), np.float16))[0]
        names = [field.name for field in net.fields if field.side == "item"]
        self._id_at = names.index("item_id") * config.embedding_dim
        self._id_end = self._id_at + config.embedding_dim
        self._features = len(names) * config.embedding_dim
        self._own = self._features + config.code_dim * ("candidate" in config.match)
        self._shared = _embedding(net, "user", "scenario", "context")
        self._start_S = self._shared.nothing_S[-1 - sum(field.side == "context" for field in net.fields) :]
        self._default_K = array(net.default_K) if net.uses_users else np.zeros(0, np.float32)
        self._fold = lru_cache(SCENARIOS)(partial(ServingFold, net))  # no cycle: a replica's collector skips old models

    def score(self, queries: Sequence[Query]) -> list[Singles]:
        """Probabilities of the candidates of each, [B]."""
        return [self._score(query) for query in queries]

    def _score(self, query: Query) -> Singles:
        fold = self._fold(query.scenario)
        code_K = self._default_K if query.code_K is None else query.code_K.astype(np.float32)
        slots_S = np.concatenate([query.user_S, np.add(self._start_S, [query.scenario, *query.context])])
        shared_C = self._shared.embed(slots_S[None])[0]
        if self._net.config.knowledge == "feature":
            shared_C = np.concatenate([shared_C, code_K])
        matrix_OP = fold.matrix(shared_C, code_K)
        past = self._past(query)
        blocks = [query.item_B[at : at + BLOCK] for at in range(0, len(query.item_B), BLOCK)]
        logits = [fold.logits(matrix_OP, self._candidates(item_B, past, matrix_OP.shape[1])) for item_B in blocks]
        return sigmoid(np.concatenate(logits))

    def _candidates(self, item_B: Ints, past: FoldedPast | None, width: int) -> Singles:
        """What differs between candidates, then 1: [B, P + 1]."""
        is_unknown_B = item_B < 0
        row_BR = self._row_IR.take(item_B, axis=0)
        row_BR[is_unknown_B] = self._nothing_R
        candidate_BP = np.ones((len(item_B), width), np.float32)
        candidate_BP[:, : self._own] = row_BR[:, : self._own]
        if past is not None and self._match is not None:
            at, unit_BD = self._own, row_BR[:, :0]
            if self._match.reads_vectors:
                unit_BD = self._units(item_B)
                unit_BD[is_unknown_B] = 0
            id_BE = row_BR[:, self._id_at : self._id_end]
            for part in self._match.features(past, unit_BD, row_BR[:, self._features :], id_BE):
                candidate_BP[:, at : at + part.shape[1]] = part
                at += part.shape[1]
        return candidate_BP

    def _past(self, query: Query) -> FoldedPast | None:
        if self._match is None:
            return None
        events = query.events
        here_E = (events.scenario_E == query.scenario) & (query.scenario > 0)  # two unknown ones may differ
        id_EI = self._row_IR.take(events.item_E, axis=0)[:, self._id_at : self._id_end]
        return FoldedPast(self._units(events.item_E), id_EI, here_E, events.liked_E)

    def _units(self, item_E: AnyInts) -> Singles:
        return torch.from_numpy(self._unit_ID.take(item_E, axis=0)).float().numpy()  # numpy converts far slower


@torch.no_grad()
def candidate_rows(net: ServingNet, slots_IS: AnyInts, unit_ID: Array) -> Singles:
    """The column `row` of `items.arrow`, [I, R]: an item's features, and its vector as the match projects it.

    Args:
        net: that serves.
        slots_IS: places of the items' features in the embedding table.
        unit_ID: the items' vectors, of unit length; [I, 0] if the model matches none.
    """
    embedding = _embedding(net, "item")
    chunks = [slice(at, at + CHUNK) for at in range(0, len(slots_IS), CHUNK)]
    return np.concatenate([_candidate_rows(net, embedding, slots_IS[at], unit_ID[at]) for at in chunks])


def _candidate_rows(net: ServingNet, embedding: SlotEmbedding, slots_IS: AnyInts, unit_ID: Array) -> Singles:
    features_IF = embedding.embed(slots_IS)
    if net.match is None or not net.match.projects:
        return features_IF
    assert net.match.vectors is not None
    projected_IK = net.match.vectors.project(torch.from_numpy(unit_ID).float())
    return np.concatenate([features_IF, array(projected_IK)], axis=1)


def _embedding(net: ServingNet, *sides: Side) -> SlotEmbedding:
    return SlotEmbedding(net.fields, sides, array(net.embedding.table.weight))
