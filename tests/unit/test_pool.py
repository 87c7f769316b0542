import numpy as np
import pyarrow as pa
import pytest

from llm4msr import pool
from llm4msr.pool_users import pooled_rows

RNG = np.random.default_rng(3)


def test_whitened_vectors_have_unit_variance_and_no_correlation():
    mixed = RNG.standard_normal((400, 12)) @ (RNG.standard_normal((12, 12)) * 10 ** RNG.uniform(-2, 2, 12)) + 5
    white = pool.whiten(mixed.astype(np.float16), 8)
    assert white.shape == (400, 8)
    np.testing.assert_allclose(np.cov(white.T, bias=True), np.eye(8), atol=1e-2)
    np.testing.assert_allclose(white.mean(0), 0, atol=1e-4)


def test_whitening_is_the_same_each_time_and_keeps_the_strongest_directions():
    vectors = RNG.standard_normal((50, 6)) * [10, 5, 1, 0.1, 0.1, 0.1]
    white = pool.whiten(vectors, 2)
    np.testing.assert_array_equal(white, pool.whiten(vectors, 2))
    for direction in range(2):
        assert abs(np.corrcoef(white[:, direction], vectors[:, direction])[0, 1]) > 0.9


@pytest.mark.parametrize(("items", "kept"), [(1, 1), (3, 2), (9, 5)])
def test_few_items_or_a_narrow_llm_give_fewer_directions(items: int, kept: int):
    white = pool.whiten(RNG.standard_normal((items, 5)), 64)
    assert white.shape[1] <= kept
    assert np.isfinite(white).all()


def test_a_user_is_the_pool_of_liked_items_beside_that_of_the_others():
    vectors = RNG.standard_normal((6, 3)).astype(np.float32)
    owner, liked = np.array([2, 0, 2, 2, 0, 0]), np.array([True, True, False, True, False, False])
    found = pool.pool(owner, vectors, liked, 4)
    first = np.r_[vectors[1] / np.sqrt(1 + pool.PRIOR), (vectors[4] + vectors[5]) / np.sqrt(2 + pool.PRIOR)]
    third = np.r_[(vectors[0] + vectors[3]) / np.sqrt(2 + pool.PRIOR), vectors[2] / np.sqrt(1 + pool.PRIOR)]
    np.testing.assert_allclose(found, [first, np.zeros(6), third, np.zeros(6)], rtol=1e-5)


def test_rows_of_users_are_pooled_from_their_own_items_only():
    """The shard of two users, of whom one met only an item that the LLM failed to read."""
    vectors = np.eye(4, dtype=np.float32)
    known = np.array([False, True, False, True])
    users = pa.table({"user": [7, 4], "user_id": ["g", "d"], "interactions": [2, 1]})
    seen = pa.table({"user": [7, 7, 4], "item": [1, 3, 2], "label": pa.array([1, 0, 1], pa.float32())})
    rows = pooled_rows(users, seen, vectors, known).to_pylist()
    assert [(row["id"], row["raw_id"], row["error"]) for row in rows] == [
        (7, "g", ""),
        (4, "d", "no item with a vector"),
    ]
    assert rows[0]["vector"] == [0, 0.5, 0, 0, 0, 0, 0, 0.5]
    assert not any(rows[1]["vector"])
    assert rows[0]["fingerprint"] != rows[1]["fingerprint"]
