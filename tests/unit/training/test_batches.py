import functools
import operator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch

from llm4msr import schema, storage
from llm4msr.errors import StorageError
from llm4msr.knowledge.store import KnowledgeStore
from llm4msr.training import batches
from llm4msr.training.batches import RowReader, Rows, to_batch
from llm4msr.training.feature_tables import FeatureTables
from tests.unit.conftest import World

COUNT = 103
GROUPS = [4, 7, 11, 40]
"""Rows per row group: those of a chunk, more, and more than a window's."""
SMALL = {"window": 16, "chunk": 4}
KEPT: dict[str, int] = {}
"""All rows in one window, which is kept."""


def write(folder: Path, rows_per_group: int = 1000, sizes: dict[str, int] = KEPT) -> RowReader:
    """A file in which the user is the row's number and the other columns follow from it."""
    number = list(range(COUNT))
    columns = {
        "user": pa.array(number, pa.int64()),
        "item": pa.array([10 * n for n in number], pa.int64()),
        "scenario": pa.array([n % 3 for n in number], pa.int64()),
        "label": pa.array([n % 2 for n in number], pa.float32()),
        "seen": pa.array([n % 4 for n in number], pa.int64()),
        "c:device": pa.array([n % 5 for n in number], pa.int64()),
        "c:hour": pa.array([n % 7 for n in number], pa.int64()),
        "ignored": pa.array(["x"] * COUNT),
    }
    file = storage.path(folder / "rows.parquet")
    storage.write_table(file, pa.table(columns), rows_per_group)
    return RowReader(file, ["device", "hour"], **sizes)


def users(reader: RowReader, size: int, seed: int | None, rank: int = 0, world: int = 1) -> list[list[int]]:
    return [rows.user_B.tolist() for rows, _ in reader.batches(size, seed, rank, world)]


@pytest.fixture(params=[KEPT, SMALL, {"window": 10, "chunk": 3}, {"window": 3, "chunk": 7}])
def sizes(request: pytest.FixtureRequest) -> dict[str, int]:
    return request.param


def test_without_seed_rows_come_in_file_order(tmp_path: Path):
    found = users(write(tmp_path), 10, None)
    assert found == [list(range(start, min(start + 10, COUNT))) for start in range(0, COUNT, 10)]


def test_columns_stay_together_and_have_their_types(tmp_path: Path):
    for rows, count in write(tmp_path).batches(10, seed=1):
        number = rows.user_B
        assert len(number) == count
        assert torch.equal(rows.item_B, 10 * number)
        assert torch.equal(rows.scenario_B, number % 3)
        assert torch.equal(rows.label_B, (number % 2).float())
        assert torch.equal(rows.context_BC, torch.stack([number % 5, number % 7], dim=1))
        assert rows.label_B.dtype == torch.float32
        assert rows.item_B.dtype == rows.context_BC.dtype == torch.int64


def test_a_file_without_context_gives_none(tmp_path: Path):
    reader = RowReader(write(tmp_path).file, [])
    rows, _ = next(reader.batches(10, None))
    assert rows.context_BC.shape == (10, 0)


@pytest.mark.parametrize("rows_per_group", GROUPS)
@pytest.mark.parametrize("seed", [None, 3])
def test_each_row_comes_exactly_once(tmp_path: Path, rows_per_group: int, seed: int | None, sizes: dict[str, int]):
    reader = write(tmp_path, rows_per_group, sizes)
    found = users(reader, 10, seed)
    assert sorted(functools.reduce(operator.iadd, found, [])) == list(range(COUNT))
    assert max(map(len, found)) == 10
    assert reader.rows == COUNT


@pytest.mark.parametrize("rows_per_group", GROUPS)
def test_without_seed_small_windows_keep_file_order(tmp_path: Path, rows_per_group: int, sizes: dict[str, int]):
    reader = write(tmp_path, rows_per_group, sizes)
    assert functools.reduce(operator.iadd, users(reader, 10, None), []) == list(range(COUNT))


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", [None, 3])
def test_workers_parts_are_one_workers_global_batches(
    tmp_path: Path, world: int, seed: int | None, sizes: dict[str, int]
):
    whole = list(write(tmp_path, 11, sizes).batches(10, seed))
    shares = [list(write(tmp_path, 11, sizes).batches(10, seed, rank, world)) for rank in range(world)]
    assert {len(share) for share in shares} == {len(whole)}
    for (one, count), *parts in zip(whole, *shares, strict=True):
        together = torch.cat([part.user_B for part, _ in parts])
        assert sorted(together.tolist()) == sorted(one.user_B.tolist())
        assert [total for _, total in parts] == [count] * world
        sizes = [len(part.user_B) for part, _ in parts]
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("skip", [0, 1, 4, 10, 11, 12])
@pytest.mark.parametrize("seed", [None, 3])
def test_what_is_skipped_is_missing_at_the_front(tmp_path: Path, seed: int | None, skip: int, sizes: dict[str, int]):
    reader = write(tmp_path, 7, sizes)
    rest = [rows.user_B.tolist() for rows, _ in reader.batches(10, seed, skip=skip)]
    assert rest == users(reader, 10, seed)[skip:]


@pytest.mark.parametrize("seed", [None, 3])
def test_windows_that_are_skipped_are_not_read(tmp_path: Path, seed: int | None):
    """The file is gone, so reading fails."""
    reader = write(tmp_path, 8, SMALL)
    Path(str(reader.file)).unlink()
    assert list(reader.batches(16, seed, skip=7)) == []
    with pytest.raises(StorageError):
        next(reader.batches(16, seed, skip=6))


def test_the_seed_decides_the_order(tmp_path: Path, sizes: dict[str, int]):
    reader = write(tmp_path, 11, sizes)
    assert users(reader, 10, 3) == users(reader, 10, 3)
    assert users(reader, 10, 3) != users(reader, 10, 4)
    assert functools.reduce(operator.iadd, users(reader, 10, 3), []) != list(range(COUNT))


@pytest.mark.parametrize("seed", [None, 3])
def test_only_the_last_batch_is_small(tmp_path: Path, seed: int | None, sizes: dict[str, int]):
    """What is left of a window goes into the next one's first batch."""
    reader = write(tmp_path, 7, sizes)
    sizes = [size for _, size in reader.batches(10, seed)]
    assert sizes == [10] * (COUNT // 10) + [COUNT % 10]
    assert [len(rows) for rows in users(reader, COUNT, seed)] == [COUNT]
    assert [len(rows) for rows in users(reader, 1000, seed)] == [COUNT]


@pytest.mark.parametrize("seed", [None, 3])
def test_the_order_does_not_depend_on_row_groups(tmp_path: Path, seed: int | None):
    """Three rows are decoded at once or all of them, in groups that no chunk's bounds meet."""
    orders = [users(write(tmp_path, rows_per_group, SMALL), 10, seed) for rows_per_group in (3, 11, 1000)]
    assert orders[0] == orders[1] == orders[2]


LONG, BATCH = 40_000, 200
LONG_SIZES = {"window": 8192, "chunk": 32}


def labelled(folder: Path, label: npt.ArrayLike, rows_per_group: int) -> RowReader:
    """A file whose rows are numbered in the column `user`, with these labels."""
    number = np.arange(len(np.asarray(label)))
    columns = dict.fromkeys(("item", "scenario", "seen"), 0 * number)
    file = storage.path(folder / "labelled.parquet")
    storage.write_table(file, pa.table({"user": number, "label": np.asarray(label, "f4"), **columns}), rows_per_group)
    return RowReader(file, [], **LONG_SIZES)


FILES = {
    "positives first": np.arange(LONG) < LONG // 2,
    "few positives last": np.arange(LONG) >= 0.95 * LONG,
    "runs of a window": np.arange(LONG) // LONG_SIZES["window"] % 2 == 0,
    "runs of a user's rows": np.arange(LONG) // 10 % 2 == 0,
}


@pytest.mark.parametrize("rows_per_group", [1 << 10, 1 << 20])
@pytest.mark.parametrize("file", FILES)
def test_classes_are_mixed_in_every_batch_whatever_the_files_order(tmp_path: Path, file: str, rows_per_group: int):
    """Their shares scatter as chance would have it, and no part of the epoch has more of one class than another."""
    reader = labelled(tmp_path, FILES[file], rows_per_group)
    for seed in range(3):
        shares = np.array([rows.label_B.mean().item() for rows, size in reader.batches(BATCH, seed) if size == BATCH])
        mean = FILES[file].mean()
        assert 0 < shares.min() < shares.max() < 1
        chance = (mean * (1 - mean) / BATCH) ** 0.5
        assert shares.std() == pytest.approx(chance, rel=0.3)
        parts = [part.mean() for part in np.array_split(shares, 10)]
        assert max(abs(part - mean) for part in parts) < 4 * chance / (len(shares) / 10) ** 0.5


def test_a_row_comes_anywhere_in_the_epoch_and_beside_any_other(tmp_path: Path):
    """Over many epochs, each tenth of the file is spread evenly over each tenth of the epoch."""
    reader = labelled(tmp_path, np.zeros(4000), 1000)
    reader = RowReader(reader.file, [], window=800, chunk=8)
    counts = np.zeros((10, 10))
    for seed in range(25):
        place = np.concatenate([rows.user_B.numpy() for rows, _ in reader.batches(100, seed)])
        np.add.at(counts, (place // 400, np.arange(4000) // 400), 1)
    expected = 25 * 4000 / 100
    assert abs(counts / expected - 1).max() < 0.2
    neighbours = np.abs(np.diff(place))
    assert (neighbours == 1).mean() < 0.01
    assert neighbours.mean() == pytest.approx(4000 / 3, rel=0.1)


@pytest.mark.parametrize("rows_per_group", [1 << 10, 1 << 20])
def test_memory_holds_a_window_and_not_the_file(tmp_path: Path, rows_per_group: int, monkeypatch: pytest.MonkeyPatch):
    reader = labelled(tmp_path, FILES["positives first"], rows_per_group)
    lengths = []
    real = reader._read_chunks
    monkeypatch.setattr(reader, "_read_chunks", lambda chunks: lengths.append(len(rows := real(chunks))) or rows)
    list(reader.batches(BATCH, 1))
    assert sum(lengths) == LONG
    assert max(lengths) <= LONG_SIZES["window"] + LONG_SIZES["chunk"]


@pytest.mark.parametrize("seed", [None, 1])
def test_a_file_without_rows_gives_no_batch(tmp_path: Path, seed: int | None):
    assert list(labelled(tmp_path, [], 2).batches(BATCH, seed)) == []


def test_the_footer_tells_the_labels(tmp_path: Path):
    assert labelled(tmp_path, [0, 1, 1, 0], 2).label_range == (0, 1)
    assert labelled(tmp_path, [1, 1, 1], 2).label_range == (1, 1)
    assert labelled(tmp_path, [], 2).label_range is None


def test_by_default_a_window_takes_many_chunks():
    assert batches.WINDOW // schema.TRAIN_GROUP_ROWS >= 128


def test_to_batch_holds_each_user_once_with_the_stores_vector(world: World):
    tables = FeatureTables.open(world.data)
    store = KnowledgeStore.open(world.knowledge, len(tables.users_US), tables.scenarios)
    reader = RowReader(world.data.folder / "train/p=00000.parquet", ["device"])
    rows, _ = next(reader.batches(64, seed=1))
    batch = to_batch(rows, tables, store)
    vectors, known = store.lookup(rows.user_B)
    assert len(batch.z_NZ) == len(set(rows.user_B.tolist())) < 64
    assert torch.equal(batch.z_NZ[batch.owner_B], vectors)
    assert torch.equal(batch.known_N[batch.owner_B], known)
    assert torch.equal(batch.scenario_B, rows.scenario_B)
    assert torch.equal(batch.slots_BS, tables.slots(rows.user_B, rows.item_B, rows.scenario_B, rows.context_BC))


@pytest.mark.parametrize("hides", [True, False])
def test_a_row_that_knowledge_has_seen_is_that_of_an_unknown_user_where_asked(world: World, hides: bool):
    tables = FeatureTables.open(world.data)
    store = KnowledgeStore.open(world.knowledge, len(tables.users_US), tables.scenarios)
    store.hides_seen = hides
    rows, _ = next(RowReader(world.data.folder / "train/p=00000.parquet", ["device"]).batches(64, seed=1))
    seen_B = torch.arange(len(rows.user_B)) % 2 * 7
    batch = to_batch(rows._replace(seen_B=seen_B), tables, store)
    whole = to_batch(rows._replace(seen_B=None), tables, store)
    assert batch.known_N[batch.owner_B][seen_B > 0].any() != hides
    kept_B = (seen_B == 0) | (not hides)
    assert torch.equal(batch.z_NZ[batch.owner_B][kept_B], whole.z_NZ[whole.owner_B][kept_B])
    assert torch.equal(batch.slots_BS, whole.slots_BS)


def test_to_batch_without_knowledge_holds_nobody(world: World):
    tables = FeatureTables.open(world.data)
    one = torch.tensor([1, 2])
    rows = Rows(one, one, one, one.float(), one[:, None])
    batch = to_batch(rows, tables, None)
    assert batch.z_NZ.shape == (1, 0)
    assert not batch.known_N.any()
    assert batch.owner_B.tolist() == [0, 0]
