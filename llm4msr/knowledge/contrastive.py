"""A projection of items' vectors in which what the same users took lies close together. The LLM stays frozen.

Of two items that a user liked in training rows, one must be told by the other among those of the batch's other pairs:
InfoNCE (van den Oord et al., "Representation Learning with Contrastive Predictive Coding", arXiv:1807.03748), in both
directions. What is trained is one matrix, so an item that nobody took yet is projected by what its text says.

Shape suffixes: P pairs, B pairs of a batch, R rows of liked items, I items with the unknown one as row 0, W width
before, D width after.
"""

from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc
import torch
from torch.nn import functional

from llm4msr import hardware
from llm4msr.arrays import Bools, Column, Ints, Ints32, Singles
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

    Raises:
        DataError: there is no such user.
    """
    total = partitions.count(data)
    chosen = np.unique(np.linspace(0, total - 1, min(total, MOST_PARTITIONS)).astype(np.int64)).tolist()
    likes = [_Likes.of(data, partition, forget) for partition in chosen]
    weights = np.array([len(one.row_N) for one in likes], np.float64)
    if not weights.any():
        raise DataError(
            "extract.projection = 'contrastive' learns from users who liked two items in training rows, and there are "
            "none; use 'principal'"
        )
    counts = np.random.default_rng(_SEED).multinomial(BATCH * STEPS, weights / weights.sum()).tolist()
    pairs = [one.draw(count, seed) for seed, (one, count) in enumerate(zip(likes, counts, strict=True)) if count]
    return np.random.default_rng(_SEED).permutation(np.concatenate(pairs))


class _Likes(NamedTuple):
    """What the users of a partition liked, a user's rows together, and which of these rows have a second one."""

    item_R: Ints32
    first_R: Ints32
    """The first row of the same user."""
    length_R: Ints32
    """How many rows the user has."""
    row_N: Ints32
    """Rows of users who have two or more."""

    @classmethod
    def of(cls, data: StageOutput, partition: int, forget: Column) -> "_Likes":
        rows = partitions.read(data, "seen", partition, ["user", "item", "label"])
        rows = rows.filter((pc.field("label") > 0.5) & (pc.field("item") > 0))
        if len(forget):
            users = partitions.read(data, "histories", partition, ["user", "user_id"])
            forgotten = users["user"].filter(pc.is_in(users["user_id"], value_set=forget))
            rows = rows.filter(~pc.field("user").isin(forgotten.combine_chunks()))
        bounds = np.r_[np.flatnonzero(np.diff(rows["user"].to_numpy(), prepend=-1)), len(rows)]
        length_U = np.diff(bounds)
        length_R = np.repeat(length_U, length_U)
        columns = (rows["item"].to_numpy(), np.repeat(bounds[:-1], length_U), length_R, np.flatnonzero(length_R > 1))
        return cls(*(column.astype(np.int32) for column in columns))

    def draw(self, count: int, seed: int) -> Ints:
        """int64 [count, 2]: the item of a random row, and that of another row of the same user."""
        rng = np.random.default_rng([_SEED, seed])
        row_P = self.row_N[rng.integers(len(self.row_N), size=count)].astype(np.int64)
        first_P, length_P = self.first_R[row_P], self.length_R[row_P]
        further_P = 1 + rng.integers(1 << 40, size=count) % (length_P - 1)
        other_P = first_P + (row_P - first_P + further_P) % length_P
        return np.stack([self.item_R[row_P], self.item_R[other_P]], axis=1).astype(np.int64)


def project(wide_IW: Singles, trained_I: Bools, pairs_P2: Ints, dim: int) -> Singles:
    """The vectors in `dim` directions that tell apart what other users took: float32 [I, D].

    Args:
        wide_IW: principal components of unit variance, the strongest first; more than `dim` of them help.
        trained_I: bool, which items of training rows have a vector; the mean square of their numbers becomes 1.
        pairs_P2: of items that the same user took.
        dim: width of the result, at most W.

    Raises:
        DataError: there are fewer pairs of items with vectors than a batch needs.
    """
    pairs_P2 = pairs_P2[trained_I[pairs_P2].all(axis=1)]
    if len(pairs_P2) < BATCH:
        raise DataError(
            "extract.projection = 'contrastive': hardly any user liked two items that have a vector; use 'principal'"
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
    return projected_ID / np.sqrt(np.square(projected_ID[trained_I]).mean())


def _loss(vector_B2D: torch.Tensor, pairs_B2: Ints, sharpness: torch.Tensor) -> torch.Tensor:
    """InfoNCE in both directions; another pair with the same item in the same place is no negative."""
    one_BD, other_BD = functional.normalize(vector_B2D, dim=2).unbind(1)
    logits_BB = one_BD @ other_BD.T * sharpness
    is_same_BB = (pairs_B2[:, 0, None] == pairs_B2[None, :, 0]) | (pairs_B2[:, 1, None] == pairs_B2[None, :, 1])
    np.fill_diagonal(is_same_BB, False)
    logits_BB = logits_BB.masked_fill(torch.from_numpy(is_same_BB), -1e9)
    own_B = torch.arange(len(pairs_B2))
    return functional.cross_entropy(logits_BB, own_B) + functional.cross_entropy(logits_BB.T, own_B)
