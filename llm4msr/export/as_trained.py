"""Candidates of one user as the trained net scores them, from the run's own files: what serving is compared with.

Shape suffixes: B candidates, C context fields, N events of a past, K numbers of a code, Z of a user's vector, I items,
D numbers of an item's vector.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llm4msr.arrays import Halves
from llm4msr.model.inputs import Batch
from llm4msr.model.net import RankerNet
from llm4msr.model.pooling import pool_events
from llm4msr.model.serving_net import Lines
from llm4msr.training.batches import to_batch, to_past
from llm4msr.training.dataset import Dataset
from llm4msr.training.pasts import PastEvents
from llm4msr.training.row_files import Rows


@dataclass(frozen=True)
class AsTrained:
    """A trained net, and what it was trained on."""

    net: RankerNet
    """As it was trained."""
    data: Dataset
    vectors: Halves | None = None
    """Of the items by their numbers, float16 [I, D], where users are pooled from them."""
    lines: Lines | None = None
    """What calibrates the net's logits, if anything does."""

    @property
    def reads_events(self) -> bool:
        """Whether what a user took before counts."""
        return self.net.match is not None or self.vectors is not None

    def batch(self, user: int, item_B: Tensor, scenario: int, context_C: Tensor, past: PastEvents | None) -> Batch:
        """What the net reads of a user's candidates, all by their numbers in the run.

        Args:
            user: number.
            item_B: int64.
            scenario: number.
            context_C: int64, the number of each context field's value.
            past: of the user, [1, N]; needed if `reads_events`.
        """
        rows = Rows(
            torch.full_like(item_B, user),
            item_B,
            torch.full_like(item_B, scenario),
            torch.zeros(len(item_B)),
            context_C.expand(len(item_B), -1),
        )
        batch = to_batch(rows, self.data.tables, self.data.knowledge if self.net.uses_users else None)
        if self.vectors is not None:
            assert past is not None
            batch = _pooled(batch, past, self.vectors)
        if self.net.match is not None:
            assert past is not None
            before = PastEvents(*(column.repeat(len(item_B), 0) for column in past))
            batch = batch._replace(past=to_past(item_B, before, self.data.tables))
        return batch

    @torch.inference_mode()
    def code(self, batch: Batch) -> Tensor | None:
        """The code of the batch's user, [K]; None for who has none, and without user level."""
        if not self.net.uses_users or not batch.known_N[0]:
            return None
        return self.net.eval().user_codes(batch.z_NZ, batch.known_N)[0]

    @torch.inference_mode()
    def scores(self, batch: Batch, code_K: Tensor | None = None) -> Tensor:
        """Probabilities of the candidates, [B].

        Args:
            batch: what the net reads.
            code_K: stands in the place of what the net makes of the user's vector.
        """
        put: AbstractContextManager[object] = nullcontext()
        if code_K is not None:
            put = self.net.user_code.register_forward_hook(lambda *_: code_K[None])
        with put:
            logits_B = self.net.eval()(batch)
        if self.lines is not None:
            scenario = int(batch.scenario_B[0])
            logits_B = logits_B * self.lines.slope_S[scenario] + self.lines.bias_S[scenario]
        return torch.sigmoid(logits_B)


def _pooled(batch: Batch, past: PastEvents, vectors_ID: Halves) -> Batch:
    """The same rows of a user who is pooled from that past [1, N]."""
    vector_ND, liked_N = vectors_ID[past.item_BN[0]].astype(np.float64), past.liked_BN[0] > 0
    known_N = vector_ND.any(axis=1)  # where the past is shorter stands item 0, which has no vector
    z_Z = torch.from_numpy(pool_events(vector_ND, liked_N, known_N).astype(np.float16))
    return batch._replace(z_NZ=z_Z[None], known_N=torch.from_numpy(known_N.any(keepdims=True)))
