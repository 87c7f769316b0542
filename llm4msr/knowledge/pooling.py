"""Users as pools of what the LLM says about their items: each item is read once, however many users met it.

The formula is that of `model.pooling`, which serves too.

Shape suffixes: I items, D kept directions, Z width of the LLM's vector, R rows of histories, N pools.
"""

import numpy as np

from llm4msr.arrays import AnyFloats, Bools, Ints, Singles
from llm4msr.model.pooling import pool_sums


def whiten(vectors_IZ: AnyFloats, dim: int, fitted_I: Bools | None = None) -> Singles:
    """The first `dim` principal components, each of unit variance: float32 [I, D], with D at most Z and less than I.

    Hidden states share a few directions of huge variance that say little; without this they drown the rest. It is the
    whitening of Su et al., "Whitening Sentence Representations for Better Semantics and Faster Retrieval",
    arXiv:2103.15316.

    Args:
        vectors_IZ: the LLM's vectors of the items that have one, float16 to float64.
        dim: components to keep, if there are so many of a variance that is not zero.
        fitted_I: bool, the items that decide the components; all where none is given.
    """
    fitted_IZ = vectors_IZ if fitted_I is None else vectors_IZ[fitted_I]
    centred_IZ = fitted_IZ.astype(np.float64) - fitted_IZ.mean(0, dtype=np.float64)
    variances, directions_ZZ = np.linalg.eigh(centred_IZ.T @ centred_IZ / len(centred_IZ))
    kept = np.argsort(variances)[::-1][: min(dim, max(len(centred_IZ) - 1, 1))]
    kept = kept[variances[kept] > 1e-9 * variances.max()]
    signs = np.sign(directions_ZZ[np.abs(directions_ZZ[:, kept]).argmax(0), kept])  # else they are arbitrary
    centred_IZ = vectors_IZ.astype(np.float64) - fitted_IZ.mean(0, dtype=np.float64)
    return np.asarray(centred_IZ @ (directions_ZZ[:, kept] * signs / np.sqrt(variances[kept])), np.float32)


def pool(vector_RD: AnyFloats, liked_R: Bools, known_R: Bools, first_N: Ints, last_N: Ints) -> Singles:
    """Pools of ranges of rows: float32 [N, 2 D], the liked items' pool and then that of the others.

    Args:
        vector_RD: the whitened vector of each row's item.
        liked_R: bool, whether the user liked it.
        known_R: bool, whether the item has a vector; rows without one do not count.
        first_N: int64, the first row of each range.
        last_N: int64, the row after its last.
    """
    halves = []
    for chosen_R in (liked_R & known_R, ~liked_R & known_R):
        sum_RD = np.zeros((len(chosen_R) + 1, vector_RD.shape[1]))
        np.cumsum(np.where(chosen_R[:, None], vector_RD, 0), axis=0, dtype=np.float64, out=sum_RD[1:])
        count_R = np.r_[0, np.cumsum(chosen_R)]
        sum_ND, count_N = sum_RD[last_N] - sum_RD[first_N], count_R[last_N] - count_R[first_N]
        halves.append(pool_sums(sum_ND, count_N))
    return np.concatenate(halves, axis=1)
