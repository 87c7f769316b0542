import random
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from llm4msr import storage
from llm4msr.data import partitions
from llm4msr.data.partitioned_rows import PartitionedRows
from llm4msr.errors import StorageError
from llm4msr.knowledge.mapped_vectors import cache_path
from llm4msr.knowledge.rows import read_texts
from llm4msr.knowledge.snapshots import CUT, NOTHING
from llm4msr.knowledge.store import KnowledgeStore, Past
from llm4msr.storage import StageOutput, StageResult
from tests.support.data import WIDTH, flipped, publish_knowledge, shard
from tests.support.partitioned import in_partitions
from tests.support.versions import make_version
from tests.unit.conftest import World

USERS, SCENARIOS = 12, 4
RNG = np.random.default_rng(0)
VECTORS = RNG.standard_normal((USERS, WIDTH)).astype(np.float16)
SHELVES = RNG.standard_normal((SCENARIOS, WIDTH)).astype(np.float16)
FAILED, ABSENT = 5, 11
KNOWN = [i for i in range(1, USERS) if i not in (FAILED, ABSENT)]
KNOWN_N = np.isin(np.arange(USERS), KNOWN)


def prepared_of(folder: Path, users: int = USERS, scenarios: int = SCENARIOS) -> StageOutput:
    """Prepared data of so many users and scenarios, as far as the store asks."""

    def build(at: Any) -> StageResult:
        names = [partitions.file_name(table, 0) for table in ("users", "events")]
        for name, rows in zip(names, (users, 14), strict=True):
            storage.write_table(at / name, pa.table({"user": range(rows)}))
        return StageResult(files=dict(zip(names, (users, 14), strict=True)), rows=users, info={"scenarios": scenarios})

    return storage.publish(storage.path(folder), "prepare", 1, {}, {}, build)


@pytest.fixture
def prepared(tmp_path: Path) -> StageOutput:
    return prepared_of(tmp_path / "prepared")


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
def store(output: StageOutput, prepared: StageOutput) -> KnowledgeStore:
    return KnowledgeStore.open(output, prepared)


def looked_up(store: KnowledgeStore, ids: list[int]) -> np.ndarray:
    return store.lookup(torch.tensor(ids))[0].numpy()


def known_users(store: KnowledgeStore) -> list[int]:
    known: list[int] = np.flatnonzero(store.known(np.arange(len(store.users.known)))).tolist()
    return known


def test_lookup_gives_each_users_own_vector(store: KnowledgeStore):
    ids = [3, 1, 10, 3]
    vectors, known = store.lookup(torch.tensor(ids))
    assert vectors.dtype == torch.float16
    np.testing.assert_array_equal(vectors.numpy(), VECTORS[ids])
    assert known.tolist() == [True] * 4


def test_failed_absent_and_unknown_users_are_not_known(store: KnowledgeStore):
    vectors, known = store.lookup(torch.arange(USERS))
    assert np.flatnonzero(known.numpy()).tolist() == KNOWN == known_users(store)
    assert (vectors[~known] == 0).all()


def test_scenarios_stand_at_their_number(store: KnowledgeStore):
    np.testing.assert_array_equal(store.scenarios_SZ[1:], SHELVES[1:])
    assert (store.scenarios_SZ[0] == 0).all()


def test_users_vectors_are_memory_mapped_and_found_again_in_the_cache(
    output: StageOutput, prepared: StageOutput, own_cache: Path, tmp_path: Path
):
    def files() -> set[Path]:
        return set((own_cache / "knowledge").glob(f"{cache_path(output).name}.*"))

    looked_up(KnowledgeStore.open(output, prepared), KNOWN)
    before = files()
    again = KnowledgeStore.open(output, prepared)
    assert isinstance(again.users.vectors.open(0), np.memmap)
    np.testing.assert_array_equal(looked_up(again, KNOWN), VECTORS[KNOWN])
    assert files() == before
    looked_up(KnowledgeStore.open(output, prepared_of(tmp_path / "larger", USERS + 1)), KNOWN)
    assert len(files() - before) == 2


def test_other_vectors_are_not_taken_from_the_cache(store: KnowledgeStore, prepared: StageOutput, tmp_path: Path):
    parts = {
        "scenarios-000000000.parquet": shard([1, 2, 3], SHELVES[1:]),
        "users-000000000.parquet": shard(KNOWN, -VECTORS[KNOWN]),
    }
    other = KnowledgeStore.open(publish_knowledge(tmp_path / "other", parts), prepared)
    np.testing.assert_array_equal(looked_up(other, KNOWN), -looked_up(store, KNOWN))


def test_shards_of_another_width_are_refused(tmp_path: Path, prepared: StageOutput):
    parts = {"users-000000000.parquet": shard([1], np.ones((1, WIDTH + 1)))}
    store = KnowledgeStore.open(publish_knowledge(tmp_path / "wide", parts), prepared)
    with pytest.raises(
        StorageError, match=rf"users-000000000\.parquet: vectors of width {WIDTH + 1}, expected {WIDTH}"
    ):
        looked_up(store, [1])


@pytest.mark.parametrize(("name", "count"), [("users", USERS), ("scenarios", SCENARIOS)])
def test_ids_beyond_what_was_prepared_are_refused(tmp_path: Path, prepared: StageOutput, name: str, count: int):
    parts = {f"{name}-000000000.parquet": shard([1, count], np.ones((2, WIDTH)))}
    with pytest.raises(StorageError, match=rf"id {count} is beyond the {count - 1} prepared ones; extract again"):
        looked_up(KnowledgeStore.open(publish_knowledge(tmp_path / "beyond", parts), prepared), [1])


def test_statistics_are_those_of_the_known_users(store: KnowledgeStore):
    found = store.statistics()
    exact = VECTORS[KNOWN].astype(np.float64)
    np.testing.assert_allclose(found.mean_Z.numpy(), exact.mean(0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found.scale_Z.numpy(), exact.std(0) + 1e-6, rtol=1e-5)
    np.testing.assert_array_equal(found.scenarios_SZ.numpy(), store.scenarios_SZ.astype(np.float32))
    assert found.mean_Z.dtype == found.scale_Z.dtype == torch.float32


def test_statistics_of_nobody_are_refused(tmp_path: Path, prepared: StageOutput):
    parts = {"users-000000000.parquet": shard([1], np.ones((1, WIDTH)), ["Boom: x"])}
    store = KnowledgeStore.open(publish_knowledge(tmp_path / "nobody", parts), prepared)
    with pytest.raises(StorageError, match="knows no user"):
        store.statistics()


def test_no_control_is_the_store_itself(store: KnowledgeStore):
    assert store.with_control("none", 1) is store


def test_shuffled_gives_known_users_each_others_vectors(store: KnowledgeStore):
    mixed = store.with_control("shuffled", 1)
    before, after = looked_up(store, KNOWN), looked_up(mixed, KNOWN)
    assert {row.tobytes() for row in after} == {row.tobytes() for row in before}
    assert (before != after).any(1).mean() > 0.5
    assert known_users(mixed) == known_users(store)
    assert {row.tobytes() for row in mixed.scenarios_SZ[1:]} == {row.tobytes() for row in SHELVES[1:]}
    assert (mixed.scenarios_SZ[0] == 0).all()


def test_random_vectors_are_others_for_the_same_users(store: KnowledgeStore):
    noise = store.with_control("random", 1)
    assert known_users(noise) == known_users(store)
    everybody = looked_up(noise, list(range(USERS)))
    assert (everybody[KNOWN] != looked_up(store, KNOWN)).mean() > 0.9
    assert (everybody.dtype, everybody.shape) == (np.float16, (USERS, WIDTH))
    assert abs(float(everybody.astype(np.float32).std()) - 1) < 0.3
    assert isinstance(noise.users.vectors.open(0), np.memmap), "not all in memory"
    in_memory = KnowledgeStore.in_memory(looked_up(store, list(range(USERS))), KNOWN_N, store.scenarios_SZ)
    np.testing.assert_array_equal(looked_up(in_memory.with_control("random", 1), list(range(USERS))), everybody)
    drawn = noise.statistics()
    assert drawn.mean_Z.tolist() == [0] * WIDTH
    np.testing.assert_allclose(drawn.scale_Z.numpy(), 1, atol=1e-5)
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


def test_a_store_can_lie_on_an_object_store(tmp_path: Path, prepared: StageOutput):
    parts = {
        "scenarios-000000000.parquet": shard([1, 2, 3], SHELVES[1:]),
        "users-000000000.parquet": shard(KNOWN, VECTORS[KNOWN]),
    }
    output = publish_knowledge(f"memory://{tmp_path.name}/knowledge", parts)
    assert storage.open_output(output.folder) is not None
    store = KnowledgeStore.open(output, prepared)
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
    known = np.isin(np.arange(USERS), list(LENGTHS))
    offset_P = np.array([0, len(user)])
    columns = (vectors, place > 0, user, np.arange(len(user)))
    past = Past(*(PartitionedRows(offset_P, partial(_same, rows)) for rows in columns))
    in_memory = KnowledgeStore.in_memory(looked_up(store, list(range(USERS))), known, store.scenarios_SZ)
    return KnowledgeStore(in_memory.users, store.scenarios_SZ, in_memory.sums, past)


def _same(rows: np.ndarray, _: int) -> np.ndarray:
    return rows


def past_of(store: KnowledgeStore) -> tuple[np.ndarray, np.ndarray]:
    """Vectors and whether they are known, of each row that was seen."""
    user_B = torch.from_numpy(np.repeat(list(LENGTHS), list(LENGTHS.values())))
    vectors, known = store.lookup(store.vector_numbers(user_B, None, torch.arange(len(user_B))))
    return vectors.numpy(), known.numpy()


def test_a_row_is_shown_with_what_was_known_before_it(in_time: KnowledgeStore):
    vectors, known = past_of(in_time)
    assert in_time.past is not None
    np.testing.assert_array_equal(vectors, in_time.past.vectors.open(0))
    np.testing.assert_array_equal(known, in_time.past.known.open(0))


def test_rows_at_no_time_and_stale_ones_are_shown_with_the_whole(in_time: KnowledgeStore):
    users, events = torch.tensor([3, 1, 2, 4]), torch.tensor([0, 4, 6, 7])
    assert torch.equal(in_time.vector_numbers(users, None), users)
    assert torch.equal(in_time.vector_numbers(users, torch.tensor([0, 1, 0, 1]), events), USERS + events)
    in_time.is_stale = True
    numbers = in_time.vector_numbers(users, torch.tensor([0, 1, 0, 1]), events)
    assert numbers.tolist() == [3, USERS + 4, 2, USERS + 7]


def test_shuffled_takes_another_users_past_as_far_into_the_history(in_time: KnowledgeStore):
    vectors, known = past_of(in_time.with_control("shuffled", 3))
    for user, count in LENGTHS.items():
        rows = np.repeat(list(LENGTHS), list(LENGTHS.values())) == user
        (other,) = set(vectors[rows, 0].tolist())
        assert vectors[rows, 1].tolist() == [place * LENGTHS[other] // count for place in range(count)]
        assert known[rows].tolist() == [place > 0 and place * LENGTHS[other] // count > 0 for place in range(count)]
    assert set(vectors[:, 0].tolist()) == set(LENGTHS)
    assert (vectors[:, 0] != np.repeat(list(LENGTHS), list(LENGTHS.values()))).any()


def test_a_row_that_nothing_is_older_than_is_shown_with_nothing_even_where_the_user_is_known(in_time: KnowledgeStore):
    assert in_time.past is not None
    shown = PartitionedRows(in_time.past.shown.offset_P, partial(_same, np.array([NOTHING, 0, 0, CUT, *range(4, 14)])))
    in_time.past = in_time.past._replace(shown=shown)
    users, events = torch.tensor([3, 3, 3, 3, 1]), torch.arange(5)
    numbers = in_time.vector_numbers(users, None, events)
    assert numbers.tolist() == [0, USERS, USERS, 3, USERS + 4]
    assert in_time.lookup(numbers)[1].tolist() == [False, False, False, True, False]
    for control in ("shuffled", "random"):
        assert not in_time.with_control(control, 2).lookup(numbers[:1])[1].any()


def test_shuffled_takes_the_whole_of_another_user_who_has_no_past(in_time: KnowledgeStore):
    assert in_time.past is not None
    user = np.repeat([3, 2], [4, 8])  # user 1 has none
    in_time.past = in_time.past._replace(users=PartitionedRows(in_time.past.users.offset_P, partial(_same, user)))
    for seed in range(9):
        wrong = in_time.with_control("shuffled", seed)
        stand_in = looked_up(wrong, [3])
        if (stand_in == looked_up(in_time, [1])).all():
            np.testing.assert_array_equal(looked_up(wrong, [*range(USERS, USERS + 4)]), np.repeat(stand_in, 4, 0))
            return
    raise AssertionError("user 1 stands in for nobody")


def test_random_numbers_of_a_user_are_the_same_at_all_times(in_time: KnowledgeStore):
    noise = in_time.with_control("random", 1)
    vectors, known = past_of(noise)
    np.testing.assert_array_equal(known, past_of(in_time)[1])
    own = np.repeat(list(LENGTHS), list(LENGTHS.values()))
    np.testing.assert_array_equal(vectors, looked_up(noise, own.tolist()))


def test_no_flipped_bit_of_the_mapped_vectors_is_used(
    output: StageOutput, prepared: StageOutput, store: KnowledgeStore
):
    users_NZ = np.array(looked_up(store, list(range(USERS))))
    (folder,) = (f for f in cache_path(output).parent.glob(f"{cache_path(output).name}.*-{USERS}") if f.is_dir())
    rng = random.Random(2)
    for flip in range(200):
        flipped(folder / ("users.npy", "known.npy")[flip % 2], rng)
        again = KnowledgeStore.open(output, prepared)
        np.testing.assert_array_equal(looked_up(again, list(range(USERS))), users_NZ)
        assert known_users(again) == KNOWN


# --- partitions ---------------------------------------------------------------------------------------------------


def partitioned(world: World, total: int, root: Path) -> tuple[KnowledgeStore, StageOutput, StageOutput]:
    """The users of a version in partitions, and the prepared data and the version that they are from."""
    config, data = in_partitions(world.config, world.data, total, root)
    version = make_version((config, data, world.knowledge), root, "version", total, failed=("u3", "u17"))
    return KnowledgeStore.open(version, data), data, version


def by_raw_id(store: KnowledgeStore, data: StageOutput) -> dict[str, tuple[bytes, bool]]:
    ids = pa.concat_tables(partitions.read_each(data, "users", ["user_id"]))["user_id"].to_pylist()
    vectors, known = store.lookup(torch.arange(len(ids)))
    return {str(raw_id): (row.tobytes(), bool(k)) for raw_id, row, k in zip(ids, vectors.numpy(), known, strict=True)}


@pytest.mark.parametrize("total", [2, 8])
def test_a_user_has_the_same_vector_in_any_number_of_partitions(world: World, tmp_path: Path, total: int):
    one, many = (partitioned(world, count, tmp_path / str(count)) for count in (1, total))
    vectors = by_raw_id(many[0], many[1])
    assert vectors == by_raw_id(one[0], one[1])
    assert sum(known for _, known in vectors.values()) == 38
    assert not vectors[""][1]
    ours, theirs = many[0].statistics(), one[0].statistics()
    np.testing.assert_allclose(ours.mean_Z.numpy(), theirs.mean_Z.numpy(), rtol=1e-6)
    np.testing.assert_allclose(ours.scale_Z.numpy(), theirs.scale_Z.numpy(), rtol=1e-6)


def test_only_the_partitions_that_are_asked_for_are_copied_and_opened(world: World, tmp_path: Path, own_cache: Path):
    store, data, version = partitioned(world, 4, tmp_path)
    first_P = partitions.offsets(data, "users")
    prefix = cache_path(version).name

    def copied() -> set[int]:
        folders = (own_cache / "knowledge").glob(f"{prefix}.*-of-00004-*")
        return {int(folder.name[len(prefix) + 1 :][:5]) for folder in folders if folder.is_dir()}

    store.statistics()
    shuffled = store.with_control("shuffled", 1)
    noise = store.with_control("random", 1)
    assert copied() == set()
    for wanted in (store, shuffled, noise):
        looked_up(wanted, [int(first_P[2]), int(first_P[2]) + 1])
        assert copied() == {2}
    looked_up(store, first_P[:2].tolist())
    assert copied() == {0, 1, 2}


@pytest.mark.parametrize("control", ["shuffled", "random"])
def test_a_partition_has_its_own_wrong_vectors(world: World, tmp_path: Path, control: str):
    store, data, _ = partitioned(world, 2, tmp_path)
    first_P = partitions.offsets(data, "users")
    wrong, again, other = (store.with_control(control, seed) for seed in (1, 1, 2))
    for start, stop in pairwise(first_P.tolist()):
        users = [user for user in known_users(store) if start <= user < stop]
        before, after = looked_up(store, users), looked_up(wrong, users)
        assert (before != after).any()
        np.testing.assert_array_equal(after, looked_up(again, users))
        assert (after != looked_up(other, users)).any()
        if control == "shuffled":
            assert {row.tobytes() for row in after} == {row.tobytes() for row in before}
    assert known_users(wrong) == known_users(store)


@pytest.mark.parametrize("control", ["none", "shuffled", "random"])
def test_points_in_time_are_found_in_their_partition(world: World, tmp_path: Path, control: str):
    """Each row's vector holds its user's number and its place; the last users of each partition have no past."""
    base, data, _ = partitioned(world, 4, tmp_path)
    first_P = partitions.offsets(data, "events")
    seen = [partitions.read(data, "events", p) for p in range(4)]
    local = [data.table(partitions.file_name("events", p))["user"].to_numpy() for p in range(4)]
    rows_P = np.array([max(len(table) - 7, 0) for table in seen])
    vectors = []
    for table, count in zip(seen, rows_P, strict=True):
        owner = table["user"].to_numpy()[:count]
        vectors.append(np.zeros((count, 4), np.float16))
        vectors[-1][:, 0], vectors[-1][:, 1] = owner, np.arange(count) - np.searchsorted(owner, owner)
        same = owner[:, None] == owner[None, :]
        vectors[-1][:, 1] = np.tril(same, -1).sum(1)
    rows = [PartitionedRows(first_P, parts.__getitem__) for parts in (vectors, [v[:, 1] > 0 for v in vectors])]
    owners = PartitionedRows(first_P, lambda p: local[p][: rows_P[p]])
    shown = [np.r_[:count, [CUT] * (len(table) - count)] for table, count in zip(seen, rows_P, strict=True)]
    past = Past(rows[0], rows[1], owners, PartitionedRows(first_P, shown.__getitem__))
    store = KnowledgeStore(base.users, base.scenarios_SZ, base.sums, past).with_control(control, 3)
    for p in range(4):
        user_B = torch.from_numpy(seen[p]["user"].to_numpy().copy())
        numbers = store.vector_numbers(user_B, None, torch.arange(len(user_B)) + int(first_P[p]))
        assert torch.equal(numbers[rows_P[p] :], user_B[rows_P[p] :])
        found, known = (tensor.numpy()[: rows_P[p]] for tensor in store.lookup(numbers))
        if control == "none":
            np.testing.assert_array_equal(found, vectors[p])
            np.testing.assert_array_equal(known, vectors[p][:, 1] > 0)
        elif control == "random":
            np.testing.assert_array_equal(found, store.lookup(user_B[: rows_P[p]])[0].numpy())
        else:
            here = set(seen[p]["user"].to_pylist())
            assert set(found[:, 0].astype(int).tolist()) <= here
            assert (found[:, 0] != vectors[p][:, 0]).any()
