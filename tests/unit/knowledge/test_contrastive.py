"""A projection of items' vectors that knows what was taken together."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from pydantic import ValidationError

from llm4msr import storage
from llm4msr.data import partitions
from llm4msr.errors import DataError
from llm4msr.knowledge import contrastive, item_vectors
from llm4msr.knowledge.index import RowGroup
from tests.support.data import config_of, prepared_table, shard
from tests.unit.conftest import World

NOBODY = pa.array([], pa.string())
GROUPS, ITEMS, WIDTH = 4, 200, 12
GROUP_I = np.arange(ITEMS) % GROUPS


def liked_by(world: World) -> dict[int, set[int]]:
    """The items that each user liked in the rows of histories."""
    seen = prepared_table(world.data, "seen").to_pylist()
    found: dict[int, set[int]] = {}
    for row in seen:
        if row["label"] > 0.5 and row["item"]:
            found.setdefault(row["user"], set()).add(row["item"])
    return found


def test_pairs_are_what_one_user_liked_in_training_rows(world: World):
    pairs_P2 = contrastive.draw_pairs(world.data, NOBODY)
    allowed = {(a, b) for items in liked_by(world).values() for a in items for b in items}
    assert len(pairs_P2) == contrastive.BATCH * contrastive.STEPS
    assert {*map(tuple, pairs_P2.tolist())} <= allowed
    np.testing.assert_array_equal(pairs_P2, contrastive.draw_pairs(world.data, NOBODY))


def test_no_pair_is_of_a_user_to_forget(world: World):
    users = partitions.read(world.data, "histories", 0, ["user", "user_id"])
    liked = liked_by(world)
    others = [user for user in users["user"].to_pylist() if len(liked.get(user, ())) > 1][3:]
    forget = users.filter(pc.is_in(users["user"], value_set=pa.array(others)))["user_id"].combine_chunks()
    pairs_P2 = contrastive.draw_pairs(world.data, forget)
    kept = [items for user, items in liked.items() if user not in others]
    assert {*map(tuple, pairs_P2.tolist())} <= {(a, b) for items in kept for a in items for b in items}
    with pytest.raises(DataError, match="there are none; use 'principal'"):
        contrastive.draw_pairs(world.data, users["user_id"].combine_chunks())


def texts(seed: int = 1) -> np.ndarray:
    """Vectors whose strongest directions say nothing of an item's group, and the last ones a little."""
    vectors_IW = np.random.default_rng(seed).standard_normal((ITEMS, WIDTH)).astype(np.float32)
    vectors_IW[:, -GROUPS:] += 3 * np.eye(GROUPS)[GROUP_I]
    return vectors_IW


def pairs_within_groups(items: int = ITEMS) -> np.ndarray:
    """Of so many items."""
    rng = np.random.default_rng(2)
    one = rng.integers(items // GROUPS, size=80_000) * GROUPS
    other = rng.integers(items // GROUPS, size=80_000) * GROUPS
    return np.stack([one, other], axis=1) + rng.integers(GROUPS, size=(80_000, 1))


def contrast(vectors_ID: np.ndarray, group_I: np.ndarray = GROUP_I) -> float:
    """By how much items of a group are nearer to each other than to others, in cosine."""
    unit_ID = (vectors_ID / np.linalg.norm(vectors_ID, axis=1, keepdims=True)).astype(np.float32)
    cosine_II = unit_ID @ unit_ID.T
    same_II = group_I[:, None] == group_I
    return float(cosine_II[same_II].mean() - cosine_II[~same_II].mean())


def test_what_was_taken_together_comes_to_lie_together_and_so_do_new_items_of_like_texts():
    wide_IW, known_I = texts(), np.ones(ITEMS, bool)
    found_ID = contrastive.project(wide_IW, known_I, pairs_within_groups(ITEMS // 2), 4)
    assert found_ID.shape == (ITEMS, 4)
    assert np.square(found_ID).mean() == pytest.approx(1, rel=1e-3)
    new = slice(ITEMS // 2, None)
    assert contrast(found_ID[new], GROUP_I[new]) > 0.4
    assert contrast(found_ID) > 0.4 > 0.1 > contrast(wide_IW[:, :4])


def test_the_same_pairs_give_the_same_projection():
    wide_IW, known_I = texts(), np.ones(ITEMS, bool)
    one, other = (contrastive.project(wide_IW, known_I, pairs_within_groups(), 4) for _ in range(2))
    np.testing.assert_array_equal(one, other)


def test_noise_cannot_be_projected_so_that_new_items_lie_with_their_like():
    wide_IW = np.random.default_rng(3).standard_normal((ITEMS, WIDTH)).astype(np.float32)
    found_ID = contrastive.project(wide_IW, np.ones(ITEMS, bool), pairs_within_groups(), 4)
    assert contrast(found_ID) < 0.2


def test_without_pairs_there_is_an_error_that_says_so():
    known_I = np.zeros(ITEMS, bool)
    with pytest.raises(DataError, match="use 'principal'"):
        contrastive.project(texts(), known_I, pairs_within_groups(), 4)


def test_the_controls_are_projected_too(tmp_path: Path):
    folder = storage.path(tmp_path)
    storage.write_table(folder / "vectors/items-0.parquet", shard(range(1, ITEMS), texts()[1:]))
    groups = {"items": [RowGroup(str(folder / "vectors/items-0.parquet"), "")]}
    found = {}
    for source in ("llm", "shuffled", "random"):
        extract = {"reads": "items", "item_vectors": source, "pool_dim": 3, "projection": "contrastive"}
        config = config_of(tmp_path, extract=extract)
        trained_I = np.arange(ITEMS) > 0
        found[source], known_I = item_vectors.make(config, folder, trained_I, groups, pairs_within_groups())
        assert found[source].shape == (ITEMS, 3)
        assert (
            np.flatnonzero(known_I).tolist() == np.flatnonzero(found[source].any(axis=1)).tolist() == [*range(1, ITEMS)]
        )
    by_source = {source: contrast(vectors_ID[1:], GROUP_I[1:]) for source, vectors_ID in found.items()}
    assert by_source["llm"] > 0.4 > 0.2 > max(by_source["shuffled"], by_source["random"])


def test_prompts_of_users_have_no_such_projection(tmp_path: Path):
    with pytest.raises(ValidationError, match="reads = 'items'"):
        config_of(tmp_path, extract={"reads": "users", "projection": "contrastive"})
