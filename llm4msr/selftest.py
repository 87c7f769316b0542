"""A few requests and the scores that the trained net gave them: a bundle repeats them whenever it is loaded."""

from itertools import islice
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel

from llm4msr.api import RankRequest
from llm4msr.batches import Rows, to_batch
from llm4msr.fit import Data
from llm4msr.ranker import RankerNet

TOLERANCE = 1e-5
"""Between probabilities of this net in training's layout and in serving's, or on another machine."""
USERS, ITEMS = 4, 8


class Case(BaseModel):
    """One request and its items' scores, in the request's order."""

    request: RankRequest
    scores: list[float]


class SelfTest(BaseModel):
    """All cases."""

    cases: list[Case]


@torch.inference_mode()
def made(net: RankerNet, data: Data, context: dict[str, list[str]]) -> SelfTest:
    """Cases of every scenario, for users spread over the vocabulary and the unknown one, scored by the trained net."""
    net.eval()
    raw = {
        side: data.prepared.table(f"{side}s.parquet", [f"{side}_id"])[f"{side}_id"].to_pylist()
        for side in ("user", "item")
    }
    users = np.linspace(0, len(raw["user"]) - 1, USERS).astype(int).tolist()
    items = np.unique(np.linspace(0, len(raw["item"]) - 1, ITEMS).astype(int))[1:].tolist() or [0]
    values = {name: islice(known, 1) for name, known in context.items()}
    first: dict[str, Any] = {name: next(known, "") for name, known in values.items()}
    cases = []
    for scenario in range(len(data.scenario_names)):
        user = users[scenario % len(users)]
        request = RankRequest(
            user_id=raw["user"][user],
            scenario=data.scenario_names[scenario],
            items=[raw["item"][item] for item in items],
            context={name: value for name, value in first.items() if value},
        )
        item_B = torch.tensor(items)
        known_C = torch.tensor([int(bool(value)) for value in first.values()], dtype=torch.int64)
        rows = Rows(
            torch.full_like(item_B, user),
            item_B,
            torch.full_like(item_B, scenario),
            torch.zeros(len(items)),
            known_C.expand(len(items), -1),
        )
        batch = to_batch(rows, data.tables, data.knowledge if net.uses_users else None)
        cases.append(Case(request=request, scores=torch.sigmoid(net(batch)).tolist()))
    return SelfTest(cases=cases)
