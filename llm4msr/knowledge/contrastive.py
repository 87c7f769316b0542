"""A projection of items' vectors in which what the same users took lies close together. The LLM stays frozen.

Of two items that a user liked in training rows, one must be told by the other among those of other users: the loss is
InfoNCE (van den Oord et al., "Representation Learning with Contrastive Predictive Coding", arXiv:1807.03748), in both
directions, with the other pairs of a batch as negatives. What is trained is one matrix, so an item that nobody took yet
is projected by what its text says.

Shape suffixes: P pairs, B pairs of a batch, I items with the unknown one as row 0, W width before, D width after.
"""

import numpy as np
import pyarrow.compute as pc
import torch
from torch.nn import functional

from llm4msr import hardware
from llm4msr.arrays import Bools, Column, Ints, Singles
from llm4msr.data import partitions
from llm4msr.errors import DataError
from llm4msr.progress import track
from llm4msr.storage import StageOutput

BATCH, STEPS, RATE, TEMPERATURE = 512, 1024, 1e-2, 0.2
"""Pairs of a step, steps, Adam's learning rate, and the temperature that training starts with."""
MOST_PARTITIONS = 64
"""Of users, whose rows pairs are drawn from: evenly spaced ones where there are more."""
_SEED = 4711


def draw_pairs(data: StageOutput, forget: Column) -> Ints:
    """Pairs of items that a user liked in the rows that knowledge may see, at random: int64 [P, 2].

    Args:
        data: what was prepared.
        forget: ids of users who do not count.
    """
    total = partitions.count(data)
    chosen = np.unique(np.linspace(0, total - 1, min(total, MOST_PARTITIONS)).astype(np.int64))
    parts = [_pairs_of_partition(data, int(partition), forget) for partition in chosen]
    weights = np.array([len(part.user_R) for part in parts], np.float64)
    if not weights.any():
        return np.zeros((0, 2), np.int64)
    counts = np.random.default_rng(_SEED).multinomial(BATCH * STEPS, weights / weights.sum())
    pairs_P2 = np.concatenate(
        [part.draw(count, at) for at, (part, count) in enumerate(zip(parts, counts, strict=True))]
    )
    return np.random.default_rng(_SEED).permutation(pairs_P2)


class _Likes:
    """Rows of users who liked two items or more, a user's rows together."""

    def __init__(self, user_R: Ints, item_R: Ints):
        bounds = np.r_[np.flatnonzero(np.diff(user_R, prepend=-1)), len(user_R)]
        length_R = np.repeat(np.diff(bounds), np.diff(bounds))
        first_R = np.repeat(bounds[:-1], np.diff(bounds))
        kept = np.flatnonzero(length_R > 1)
        self.user_R, self._item_R = user_R[kept], item_R
        self._row_R, self._first_R, self._length_R = kept, first_R[kept], length_R[kept]

    def draw(self, count: int, seed: int) -> Ints:
        """int64 [count, 2]: the item of a random row, and that of another row of the same user."""
        rng = np.random.default_rng([_SEED, seed])
        at = rng.integers(len(self.user_R), size=count) if count else np.zeros(0, np.int64)
        further = 1 + rng.integers(1 << 40, size=count) % (self._length_R[at] - 1)
        other = self._first_R[at] + (self._row_R[at] - self._first_R[at] + further) % self._length_R[at]
        return np.stack([self._item_R[self._row_R[at]], self._item_R[other]], axis=1)


def _pairs_of_partition(data: StageOutput, partition: int, forget: Column) -> _Likes:
    rows = partitions.read(data, "seen", partition, ["user", "item", "label"])
    users = partitions.read(data, "histories", partition, ["user", "user_id"])
    forgotten = users["user"].filter(pc.is_in(users["user_id"], value_set=forget))
    liked = (pc.field("label") > 0.5) & (pc.field("item") > 0) & ~pc.field("user").isin(forgotten.combine_chunks())
    rows = rows.filter(liked)
    return _Likes(rows["user"].to_numpy(), rows["item"].to_numpy())


def project(wide_IW: Singles, known_I: Bools, pairs_P2: Ints, dim: int) -> Singles:
    """The vectors in `dim` directions that tell apart what other users took: float32 [I, D], their mean variance 1.

    Args:
        wide_IW: principal components of unit variance, the strongest first; more than `dim` of them help.
        known_I: bool, which items have a vector.
        pairs_P2: of items that the same user took.
        dim: width of the result, at most W.

    Raises:
        DataError: no user took two items that have vectors.
    """
    pairs_P2 = pairs_P2[known_I[pairs_P2].all(axis=1)]
    if len(pairs_P2) < BATCH:
        raise DataError(
            "extract.projection = 'contrastive' needs users who liked two items with vectors in training rows; use "
            "'principal'"
        )
    wide = torch.from_numpy(wide_IW)
    weight_WD = torch.eye(wide.shape[1])[:, :dim].clone().requires_grad_()
    sharpness = torch.tensor(-np.log(TEMPERATURE), dtype=torch.float32, requires_grad=True)
    adam = torch.optim.Adam([weight_WD, sharpness], lr=RATE)
    steps = len(pairs_P2) // BATCH
    with hardware.one_thread(), track("project items", steps) as progress:
        for pairs_B2 in np.split(pairs_P2[: steps * BATCH], steps):
            loss = _loss(wide[torch.from_numpy(pairs_B2)] @ weight_WD, pairs_B2, sharpness.exp())
            adam.zero_grad()
            loss.backward()
            adam.step()
            progress.advance(1)
    with torch.no_grad():
        projected_ID: Singles = (wide @ weight_WD).numpy()
    return projected_ID / np.sqrt(np.square(projected_ID[known_I]).mean())


def _loss(vector_B2D: torch.Tensor, pairs_B2: Ints, sharpness: torch.Tensor) -> torch.Tensor:
    """InfoNCE in both directions; the same item in another pair is no negative."""
    one_BD, other_BD = functional.normalize(vector_B2D, dim=2).unbind(1)
    logits_BB = one_BD @ other_BD.T * sharpness
    is_same_BB = (pairs_B2[:, 0, None] == pairs_B2[None, :, 0]) | (pairs_B2[:, 1, None] == pairs_B2[None, :, 1])
    np.fill_diagonal(is_same_BB, False)
    logits_BB = logits_BB.masked_fill(torch.from_numpy(is_same_BB), -1e9)
    own_B = torch.arange(len(pairs_B2))
    return functional.cross_entropy(logits_BB, own_B) + functional.cross_entropy(logits_BB.T, own_B)
