"""The self-test of a bundle: requests and the scores of the trained net, which every load repeats."""

import numpy as np
import torch

from llm4msr.arrays import Column, strings
from llm4msr.bundle.files import Case, SelfTest
from llm4msr.bundle.messages import RankRequest
from llm4msr.data import partitions
from llm4msr.model.net import RankerNet
from llm4msr.training.batches import to_batch, to_past
from llm4msr.training.dataset import Dataset
from llm4msr.training.pasts import PastEvents, Pasts
from llm4msr.training.row_files import Rows

CASE_USERS, CASE_ITEMS = 4, 8
"""Users of all cases, the unknown one among them, and items of each case at most."""


@torch.inference_mode()
def self_test(
    net: RankerNet, data: Dataset, context: dict[str, list[str]], pasts: Pasts | None, forget: Column
) -> SelfTest:
    """A case for every scenario, its users and items spread over the vocabularies, scored by the trained net.

    `context` are the known values of each context field; cases have the first one. Of those whom to `forget` no past
    is known.
    """
    net.eval()
    users = np.linspace(0, partitions.rows(data.prepared, "users") - 1, CASE_USERS).astype(int).tolist()
    user_ids = partitions.raw_ids(data.prepared, np.array(users))
    item_ids = data.prepared.table("items.parquet", ["item_id"])["item_id"]
    items = np.unique(np.linspace(0, len(item_ids) - 1, CASE_ITEMS).astype(int))[1:].tolist() or [0]
    item_B = torch.tensor(items)
    first = {field: values[0] if values else "" for field, values in context.items()}
    known_C = torch.tensor([int(bool(value)) for value in first.values()], dtype=torch.int64)
    forgotten = set(strings(forget))
    known = [0 if raw_id in forgotten else user for user, raw_id in zip(users, user_ids, strict=True)]
    events = [pasts.now(user) for user in known] if pasts is not None and net.match is not None else []
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
            torch.full_like(item_B, users[case]),
            item_B,
            torch.full_like(item_B, scenario),
            torch.zeros(len(items)),
            known_C.expand(len(items), -1),
        )
        batch = to_batch(rows, data.tables, data.knowledge if net.uses_users else None)
        if events:
            before = PastEvents(*(column.repeat(len(items), 0) for column in events[case]))
            batch = batch._replace(past=to_past(item_B, before, data.tables))
        scores_B = torch.sigmoid(net(batch))
        cases.append(Case(request=request, scores=scores_B.tolist()))
    return SelfTest(cases=cases)
