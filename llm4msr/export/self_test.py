"""The self-test of a bundle: requests and the scores of the trained net, which every load repeats."""

import numpy as np
import torch

from llm4msr.arrays import Column, strings
from llm4msr.bundle.messages import RankRequest
from llm4msr.bundle.self_test import Case, SelfTest
from llm4msr.data import partitions
from llm4msr.export.as_trained import AsTrained
from llm4msr.training.pasts import Pasts

CASE_USERS, CASE_ITEMS = 4, 8
"""Users of all cases, the unknown one among them, and items of each case at most."""


def self_test(trained: AsTrained, context: dict[str, list[str]], pasts: Pasts, forget: Column) -> SelfTest:
    """A case for every scenario, its users and items spread over the vocabularies, scored by the trained net.

    Args:
        trained: the net.
        context: the known values of each context field; cases have the first one.
        pasts: of all users.
        forget: raw ids of users in whose place the unknown one is asked for.
    """
    data = trained.data
    drawn_N = np.linspace(0, partitions.rows(data.prepared, "users") - 1, CASE_USERS).astype(int)
    is_forgotten_N = np.isin(partitions.raw_ids(data.prepared, drawn_N), strings(forget))
    users = np.where(is_forgotten_N, 0, drawn_N)
    user_ids = partitions.raw_ids(data.prepared, users)
    item_ids = data.prepared.table("items.parquet", ["item_id"])["item_id"]
    items = np.unique(np.linspace(0, len(item_ids) - 1, CASE_ITEMS).astype(int))[1:].tolist() or [0]
    item_B = torch.tensor(items)
    first = {field: values[0] if values else "" for field, values in context.items()}
    known_C = torch.tensor([int(bool(value)) for value in first.values()], dtype=torch.int64)
    before = [pasts.now(user) if trained.reads_events else None for user in users.tolist()]
    cases = []
    for scenario, name in enumerate(data.scenario_names):
        case = scenario % len(users)
        request = RankRequest(
            user_id=user_ids[case],
            scenario=name,
            items=strings(item_ids.take(items)),
            context={field: value for field, value in first.items() if value},
        )
        scores_B = trained.scores(trained.batch(int(users[case]), item_B, scenario, known_C, before[case]))
        cases.append(Case(request=request, scores=scores_B.tolist()))
    return SelfTest(cases=cases)
