"""Users as pools of what the LLM says about their items: each item is read once, however many users met it.

A user is two sums of whitened item vectors, of what they liked and of what they did not, each over the square root
of its count, so that a long history speaks louder than a short one but not in proportion.

Shape suffixes: I items, D kept directions, Z width of the LLM's vector, R rows of histories, N users.
"""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

PRIOR = 3.0
"""Rows that a short history is counted as having besides its own."""


def whiten(vectors_IZ: npt.NDArray[np.floating], dim: int) -> Floats:
    """The first `dim` principal components, each of unit variance: float32 [I, D], D at most I - 1 and Z.

    Hidden states share a few directions of huge variance that say little; without this they drown the rest.
    """
    centred_IZ = vectors_IZ.astype(np.float64) - vectors_IZ.mean(0, dtype=np.float64)
    variances, directions_ZZ = np.linalg.eigh(centred_IZ.T @ centred_IZ / len(centred_IZ))
    kept = np.argsort(variances)[::-1][: min(dim, max(len(centred_IZ) - 1, 1))]
    kept = kept[variances[kept] > 1e-9 * variances.max()]
    signs = np.sign(directions_ZZ[np.abs(directions_ZZ[:, kept]).argmax(0), kept])  # else they are arbitrary
    return np.asarray(centred_IZ @ (directions_ZZ[:, kept] * signs / np.sqrt(variances[kept])), np.float32)


def pool(owner_R: Ints, vector_RD: Floats, liked_R: npt.NDArray[np.bool_], users: int) -> Floats:
    """float32 [N, 2 D]: of each user 0..N-1 the liked items' pool beside that of the others."""
    halves = []
    for chosen_R in (liked_R, ~liked_R):
        sum_ND = np.zeros((users, vector_RD.shape[1]), np.float32)
        np.add.at(sum_ND, owner_R[chosen_R], vector_RD[chosen_R])
        count_N = np.bincount(owner_R[chosen_R], minlength=users)
        halves.append(sum_ND / np.sqrt(count_N + PRIOR, dtype=np.float32)[:, None])
    return np.concatenate(halves, axis=1)
