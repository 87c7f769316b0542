import numpy as np
import pyarrow as pa
import pytest

from llm4msr.knowledge import pooling
from llm4msr.knowledge.user_pooling import past_rows, pooled_rows
from llm4msr.model.pooling import PRIOR

RNG = np.random.default_rng(3)


def test_whitened_vectors_have_unit_variance_and_no_correlation():
    mixed = RNG.standard_normal((400, 12)) @ (RNG.standard_normal((12, 12)) * 10 ** RNG.uniform(-2, 2, 12)) + 5
    white = pooling.whiten(mixed.astype(np.float16), 8)
    assert white.shape == (400, 8)
    np.testing.assert_allclose(np.cov(white.T, bias=True), np.eye(8), atol=1e-2)
    np.testing.assert_allclose(white.mean(0), 0, atol=1e-4)


def test_whitening_is_the_same_each_time_and_keeps_the_strongest_directions():
    vectors = RNG.standard_normal((50, 6)) * [10, 5, 1, 0.1, 0.1, 0.1]
    white = pooling.whiten(vectors, 2)
    np.testing.assert_array_equal(white, pooling.whiten(vectors, 2))
    for direction in range(2):
        assert abs(np.corrcoef(white[:, direction], vectors[:, direction])[0, 1]) > 0.9


@pytest.mark.parametrize(("items", "kept"), [(1, 1), (3, 2), (9, 5)])
def test_few_items_or_a_narrow_llm_give_fewer_directions(items: int, kept: int):
    white = pooling.whiten(RNG.standard_normal((items, 5)), 64)
    assert white.shape[1] <= kept
    assert np.isfinite(white).all()


def test_a_pool_is_that_of_liked_items_beside_that_of_the_others():
    vectors = RNG.standard_normal((6, 3)).astype(np.float32)
    liked, known = np.array([1, 1, 0, 0, 0, 1], bool), np.array([1, 1, 1, 1, 0, 1], bool)
    found = pooling.pool(vectors, liked, known, np.array([0, 3, 3, 1]), np.array([3, 3, 6, 2]))
    first = np.r_[(vectors[0] + vectors[1]) / np.sqrt(2 + PRIOR), vectors[2] / np.sqrt(1 + PRIOR)]
    third = np.r_[vectors[5] / np.sqrt(1 + PRIOR), vectors[3] / np.sqrt(1 + PRIOR)]
    last = np.r_[vectors[1] / np.sqrt(1 + PRIOR), np.zeros(3)]
    np.testing.assert_allclose(found, [first, np.zeros(6), third, last], rtol=1e-5)


USERS = pa.table({"user": [7, 4], "user_id": ["g", "d"], "interactions": [2, 1]})
SEEN = pa.table({"user": [7, 7, 4], "item": [1, 3, 2], "label": pa.array([1, 0, 1], pa.float32()), "before": [0, 1, 0]})


def test_rows_of_users_are_pooled_from_their_own_items_only():
    """The shard of two users, of whom one met only an item that the LLM failed to read."""
    rows = pooled_rows(USERS, SEEN, np.eye(4, dtype=np.float32), np.array([False, True, False, True])).to_pylist()
    assert [(row["id"], row["raw_id"], row["error"]) for row in rows] == [
        (7, "g", ""),
        (4, "d", "no item with a vector"),
    ]
    assert rows[0]["vector"] == [0, 0.5, 0, 0, 0, 0, 0, 0.5]
    assert not any(rows[1]["vector"])
    assert rows[0]["fingerprint"] != rows[1]["fingerprint"]


def test_the_past_of_a_row_is_the_pool_of_the_rows_before_it():
    """A user who met items 1, 2 and 4 at one moment, then 3, and a forgotten user."""
    labels, before = pa.array([1, 0, 1, 1, 1, 1], pa.float32()), [0, 0, 0, 3, 0, 1]
    events = pa.table({"user": [7] * 4 + [4] * 2, "item": [1, 2, 4, 3, 1, 2], "label": labels, "before": before})
    events = events.append_column("earlier", pa.array([0, 1, 2, 3, 0, 1])).append_column("split", pa.array([0] * 6))
    rows = past_rows(events, pa.chunked_array([[4]]), np.eye(5, dtype=np.float32), np.arange(5) > 0)
    assert rows["user"].to_pylist() == [7, 7, 7, 7, 4, 4]
    assert rows["known"].to_pylist() == [False, False, False, True, False, False]
    vectors = np.stack(rows["vector"].to_pylist())
    both, one = 1 / np.sqrt(2 + PRIOR), 1 / np.sqrt(1 + PRIOR)
    np.testing.assert_allclose(vectors[3], [0, both, 0, 0, both, 0, 0, one, 0, 0], rtol=1e-3)
    assert not vectors[[0, 1, 2, 4, 5]].any()


def test_later_splits_are_in_the_past_of_no_earlier_one():
    """A random split: events of test, training, validation, training and test, one after the other."""
    columns = {"user": [7] * 5, "item": [1, 2, 3, 4, 1], "label": pa.array([1] * 5, pa.float32())}
    places = {"split": [2, 0, 1, 0, 2], "earlier": range(5), "before": range(5)}
    rows = past_rows(
        pa.table(columns | places), pa.chunked_array([[]], pa.int64()), np.eye(5, dtype=np.float32), np.arange(5) > 0
    )
    items = [set(np.flatnonzero(vector[:5]).tolist()) for vector in rows["vector"].to_pylist()]
    assert items == [set(), set(), {2}, {2}, {1, 2, 3, 4}]
    assert rows["known"].to_pylist() == [False, False, True, True, True]
