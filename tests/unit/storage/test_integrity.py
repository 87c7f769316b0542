"""One flipped bit in any file between the stages: an error that names the file, never a result."""

import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from llm4msr import Ranker, storage
from llm4msr.bundle import files
from llm4msr.data import partitions
from llm4msr.errors import StorageError
from llm4msr.knowledge import index
from llm4msr.knowledge.index import read_index, split_by_shard
from llm4msr.knowledge.prompts.render import slice_rows
from llm4msr.knowledge.prune import Live, erase
from llm4msr.knowledge.rows import find_texts, read_shard, read_texts, read_vectors, row_groups
from llm4msr.pipeline import trained
from llm4msr.storage import StageOutput, parquet
from llm4msr.training.checkpoint import WEIGHTS
from llm4msr.training.dataset import Dataset
from llm4msr.training.feature_tables import FeatureTables
from llm4msr.training.popularity import Popularity
from tests.support.bundles import publish_bundle, publish_codes, read_codes
from tests.support.data import flipped, publish_trained
from tests.support.versions import make_version, record_again
from tests.unit.conftest import World

FLIPS = 200


def copied(output: StageOutput, root: Path) -> StageOutput:
    found = storage.open_output(storage.path(shutil.copytree(str(output.folder), root / output.folder.name)))
    assert found is not None
    return found


def never_read(output: StageOutput, name: str, read: Callable[[StageOutput], Any], flips: int = FLIPS) -> None:
    """`read` fails for each flip, with the file's name; and then works again."""
    file, rng = Path(str(output.folder / name)), random.Random(name)
    whole = file.read_bytes()
    for _ in range(flips):
        flipped(file, rng)
        with pytest.raises(StorageError, match=re.escape(str(file))):
            read(output)
        file.write_bytes(whole)
    read(output)


def batches(world: World, part: str) -> Callable[[StageOutput], Any]:
    tables = FeatureTables.open(world.data)
    return lambda output: list(Dataset(output, tables, [], None).rows(part).batches(64, 1))


def readers(world: World) -> dict[str, Callable[[StageOutput], Any]]:
    return {
        **dict.fromkeys(("users", "items", "scenarios", "fields"), FeatureTables.open),
        **{part: batches(world, part) for part in ("train", "valid", "test")},
        "histories": lambda output: slice_rows(output, "histories/p=00000.parquet", 0, 5),
        "seen": lambda output: slice_rows(output, "seen/p=00000.parquet", 3, 9),
        "events": lambda output: output.table("events/p=00000.parquet"),
    }


@pytest.mark.parametrize(
    "name", ["users", "items", "scenarios", "fields", "train", "valid", "test", "histories", "seen", "events"]
)
def test_prepared_data(world: World, tmp_path: Path, name: str) -> None:
    file = partitions.file_name(name, 0) if name in partitions.PARTITIONED else f"{name}.parquet"
    file = "fields.json" if name == "fields" else file
    never_read(copied(world.data, tmp_path), file, readers(world)[name])


def test_rows_that_baselines_are_counted_from(world: World, tmp_path: Path) -> None:
    never_read(copied(world.data, tmp_path), "train/p=00000.parquet", lambda output: Popularity.of(output, 0, 3), 20)


def test_a_file_that_is_too_large_to_be_read_at_once(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "CHECKED_AT_ONCE", 100)
    never_read(copied(world.data, tmp_path), "train/p=00000.parquet", batches(world, "train"))


def test_weights(world: World, tmp_path: Path) -> None:
    config = world.config.model_copy(update={"storage": str(tmp_path / "out")})
    for output in (world.data, world.knowledge):
        copied(output, tmp_path / "out" / output.manifest.stage)
    publish_trained(config)
    model = trained(config)
    never_read(model.output, WEIGHTS, lambda _: model.load())


# --- knowledge ------------------------------------------------------------------------------------------------------


def read_all(output: StageOutput) -> list[Any]:
    return [read_vectors(group) for group in row_groups(output)]


@pytest.fixture
def two_versions(world: World, tmp_path: Path) -> tuple[StageOutput, StageOutput]:
    """The second one refers to the shards of the first."""
    return make_version(world, tmp_path, "one", 1), make_version(world, tmp_path, "two", 1)


def test_indexes_and_shards_of_this_and_of_earlier_versions(two_versions: tuple[StageOutput, StageOutput]) -> None:
    one, two = two_versions
    shards = sorted(name for name in one.manifest.files if name.startswith("vectors/"))
    (at,) = (name for name in two.manifest.files if name.startswith("index/"))
    never_read(two, at, read_all)
    never_read(one, shards[0], read_all)
    never_read(one, shards[-1], lambda _: read_all(two))
    raw_ids = read_all(two)[0]["raw_id"].to_pylist()
    never_read(one, shards[0], lambda _: find_texts(two, raw_ids), 20)


def test_shards_without_an_index(world: World, tmp_path: Path) -> None:
    output = copied(world.knowledge, tmp_path)
    (name,) = (name for name in output.manifest.files if "users" in name)
    never_read(output, name, read_all)
    (name,) = (name for name in output.manifest.files if "scenarios" in name)
    never_read(output, name, read_texts)


def test_an_index_that_a_new_version_compares_itself_with(
    world: World, tmp_path: Path, two_versions: tuple[StageOutput, StageOutput]
) -> None:
    (at,) = (name for name in two_versions[1].manifest.files if name.startswith("index/"))
    flipped(Path(str(two_versions[1].folder / at)), random.Random(0))
    with pytest.raises(StorageError, match=re.escape(str(two_versions[1].folder / at))):
        make_version(world, tmp_path, "three", 1)


def test_an_index_may_name_no_file_but_shards(two_versions: tuple[StageOutput, StageOutput]) -> None:
    _, two = two_versions
    (name,) = (name for name in two.manifest.files if name.startswith("index/"))
    table = storage.read_table(two.folder / name)
    for foreign in ("../one/vectors/users-0.parquet", "/etc/passwd", "one/manifest.json", "one/vectors/../x.parquet"):
        at = table.column_names.index("shard")
        changed = table.set_column(at, "shard", pa.array([foreign] * len(table)))
        two.manifest.files[name] = storage.write_table(two.folder / name, changed, index.GROUP_ROWS)
        with pytest.raises(StorageError, match="which is no shard; do not use this version"):
            read_all(two)


def test_what_prune_leaves_of_a_shard_is_read_and_checked(two_versions: tuple[StageOutput, StageOutput]) -> None:
    one, two = two_versions
    shard, rows = next(split_by_shard(read_index(row_groups(two)[0])))
    file, checksum = two.folder.parent / shard, rows["checksum"][0].as_py()
    whole = read_shard(file, None, checksum, "")
    for live in ([0, 1], [1]):  # again and again, as later versions come
        rows_left = Live(np.array(live, np.int32), checksum)
        erase(file, rows_left, file.stat().st_size)
        assert erase(file, rows_left, file.stat().st_size) == 0
        left = read_shard(file, None, checksum, "")
        assert left["raw_id"].to_pylist() == [
            raw if i in live else "" for i, raw in enumerate(whole["raw_id"].to_pylist())
        ]
        assert left.take(live).equals(whole.take(live))
    never_read(one, shard.partition("/")[2], lambda _: read_shard(file, None, checksum, ""))
    flipped(Path(str(file)), random.Random(0))
    with pytest.raises(StorageError, match=re.escape(str(file))):  # prune itself does not make damage sound
        erase(file, Live(np.array([0], np.int32), checksum), 1)


def test_a_version_of_an_earlier_release_is_taken_over(world: World, tmp_path: Path) -> None:
    one = make_version(world, tmp_path, "one", 1)
    (name,) = (name for name in one.manifest.files if name.startswith("index/"))
    old = storage.read_table(one.folder / name).drop_columns(["checksum"])
    one.manifest.files[name] = storage.write_table(one.folder / name, old, index.GROUP_ROWS)
    storage.write_bytes(one.folder / storage.MANIFEST, one.manifest.model_dump_json().encode())
    two = make_version(world, tmp_path, "two", 1)
    assert (two.manifest.info["asked"], two.manifest.info["kept"]) == (0, 40)
    assert sum(map(len, read_all(two))) == 40
    assert read_all(record_again(two.folder)) == read_all(two)


# --- bundles --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["bundle.json", "net.safetensors", "coder.safetensors", "users.arrow", "codes.arrow", "items.arrow"]
)
def test_bundles(world: World, tmp_path: Path, name: str) -> None:
    output = publish_bundle(world, tmp_path).output
    never_read(output, name, lambda found: Ranker.load(str(found.folder)))


@pytest.mark.parametrize("name", ["selftest.json", "README.md"])
def test_the_rest_of_a_bundle(world: World, tmp_path: Path, name: str) -> None:
    output = publish_bundle(world, tmp_path).output
    never_read(output, name, lambda found: Ranker.load(str(found.folder)))


def test_codes_of_newer_knowledge(world: World, tmp_path: Path) -> None:
    bundle = publish_bundle(world, tmp_path / "bundle").output
    ranker = Ranker.load(str(bundle.folder))
    codes = publish_codes(bundle, tmp_path / "codes", read_codes(bundle.folder))
    output = storage.open_output(storage.path(codes))
    assert output is not None
    never_read(output, files.CODES, lambda found: ranker.with_codes(str(found.folder)))
