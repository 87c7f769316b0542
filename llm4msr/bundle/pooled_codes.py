"""Codes from items' vectors: a user's code follows from what they took, with no LLM, where a model reads items."""

import numpy as np
import torch

from llm4msr.arrays import Array, Singles
from llm4msr.bundle.pasts import Events
from llm4msr.model.meta import KnowledgeCode
from llm4msr.model.pooling import pool_events


class PooledCodes:
    """What makes the code of a user from their events, as extraction and training do.

    Args:
        vector_ID: the items' vectors as they are pooled, float16, zero where there is none.
        coder: of the trained net.
    """

    @torch.no_grad()
    def __init__(self, vector_ID: Array, coder: KnowledgeCode):
        self._vector_ID, self._norm = vector_ID, coder.norm
        self._weight_KZ, self._bias_K = coder.affine()

    def encode(self, events: Events) -> Singles | None:
        """The code, [K]; None if no item has a vector. As everywhere, vector and code are rounded to float16."""
        vector_ED = self._vector_ID.take(events.item_E, axis=0).astype(np.float64)
        known_E = np.asarray(vector_ED.any(axis=1))
        if not known_E.any():
            return None
        z_Z = torch.from_numpy(pool_events(vector_ED, events.liked_E, known_E).astype(np.float16))
        with torch.inference_mode():
            normed_K = self._norm(torch.nn.functional.linear(z_Z.float(), self._weight_KZ, self._bias_K))
            return np.asarray(torch.tanh(normed_K).half().float())
