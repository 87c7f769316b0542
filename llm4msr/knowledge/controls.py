"""Wrong vectors to compare knowledge with: those of others, or random numbers. Partition by partition."""

import numpy as np

from llm4msr.arrays import Halves, Ints
from llm4msr.data.partitioned_rows import PartitionedRows
from llm4msr.knowledge.item_vectors import of_unit_length

_ROWS = 1 << 13


def fill_with_noise(matrix_NZ: Halves, seed: int, partition: int) -> None:
    """Normal numbers that follow seed and partition, in pieces."""
    rng = np.random.default_rng([seed, 4711, partition])
    for start in range(0, len(matrix_NZ), _ROWS):
        piece = matrix_NZ[start : start + _ROWS]
        piece[:] = rng.standard_normal(piece.shape, np.float32)


def noise_in_memory(vectors: PartitionedRows, seed: int, partition: int) -> Halves:
    """As many as a partition has of vectors: float16 [N, Z]."""
    noise_NZ = np.empty(vectors.open(partition).shape, np.float16)
    fill_with_noise(noise_NZ, seed, partition)
    return noise_NZ


def shuffle(known: PartitionedRows, seed: int, partition: int) -> Ints:
    """For each known user of a partition the place of another one, and for the others their own: int64 [N]."""
    known_N = known.open(partition)
    places, stand_in_N = np.flatnonzero(known_N), np.arange(len(known_N))
    stand_in_N[places] = np.random.default_rng([seed, 4711, partition]).permutation(places)
    return stand_in_N


def wrong_items(vectors_ID: Halves, control: str, seed: int) -> Halves:
    """Items' vectors, `shuffled` among the items that have one, or `random` ones in their place: float16 [I, D].

    All are of unit length.
    """
    rng, places = np.random.default_rng([seed, 4711, 0]), np.flatnonzero(vectors_ID.any(1))
    wrong_ID = np.zeros_like(vectors_ID)
    if control == "shuffled":
        wrong_ID[places] = vectors_ID[rng.permutation(places)]
        return wrong_ID
    for start in range(0, len(places), _ROWS):
        piece = places[start : start + _ROWS]
        wrong_ID[piece] = rng.standard_normal((len(piece), wrong_ID.shape[1]), np.float32)
    return of_unit_length(wrong_ID)


def own_numbers(past_users: PartitionedRows, offset_P: Ints, partition: int) -> Ints:
    """For each row of a partition's past the number of its user: int64 [R]."""
    return np.asarray(offset_P[partition] + past_users.open(partition))


def shuffled_past(past_users: PartitionedRows, stand_ins: PartitionedRows, first: int, partition: int) -> Ints:
    """For each row of a partition's past that of the user who stands in, as far into their history: int64 [R].

    Of who has no past it is the number of the user.

    Args:
        past_users: whose row it is, by place in the partition.
        stand_ins: who stands in for each user, likewise.
        first: the number of the first row of the past of all partitions.
        partition: the partition.
    """
    user_R, stand_in_N = past_users.open(partition), stand_ins.open(partition)
    count_N = np.bincount(user_R, minlength=len(stand_in_N))
    starts = np.flatnonzero(np.diff(user_R, prepend=-1))
    first_N = np.zeros(len(stand_in_N), np.int64)
    first_N[user_R[starts]] = starts
    other_R = stand_in_N[user_R]
    place_R = (np.arange(len(user_R)) - first_N[user_R]) * count_N[other_R] // count_N[user_R]
    number_R = first + past_users.offset_P[partition] + first_N[other_R] + place_R
    return np.where(count_N[other_R] > 0, number_R, stand_ins.offset_P[partition] + other_R)
