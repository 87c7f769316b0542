import itertools
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch

from llm4msr import storage
from llm4msr.data import partitions
from llm4msr.errors import ConfigError, StorageError
from llm4msr.knowledge.store import KnowledgeStore
from llm4msr.storage import StageOutput, parquet
from llm4msr.training import batches, row_files
from llm4msr.training.batches import RowReader, to_batch
from llm4msr.training.feature_tables import FeatureTables
from llm4msr.training.row_files import RowFiles, Rows
from tests.support.data import flip_a_bit, published
from tests.unit.conftest import World

ROWS = 1037
SIZES = {1: [ROWS], 2: [400, ROWS - 400], 16: [97, 0, 5, 130, 1, 60, 80, 3, 201, 40, 90, 0, 210, 50, 30, 40]}
"""Rows of each partition, by how many there are."""
PARTITIONS = list(SIZES)
Global = list[tuple[int, Rows]]
"""Of each global batch its rows on all workers, and what one worker has."""


def publish(folder: Path, rows_P: list[int], group_rows: int = 8, label: npt.ArrayLike | None = None) -> StageOutput:
    """Rows in partitions, in which the user is the row's number and the other columns follow from it."""
    number_P = np.split(np.arange(sum(rows_P)), np.cumsum(rows_P)[:-1])
    label = np.arange(sum(rows_P)) % 2 if label is None else np.asarray(label)
    files = {}
    for partition, number in enumerate(number_P):
        local = number - number[:1].sum()
        columns = {
            "user": local,
            "item": 10 * number,
            "scenario": number % 3,
            "label": label[number].astype(np.float32),
            "seen": np.where(number % 4, local + 1, 0),
            "event": local,
            "c:device": number % 5,
            "c:hour": number % 7,
        }
        tables = {
            "train": pa.table(columns | {"ignored": ["x"] * len(local)}),
            "users": pa.table({"user": local}),
            "seen": pa.table({"user": local}),
            "events": pa.table({"user": local}),
        }
        for name, table in tables.items():
            file = partitions.file_name(name, partition)
            storage.write_table(storage.path(folder / file), table, group_rows)
            files[file] = len(table)
    return published(folder, files)


@pytest.fixture(autouse=True, params=[128, batches.BLOCK_ROWS])
def block_rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several global batches are put together at once, and then the next ones, or all of an epoch."""
    monkeypatch.setattr(batches, "BLOCK_ROWS", request.param)


@pytest.fixture(scope="module", params=PARTITIONS)
def reader(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RowReader:
    output = publish(tmp_path_factory.mktemp("rows"), SIZES[request.param])
    return RowReader(output, "train", ["device", "hour"], events=True)


def users(batches: Iterator[tuple[Rows, int]]) -> list[list[int]]:
    return [rows.user_B.tolist() for rows, _ in batches]


def flat(lists: list[list[int]]) -> list[int]:
    return list(itertools.chain.from_iterable(lists))


# --- what a batch holds ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 64, 256, ROWS, 5000])
def test_each_row_comes_exactly_once_and_only_the_last_batch_is_small(reader: RowReader, size: int):
    found = list(reader.batches(size, 3))
    assert sorted(flat([rows.user_B.tolist() for rows, _ in found])) == list(range(ROWS))
    whole, rest = divmod(ROWS, size)
    assert [len(rows.user_B) for rows, _ in found] == [size] * whole + [rest] * (rest > 0)
    assert [global_rows for _, global_rows in found] == [len(rows.user_B) for rows, _ in found]


def test_columns_stay_together_and_have_their_types(reader: RowReader):
    """`user`, `seen` and `event` are places in a partition's file, and count over all partitions in a batch."""
    for rows, _ in reader.batches(100, 1):
        number = rows.user_B
        assert torch.equal(rows.item_B, 10 * number)
        assert torch.equal(rows.scenario_B, number % 3)
        assert torch.equal(rows.label_B, (number % 2).float())
        assert torch.equal(rows.context_BC, torch.stack([number % 5, number % 7], dim=1))
        assert torch.equal(rows.seen_B, torch.where(number % 4 > 0, number + 1, 0))
        assert torch.equal(rows.event_B, number)
        assert rows.label_B.dtype == torch.float32
        assert {column.dtype for i, column in enumerate(rows) if i != 3} == {torch.int64}


def test_without_context_fields_there_is_no_context(tmp_path: Path):
    rows, _ = next(RowReader(publish(tmp_path, [30]), "train").batches(10, 1))
    assert rows.context_BC.shape == (10, 0)
    assert rows.event_B is None


def test_in_file_order_rows_come_as_they_lie(reader: RowReader):
    assert flat([rows.user_B.tolist() for rows in reader.in_file_order(5)]) == list(range(ROWS))
    assert max(len(rows.user_B) for rows in reader.in_file_order(5)) == 5


def test_one_partition_can_be_read_alone(tmp_path: Path):
    reader = RowReader(publish(tmp_path, [9, 0, 14, 2]), "train")
    found = [[rows.user_B.tolist() for rows in reader.in_file_order(6, partition)] for partition in range(4)]
    assert [flat(lists) for lists in found] == [[*range(9)], [], [*range(9, 23)], [23, 24]]


def test_no_rows_give_no_batch(tmp_path: Path):
    reader = RowReader(publish(tmp_path, [0, 0]), "train")
    assert list(reader.batches(10, 1)) == list(reader.in_file_order(10)) == []


# --- the same for any number of workers -----------------------------------------------------------------------------


@pytest.mark.parametrize("world", [2, 3, 4, 8])
@pytest.mark.parametrize("size", [32, 64, 100, 256, 5000])
def test_workers_have_the_global_batches_of_one(reader: RowReader, size: int, world: int):
    alone = list(reader.batches(size, 3))
    parts = [list(reader.batches(size, 3, rank, world)) for rank in range(world)]
    assert {len(part) for part in parts} == {len(alone)}
    for (whole, count), *shares in zip(alone, *parts, strict=True):
        together = np.concatenate([rows.user_B for rows, _ in shares])
        assert sorted(together) == sorted(whole.user_B.tolist())
        assert {global_rows for _, global_rows in shares} == {count}


@pytest.mark.parametrize("world", [2, 8])
def test_put_together_stream_by_stream_workers_rows_are_the_same_bit_for_bit(reader: RowReader, world: int):
    """Of 16 streams, worker r has r, r + world and so on, each as one worker alone has it."""
    alone = [reader.batches(64, 3, stream, 16) for stream in range(16)]
    workers = [reader.batches(64, 3, rank, world) for rank in range(world)]
    for (whole, _), *rest in zip(reader.batches(64, 3), *alone, *workers, strict=True):
        streams, shares = rest[:16], rest[16:]
        for column in range(6):
            assert torch.equal(whole[column], torch.cat([rows[column] for rows, _ in streams]))
            for rank, (rows, _) in enumerate(shares):
                assert torch.equal(rows[column], torch.cat([one[column] for one, _ in streams[rank::world]]))


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("partitions", [1, 4, 128])
def test_workers_have_about_as_many_rows(tmp_path: Path, partitions: int, world: int):
    reader = RowReader(publish(tmp_path, [1280 // partitions] * partitions), "train")
    parts = [list(reader.batches(256, 3, rank, world)) for rank in range(world)]
    for shares in list(zip(*parts, strict=True))[:-1]:
        counts = [len(rows.user_B) for rows, _ in shares]
        assert 0.8 * 256 / world <= min(counts) <= max(counts) <= 1.2 * 256 / world


def test_more_workers_than_streams_are_refused(reader: RowReader):
    told = r"train.workers = 5: batches of 16 rows .* at most 4 workers; lower it to 4, or raise train.batch_size to 32"
    with pytest.raises(ConfigError, match=told):
        next(reader.batches(16, 3, 0, 5))
    with pytest.raises(ConfigError, match=r"train.workers = 65: .* lower it to 64$"):
        next(reader.batches(1 << 20, 3, 0, 65))
    assert next(reader.batches(32, 3, 0, 5))


@pytest.mark.parametrize("world", [1, 3, 4])
@pytest.mark.parametrize("skip", [0, 1, 2, 9, 16, 17])
def test_what_is_skipped_is_missing_at_the_front(reader: RowReader, skip: int, world: int):
    for rank in range(world):
        assert users(reader.batches(64, 3, rank, world, skip)) == users(reader.batches(64, 3, rank, world))[skip:]


@pytest.mark.parametrize("skip", range(17))
def test_an_epoch_can_go_on_at_any_batch_with_other_workers(reader: RowReader, skip: int):
    """It begins on one worker, goes on with three for three batches, and ends with two."""
    alone = [sorted(batch) for batch in users(reader.batches(64, 3))]
    later = skip + 3
    three = [itertools.islice(reader.batches(64, 3, rank, 3, skip), 3) for rank in range(3)]
    two = [reader.batches(64, 3, rank, 2, later) for rank in range(2)]
    found = [*itertools.islice(reader.batches(64, 3), skip)]
    batches = [rows.user_B.tolist() for rows, _ in found]
    for workers in (three, two):
        batches += [flat([rows.user_B.tolist() for rows, _ in shares]) for shares in zip(*workers, strict=True)]
    assert [sorted(batch) for batch in batches] == alone


def test_the_seed_decides_the_order(reader: RowReader):
    one, two, other = (users(reader.batches(64, seed)) for seed in (3, 3, 4))
    assert one == two
    assert one != other
    assert sorted(flat(one)) == sorted(flat(other))


# --- the order is random --------------------------------------------------------------------------------------------

LONG, BATCH = 40_000, 200
FILES = {
    "positives first": np.arange(LONG) < LONG // 2,
    "few positives last": np.arange(LONG) >= 0.95 * LONG,
    "runs of a row group": np.arange(LONG) // 1024 % 2 == 0,
    "runs of a user's rows": np.arange(LONG) // 10 % 2 == 0,
}


@pytest.mark.parametrize("group_rows", [1 << 10, 1 << 20])
@pytest.mark.parametrize("file", ["random", *FILES])
def test_classes_are_mixed_in_every_batch(tmp_path: Path, file: str, group_rows: int):
    """In any file whose rows are in random order, as `prepare` writes them, and in any of few row groups; in one of
    many row groups of one class still every batch has both classes."""
    label = FILES.get(file, np.random.default_rng(0).permutation(FILES["positives first"]))
    reader = RowReader(publish(tmp_path, [LONG], group_rows, label), "train")
    for seed in range(3):
        shares = np.array([rows.label_B.mean().item() for rows, size in reader.batches(BATCH, seed) if size == BATCH])
        mean = label.mean()
        chance = (mean * (1 - mean) / BATCH) ** 0.5
        assert shares.max() < 1
        if group_rows > LONG or file in ("random", "runs of a user's rows"):
            assert shares.std() < 1.3 * chance
            parts = [part.mean() for part in np.array_split(shares, 10)]
            assert max(abs(part - mean) for part in parts) < 4 * chance / (len(shares) / 10) ** 0.5
        elif file != "few positives last":
            assert shares.min() > 0.1


@pytest.mark.parametrize("rows_P", [[4000], [1000, 3000]])
def test_a_row_comes_anywhere_in_the_epoch(tmp_path: Path, rows_P: list[int]):
    """Over many epochs, each tenth of the rows is spread evenly over each tenth of the epoch."""
    reader = RowReader(publish(tmp_path, rows_P, group_rows=16), "train")
    counts = np.zeros((10, 10))
    for seed in range(50):
        place = np.concatenate([rows.user_B.numpy() for rows, _ in reader.batches(100, seed)])
        np.add.at(counts, (place // 400, np.arange(4000) // 400), 1)
    expected = 50 * 4000 / 100
    assert abs(counts / expected - 1).max() < 0.25


# --- what is read ---------------------------------------------------------------------------------------------------


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Partition and number of each row group that is read, none of which is kept."""
    groups: list[tuple[int, int]] = []
    real = RowFiles._read
    monkeypatch.setattr(row_files, "KEPT_ROWS", 0)
    monkeypatch.setattr(RowFiles, "_read", lambda self, *group: groups.append(group) or real(self, *group))
    return groups


@pytest.mark.parametrize("partitions", [1, 16])
def test_a_worker_reads_its_own_row_groups_alone(tmp_path: Path, partitions: int, read: list[tuple[int, int]]):
    """A row group that two streams share is read for both; there are few of them."""
    output = publish(tmp_path, [16384 // partitions] * partitions)
    whole = 16384 // 8
    shared = max(64 - partitions, 0)
    for world in (1, 2, 4, 8):
        counts = []
        for rank in range(world):
            read.clear()
            list(RowReader(output, "train").batches(256, 1, rank, world))
            counts.append(len(read))
        assert sum(counts) <= whole + shared
        assert max(counts) <= (whole + shared) / world * 1.05
        if world > 1 and partitions > 1:
            assert len({partition for partition, _ in read}) <= max(partitions // world, 1)


@pytest.mark.parametrize("partitions", [1, 16])
def test_skipped_rows_are_read_only_with_those_that_the_rest_begins_with(
    tmp_path: Path, partitions: int, read: list[tuple[int, int]]
):
    reader = RowReader(publish(tmp_path, [16384 // partitions] * partitions), "train")
    list(reader.batches(256, 1))
    whole = len(read)
    read.clear()
    list(reader.batches(256, 1, skip=48))  # of 64 batches
    assert len(read) <= whole / 4 + 64
    read.clear()
    assert list(reader.batches(256, 1, skip=64)) == read == []


def test_small_data_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    reader = RowReader(publish(tmp_path, SIZES[2]), "train")
    first = [rows.user_B.tolist() for rows, _ in reader.batches(64, 1)]
    monkeypatch.setattr(RowFiles, "_open", None)
    shutil.rmtree(tmp_path / "train")
    assert users(reader.batches(64, 1)) == first


@pytest.mark.parametrize("rows", [20_000, 80_000])
def test_memory_holds_a_row_group_of_each_stream_whatever_the_rows(
    tmp_path: Path, rows: int, read: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
):
    """16 streams, each with rows of at most 64 at a time, and what is read ahead."""
    monkeypatch.setattr(batches, "BLOCK_ROWS", 128)
    reader = RowReader(publish(tmp_path, [rows], group_rows=64), "train")
    given, most = 0, 0
    for part, _ in reader.batches(64, 1):
        given += len(part.user_B)
        most = max(most, len(read) * 64 - given)
    assert most <= 16 * 64 + 3 * 128 + 64 * 16  # a row group that two streams share counts twice


def test_a_file_is_opened_and_read_through_for_its_checksum_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    output, opened = publish(tmp_path, [500, 600]), []
    real = parquet.arrow_files.open_parquet
    monkeypatch.setattr(
        parquet.arrow_files, "open_parquet", lambda *args, **kwargs: opened.append(1) or real(*args, **kwargs)
    )
    reader = RowReader(output, "train")
    for epoch in range(3):
        list(reader.batches(64, epoch))
    assert len(opened) == 2


# --- what goes wrong ------------------------------------------------------------------------------------------------


def test_a_damaged_file_is_told(tmp_path: Path):
    output = publish(tmp_path, [100, 100])
    flip_a_bit(tmp_path / partitions.file_name("train", 1), 0.3)
    with pytest.raises(StorageError, match=r"train/p=00001.parquet: damaged.*delete .* and run stage 'prepare' again"):
        list(RowReader(output, "train").batches(32, 1))


def test_a_file_that_is_damaged_while_it_is_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(parquet, "SMALL", 10)
    monkeypatch.setattr(row_files, "KEPT_ROWS", 0)
    reader = RowReader(publish(tmp_path, [2000]), "train")
    list(reader.batches(32, 1))
    file = tmp_path / partitions.file_name("train", 0)
    with file.open("r+b") as stream:
        stream.seek(4)
        stream.write(bytes(file.stat().st_size // 2))
    with pytest.raises(StorageError, match=r"train/p=00000.parquet: damaged or of another layout"):
        list(reader.batches(32, 2))


def threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("ahead")}


def test_no_thread_is_left_behind(tmp_path: Path):
    output = publish(tmp_path, [2000])
    before = threads()
    reader = RowReader(output, "train")
    list(reader.batches(32, 1))
    assert threads() == before
    unfinished = reader.batches(32, 1)
    next(unfinished)
    assert threads() > before
    unfinished.close()
    assert threads() == before
    (tmp_path / partitions.file_name("train", 0)).unlink()
    with pytest.raises(StorageError, match=r"train/p=00000.parquet"):
        next(RowReader(output, "train").batches(32, 1))
    assert threads() == before


def test_the_footer_tells_the_labels(tmp_path: Path):
    def label_range(name: str, *labels: float) -> Any:
        sizes = [len(labels) - 1, 1] if labels else [0]
        return RowFiles(publish(tmp_path / name, sizes, 2, labels), "train", []).label_range()

    assert label_range("both", 0, 1, 1, 0) == (0, 1)
    assert label_range("one", 1, 1, 1) == (1, 1)
    assert label_range("none") is None


# --- the ranker's input ---------------------------------------------------------------------------------------------


def test_to_batch_holds_each_user_once_with_the_stores_vector(world: World):
    tables = FeatureTables.open(world.data)
    store = KnowledgeStore.open(world.knowledge, world.data)
    rows, _ = next(RowReader(world.data, "train", ["device"]).batches(64, seed=1))
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
    store = KnowledgeStore.open(world.knowledge, world.data)
    store.hides_seen = hides
    rows, _ = next(RowReader(world.data, "train", ["device"]).batches(64, seed=1))
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
