"""The self-test of a bundle: requests and the scores of the trained net, which every load repeats."""

import numpy as np
import torch

from llm4msr.arrays import Column, Halves, strings
from llm4msr.bundle.files import Case, SelfTest
from llm4msr.bundle.messages import RankRequest
from llm4msr.data import partitions
from llm4msr.model.inputs import Batch
from llm4msr.model.net import RankerNet
from llm4msr.model.pooling import pool_events
from llm4msr.model.serving_net import Lines
from llm4msr.training.batches import to_batch, to_past
from llm4msr.training.dataset import Dataset
from llm4msr.training.pasts import PastEvents, Pasts
from llm4msr.training.row_files import Rows

CASE_USERS, CASE_ITEMS = 4, 8
"""Users of all cases, the unknown one among them, and items of each case at most."""


@torch.inference_mode()
def self_test(
    net: RankerNet,
    data: Dataset,
    context: dict[str, list[str]],
    pasts: Pasts,
    forget: Column,
    vectors: Halves | None = None,
    lines: Lines | None = None,
) -> SelfTest:
    """A case for every scenario, its users and items spread over the vocabularies, scored by the trained net.

    Args:
        net: as it was trained.
        data: what it was trained on.
        context: the known values of each context field; cases have the first one.
        pasts: of all users.
        forget: raw ids of users in whose place the unknown one is asked for.
        vectors: of the items by their numbers, float16 [I, D], where users are pooled from them.
        lines: what calibrates the net's logits, if anything does.
    """
    net.eval()
    slope_S, bias_S = lines or Lines.that_change_nothing(len(data.scenario_names))
    drawn_N = np.linspace(0, partitions.rows(data.prepared, "users") - 1, CASE_USERS).astype(int)
    is_forgotten_N = np.isin(partitions.raw_ids(data.prepared, drawn_N), strings(forget))
    users = np.where(is_forgotten_N, 0, drawn_N)
    user_ids = partitions.raw_ids(data.prepared, users)
    item_ids = data.prepared.table("items.parquet", ["item_id"])["item_id"]
    items = np.unique(np.linspace(0, len(item_ids) - 1, CASE_ITEMS).astype(int))[1:].tolist() or [0]
    item_B = torch.tensor(items)
    first = {field: values[0] if values else "" for field, values in context.items()}
    known_C = torch.tensor([int(bool(value)) for value in first.values()], dtype=torch.int64)
    events = [pasts.now(user) for user in users.tolist()] if net.match is not None or vectors is not None else []
    cases = []
    for scenario, name in enumerate(data.scenario_names):
        case = scenario % len(users)
        request = RankRequest(
            user_id=user_ids[case],
            scenario=name,
            items=strings(item_ids.take(items)),
            context={field: value for field, value in first.items() if value},
        )
        rows = Rows(
            torch.full_like(item_B, int(users[case])),
            item_B,
            torch.full_like(item_B, scenario),
            torch.zeros(len(items)),
            known_C.expand(len(items), -1),
        )
        batch = to_batch(rows, data.tables, data.knowledge if net.uses_users else None)
        if vectors is not None:
            batch = _pooled(batch, events[case], vectors)
        if net.match is not None:
            before = PastEvents(*(column.repeat(len(items), 0) for column in events[case]))
            batch = batch._replace(past=to_past(item_B, before, data.tables))
        scores_B = torch.sigmoid(net(batch) * slope_S[scenario] + bias_S[scenario])
        cases.append(Case(request=request, scores=scores_B.tolist()))
    return SelfTest(cases=cases)


def _pooled(batch: Batch, past: PastEvents, vectors_ID: Halves) -> Batch:
    """The same rows of a user who is pooled from that past [1, N]."""
    vector_ND, liked_N = vectors_ID[past.item_BN[0]].astype(np.float64), past.liked_BN[0] > 0
    known_N = vector_ND.any(axis=1)  # where the past is shorter stands item 0, which has no vector
    z_Z = torch.from_numpy(pool_events(vector_ND, liked_N, known_N).astype(np.float16))
    return batch._replace(z_NZ=z_Z[None], known_N=torch.from_numpy(known_N.any(keepdims=True)))
