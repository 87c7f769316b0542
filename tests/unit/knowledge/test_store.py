import random
from pathlib import Path

import numpy as np
import pytest
import torch

from llm4msr import storage
from llm4msr.errors import StorageError
from llm4msr.knowledge.rows import read_texts
from llm4msr.knowledge.store import KnowledgeStore, Past, cache_path
from llm4msr.storage import StageOutput
from tests.support.data import WIDTH, flipped, publish_knowledge, shard

USERS, SCENARIOS = 12, 4
RNG = np.random.default_rng(0)
VECTORS = RNG.standard_normal((USERS, WIDTH)).astype(np.float16)
SHELVES = RNG.standard_normal((SCENARIOS, WIDTH)).astype(np.float16)
FAILED, ABSENT = 5, 11
KNOWN = [i for i in range(1, USERS) if i not in (FAILED, ABSENT)]


@pytest.fixture
def output(tmp_path: Path) -> StageOutput:
    """Two shards of users in no order, one of whom failed and one of whom was left out; three scenarios."""
    first, second = [7, 2, 10, FAILED, 1], [3, 4, 6, 9, 8]
    errors = ["", "", "", "Boom: x", ""]
    parts = {
        "scenarios-000000000.parquet": shard([1, 2, 3], SHELVES[1:]),
        "users-000000000.parquet": shard(first, VECTORS[first], errors),
        "users-000000005.parquet": shard(second, VECTORS[second]),
    }
    return publish_knowledge(tmp_path / "knowledge", parts)


@pytest.fixture
def store(output: StageOutput) -> KnowledgeStore:
    return KnowledgeStore.open(output, USERS, SCENARIOS)


def looked_up(store: KnowledgeStore, ids: list[int]) -> np.ndarray:
    return store.lookup(torch.tensor(ids))[0].numpy()


def test_lookup_gives_each_users_own_vector(store: KnowledgeStore):
    ids = [3, 1, 10, 3]
    vectors, known = store.lookup(torch.tensor(ids))
    assert vectors.dtype == torch.float16
    np.testing.assert_array_equal(vectors.numpy(), VECTORS[ids])
    assert known.tolist() == [True] * 4


def test_failed_absent_and_unknown_users_are_not_known(store: KnowledgeStore):
    vectors, known = store.lookup(torch.arange(USERS))
    assert np.flatnonzero(known.numpy()).tolist() == KNOWN
    assert (vectors[~known] == 0).all()


def test_scenarios_stand_at_their_number(store: KnowledgeStore):
    np.testing.assert_array_equal(store.scenarios_SZ[1:], SHELVES[1:])
    assert (store.scenarios_SZ[0] == 0).all()


def test_users_vectors_are_memory_mapped_and_found_again_in_the_cache(output: StageOutput, own_cache: Path):
    def files() -> set[Path]:
        return set((own_cache / "knowledge").iterdir())

    KnowledgeStore.open(output, USERS, SCENARIOS)
    before = files()
    again = KnowledgeStore.open(output, USERS, SCENARIOS)
    assert isinstance(again.users_NZ, np.memmap)
    assert files() == before
    np.testing.assert_array_equal(looked_up(again, KNOWN), VECTORS[KNOWN])
    KnowledgeStore.open(output, USERS + 1, SCENARIOS)
    assert len(files() - before) == 2


def test_other_vectors_are_not_taken_from_the_cache(store: KnowledgeStore, tmp_path: Path):
    parts = {
        "scenarios-000000000.parquet": shard([1, 2, 3], SHELVES[1:]),
        "users-000000000.parquet": shard(KNOWN, -VECTORS[KNOWN]),
    }
    other = KnowledgeStore.open(publish_knowledge(tmp_path / "other", parts), USERS, SCENARIOS)
    np.testing.assert_array_equal(looked_up(other, KNOWN), -looked_up(store, KNOWN))


def test_shards_of_another_width_are_refused(tmp_path: Path):
    parts = {"users-000000000.parquet": shard([1], np.ones((1, WIDTH + 1)))}
    with pytest.raises(
        StorageError, match=rf"users-000000000\.parquet: vectors of width {WIDTH + 1}, expected {WIDTH}"
    ):
        KnowledgeStore.open(publish_knowledge(tmp_path / "wide", parts), USERS, SCENARIOS)


@pytest.mark.parametrize(("name", "count"), [("users", USERS), ("scenarios", SCENARIOS)])
def test_ids_beyond_what_was_prepared_are_refused(tmp_path: Path, name: str, count: int):
    parts = {f"{name}-000000000.parquet": shard([1, count], np.ones((2, WIDTH)))}
    with pytest.raises(StorageError, match=rf"id {count} is beyond the {count - 1} prepared ones; extract again"):
        KnowledgeStore.open(publish_knowledge(tmp_path / "beyond", parts), USERS, SCENARIOS)


def test_statistics_are_those_of_the_known_users(store: KnowledgeStore):
    found = store.statistics()
    exact = VECTORS[KNOWN].astype(np.float64)
    np.testing.assert_allclose(found.mean_Z.numpy(), exact.mean(0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found.scale_Z.numpy(), exact.std(0) + 1e-6, rtol=1e-5)
    np.testing.assert_array_equal(found.scenarios_SZ.numpy(), store.scenarios_SZ.astype(np.float32))
    assert found.mean_Z.dtype == found.scale_Z.dtype == torch.float32


def test_statistics_of_nobody_are_refused(tmp_path: Path):
    parts = {"users-000000000.parquet": shard([1], np.ones((1, WIDTH)), ["Boom: x"])}
    store = KnowledgeStore.open(publish_knowledge(tmp_path / "nobody", parts), USERS, SCENARIOS)
    with pytest.raises(StorageError, match="knows no user"):
        store.statistics()


def test_no_control_is_the_store_itself(store: KnowledgeStore):
    assert store.with_control("none", 1) is store


def test_shuffled_gives_known_users_each_others_vectors(store: KnowledgeStore):
    mixed = store.with_control("shuffled", 1)
    before, after = looked_up(store, KNOWN), looked_up(mixed, KNOWN)
    assert {row.tobytes() for row in after} == {row.tobytes() for row in before}
    assert (before != after).any(1).mean() > 0.5
    np.testing.assert_array_equal(mixed.known_N, store.known_N)
    assert {row.tobytes() for row in mixed.scenarios_SZ[1:]} == {row.tobytes() for row in SHELVES[1:]}
    assert (mixed.scenarios_SZ[0] == 0).all()


def test_random_vectors_are_others_for_the_same_users(store: KnowledgeStore):
    noise = store.with_control("random", 1)
    np.testing.assert_array_equal(noise.known_N, store.known_N)
    assert (looked_up(noise, KNOWN) != looked_up(store, KNOWN)).mean() > 0.9
    assert noise.users_NZ.dtype == np.float16
    assert noise.users_NZ.shape == store.users_NZ.shape
    assert abs(float(noise.users_NZ.astype(np.float32).std()) - 1) < 0.3
    assert (noise.scenarios_SZ[1:] != store.scenarios_SZ[1:]).any(1).all()
    assert (noise.scenarios_SZ[0] == 0).all()


@pytest.mark.parametrize("control", ["shuffled", "random"])
def test_controls_follow_the_seed_and_leave_the_store_alone(store: KnowledgeStore, control: str):
    before = looked_up(store, KNOWN)
    one, same, other = (looked_up(store.with_control(control, seed), KNOWN) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    np.testing.assert_array_equal(looked_up(store, KNOWN), before)
    np.testing.assert_array_equal(store.scenarios_SZ[1:], SHELVES[1:])


def test_texts_are_read_in_order(output: StageOutput):
    found = read_texts(output)
    assert [row["raw_id"] for row in found] == ["raw1", "raw2", "raw3"]
    assert found[0] == {"raw_id": "raw1", "prompt": "prompt 1", "answer": "answer 1", "error": ""}
    errors = [row["error"] for row in read_texts(output, "users")]
    assert errors == ["", "", "", "Boom: x", *[""] * 6]


def test_a_store_can_lie_on_an_object_store(tmp_path: Path):
    parts = {
        "scenarios-000000000.parquet": shard([1, 2, 3], SHELVES[1:]),
        "users-000000000.parquet": shard(KNOWN, VECTORS[KNOWN]),
    }
    output = publish_knowledge(f"memory://{tmp_path.name}/knowledge", parts)
    assert storage.open_output(output.folder) is not None
    store = KnowledgeStore.open(output, USERS, SCENARIOS)
    np.testing.assert_array_equal(looked_up(store, KNOWN), VECTORS[KNOWN])


# --- points in time -----------------------------------------------------------------------------------------------

LENGTHS = {3: 4, 1: 2, 2: 8}
"""Rows that knowledge has seen of each user, in their order."""


@pytest.fixture
def in_time(store: KnowledgeStore) -> KnowledgeStore:
    """What was known of a user before each row holds the user's number, then the row's place."""
    user = np.repeat(list(LENGTHS), list(LENGTHS.values()))
    place = np.concatenate([np.arange(count) for count in LENGTHS.values()])
    vectors = np.zeros((len(user), WIDTH), np.float16)
    vectors[:, 0], vectors[:, 1] = user, place
    known = np.zeros(USERS, bool)
    known[list(LENGTHS)] = True
    return KnowledgeStore(store.users_NZ, known, store.scenarios_SZ, Past(vectors, place > 0, user))


def past_of(store: KnowledgeStore) -> tuple[np.ndarray, np.ndarray]:
    """Vectors and whether they are known, of each row that was seen."""
    user_B = torch.from_numpy(np.repeat(list(LENGTHS), list(LENGTHS.values())))
    vectors, known = store.lookup(store.vector_numbers(user_B, torch.arange(len(user_B)) + 1))
    return vectors.numpy(), known.numpy()


def test_a_seen_row_is_shown_with_what_was_known_before_it(in_time: KnowledgeStore):
    vectors, known = past_of(in_time)
    assert in_time.past is not None
    np.testing.assert_array_equal(vectors, in_time.past.vectors_RZ)
    np.testing.assert_array_equal(known, in_time.past.known_R)


def test_later_rows_and_users_beyond_the_seen_rows_are_shown_with_the_whole(in_time: KnowledgeStore):
    users = torch.tensor([3, 1, 2, 4])
    for seen in (None, torch.tensor([0, 0, 0, 0]), torch.tensor([15, 99, 0, 15])):
        assert torch.equal(in_time.vector_numbers(users, seen), users)


def test_shuffled_takes_another_users_past_as_far_into_the_history(in_time: KnowledgeStore):
    vectors, known = past_of(in_time.with_control("shuffled", 3))
    for user, count in LENGTHS.items():
        rows = np.repeat(list(LENGTHS), list(LENGTHS.values())) == user
        (other,) = set(vectors[rows, 0].tolist())
        assert vectors[rows, 1].tolist() == [place * LENGTHS[other] // count for place in range(count)]
        assert known[rows].tolist() == [place > 0 and place * LENGTHS[other] // count > 0 for place in range(count)]
    assert set(vectors[:, 0].tolist()) == set(LENGTHS)
    assert (vectors[:, 0] != np.repeat(list(LENGTHS), list(LENGTHS.values()))).any()


def test_random_numbers_of_a_user_are_the_same_at_all_times(in_time: KnowledgeStore):
    noise = in_time.with_control("random", 1)
    vectors, known = past_of(noise)
    np.testing.assert_array_equal(known, past_of(in_time)[1])
    np.testing.assert_array_equal(vectors, noise.users_NZ[np.repeat(list(LENGTHS), list(LENGTHS.values()))])


def test_no_flipped_bit_of_the_mapped_vectors_is_used(output: StageOutput, store: KnowledgeStore):
    users_NZ, known_N = np.array(store.users_NZ), store.known_N
    folder = cache_path(output).with_suffix(f".{USERS}")
    rng = random.Random(2)
    for flip in range(200):
        flipped(folder / ("users.npy", "known.npy")[flip % 2], rng)
        again = KnowledgeStore.open(output, USERS, SCENARIOS)
        np.testing.assert_array_equal(again.users_NZ, users_NZ)
        np.testing.assert_array_equal(again.known_N, known_N)
