"""What scores the nets that do not fold: torch, all requests of a call together.

Shape suffixes: N requests, B candidates of all of them, S slots, K code width.
"""

from collections.abc import Sequence

import numpy as np
import torch

from llm4msr.arrays import Ints, Singles
from llm4msr.bundle.id_table import Partition
from llm4msr.bundle.pasts import PastReader
from llm4msr.bundle.scorer import Query
from llm4msr.model.embedding import slot_starts
from llm4msr.model.serving_net import ServingNet


class TorchScorer:
    """Scores with the net itself.

    Args:
        net: in evaluation mode.
        items: the table of items.
    """

    def __init__(self, net: ServingNet, items: Partition):
        self._net = net
        self._slots_IS = items.numbers["slots"]
        self._past_reader = PastReader(items, net.fields)
        self._nothing_S = slot_starts(net.fields, "item")
        self._starts = np.r_[slot_starts(net.fields, "scenario"), slot_starts(net.fields, "context")]

    def score(self, queries: Sequence[Query]) -> list[Singles]:
        """Probabilities of the candidates of each, [B]."""
        counts = [len(query.item_B) for query in queries]
        item_B = np.concatenate([query.item_B for query in queries])
        owner_B = np.repeat(np.arange(len(queries)), counts)
        scenario_N = np.array([query.scenario for query in queries])
        slots_BS = self._slots(queries, item_B, owner_B)
        match = None
        if self._net.match is not None:
            match = self._past_reader.read(item_B, counts, scenario_N, [query.events for query in queries])
        with torch.inference_mode():
            scenario_B = torch.from_numpy(scenario_N[owner_B])
            logits_B = self._net(slots_BS, scenario_B, self._codes(queries), torch.from_numpy(owner_B), match)
            scores_B = torch.sigmoid(logits_B.float())  # a net may run in less precision
        return [np.asarray(part) for part in scores_B.split(counts)]

    def _codes(self, queries: Sequence[Query]) -> torch.Tensor:
        """float32 [N, K]: the user's code or, for who has none, the learned default; [N, 0] without user level."""
        if not self._net.uses_users:
            return torch.zeros(len(queries), 0)
        default_K = self._net.default_K.numpy()
        codes = [default_K if query.code_K is None else query.code_K for query in queries]
        return torch.from_numpy(np.stack(codes, dtype=np.float32))

    def _slots(self, queries: Sequence[Query], item_B: Ints, owner_B: Ints) -> torch.Tensor:
        """int64 [B, S]: places in the embedding table."""
        user_NS = np.stack([query.user_S for query in queries])
        last_NS = np.array([[query.scenario, *query.context] for query in queries]) + self._starts
        item_BS = self._slots_IS.take(item_B, axis=0)
        item_BS[item_B < 0] = self._nothing_S
        sides = [user_NS.take(owner_B, axis=0), item_BS, last_NS.take(owner_B, axis=0)]
        return torch.from_numpy(np.concatenate(sides, axis=1, dtype=np.int64))
