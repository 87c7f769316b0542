"""`FeatureEmbedding` of the features of some sides, in numpy: of all items once, or of one request.

Shape suffixes: B rows, S slots of these sides, E embedding width, F fields of these sides, V values.
"""

from collections.abc import Sequence

import numpy as np

from llm4msr.arrays import AnyInts, Singles
from llm4msr.model.embedding import Field, Side, slot_starts


class SlotEmbedding:
    """The embeddings of these sides' fields side by side, [B, F * E].

    Args:
        fields: all of them, in the order of the slots.
        sides: those that count.
        table_VE: of all values.
    """

    def __init__(self, fields: Sequence[Field], sides: Sequence[Side], table_VE: Singles):
        here = [field for field in fields if field.side in sides]
        slots_F = [field.slots for field in here]
        self._table_VE = table_VE
        self._first_F = np.cumsum([0, *slots_F[:-1]])
        self._is_single_S = np.repeat([slots == 1 for slots in slots_F], slots_F)
        by_side = {side: iter(slot_starts([*fields], side)) for side in sides}
        self.nothing_S = np.array([next(by_side[field.side]) for field in here for _ in range(field.slots)])
        """The slots of a row of which nothing is known."""

    def embed(self, slots_BS: AnyInts) -> Singles:
        """From places in the table."""
        x_BSE = self._table_VE.take(slots_BS, axis=0)
        if not self._is_single_S.all():
            counts_BS = (slots_BS > self.nothing_S) | self._is_single_S
            sum_BFE = np.add.reduceat(x_BSE * counts_BS[:, :, None], self._first_F, axis=1)
            count_BF = np.add.reduceat(counts_BS, self._first_F, axis=1, dtype=np.float32)
            x_BSE = sum_BFE / np.maximum(count_BF, 1)[:, :, None]
        return x_BSE.reshape(len(slots_BS), -1)
