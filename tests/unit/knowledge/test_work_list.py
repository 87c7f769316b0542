"""What Ray's tasks do when a version is planned and sealed, called one by one: windows, buckets, shards, index."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from llm4msr import storage
from llm4msr.config import Config
from llm4msr.knowledge.prompts import templates
from llm4msr.knowledge.prompts.render import user_prompts
from llm4msr.storage.vectors import to_matrix
from tests.support.versions import READER, WIDTH, fake_vectors, make_version, read_users
from tests.unit.conftest import World


def expected(config: Config, world: World) -> pa.Table:
    histories = storage.read_table(world.data.folder / "histories/p=00000.parquet")
    return user_prompts(histories, config).sort_by("raw_id")


@pytest.mark.parametrize("buckets", [1, 4])
def test_a_first_version_holds_every_user_once(world: World, tmp_path: Path, buckets: int):
    output = make_version(world, tmp_path, "one", buckets)
    assert (output.manifest.info["asked"], output.manifest.info["kept"]) == (40, 0)
    found, wanted = read_users(output), expected(world.config, world)
    assert found.select(["id", "raw_id"]).equals(wanted.select(["id", "raw_id"]))
    fingerprints = [templates.fingerprint(text, READER.reads) for text in wanted["prompt"].to_pylist()]
    np.testing.assert_array_equal(to_matrix(found["vector"]), fake_vectors(fingerprints))
    assert found.schema.field("vector").type == pa.list_(pa.float16(), WIDTH)


def test_shards_are_cut_from_prompts_sorted_by_length(world: World, tmp_path: Path):
    output = make_version(world, tmp_path, "one", 2)
    for bucket in range(2):
        names = [n for n in output.manifest.files if n.startswith(f"vectors/users-{bucket:05d}-of-00002-")]
        lengths = sorted(
            pc.utf8_length(storage.read_table(output.folder / name, ["prompt"])["prompt"]).to_pylist() for name in names
        )
        flat = [length for shard in lengths for length in shard]
        assert flat == sorted(flat)
        assert max(map(len, lengths)) == 3


@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 4), (4, 1), (2, 8)])
def test_unchanged_users_are_taken_over_whatever_the_buckets(world: World, tmp_path: Path, before: int, after: int):
    one = make_version(world, tmp_path, "one", before)
    two = make_version(world, tmp_path, "two", after, max_failed_fraction=0.5)
    assert (two.manifest.info["asked"], two.manifest.info["kept"]) == (0, 40)
    assert not any(name.startswith("vectors/") for name in two.manifest.files)
    assert read_users(two).equals(read_users(one))


def test_failed_rows_are_asked_again_and_the_others_are_not(world: World, tmp_path: Path):
    one = make_version(world, tmp_path, "one", 2, failed=("u3", "u17"))
    assert {row["raw_id"] for row in read_users(one).to_pylist() if row["error"]} == {"u3", "u17"}
    two = make_version(world, tmp_path, "two", 2)
    assert (two.manifest.info["asked"], two.manifest.info["kept"]) == (2, 38)
    assert not any(read_users(two)["error"].to_pylist())


def test_only_changed_prompts_are_asked_and_the_newest_version_answers_first(world: World, tmp_path: Path):
    (tmp_path / "template").write_text("In short: $history")
    make_version(world, tmp_path, "one", 2)
    other = make_version(world, tmp_path, "two", 2, user_template=str(tmp_path / "template"))
    assert other.manifest.info["asked"] == 40
    again = make_version(world, tmp_path, "three", 2)
    assert (again.manifest.info["asked"], again.manifest.info["kept"]) == (0, 40)
    shards = set(pa.concat_tables([storage.read_table(f) for f in again.folder.glob("index/*")])["shard"].to_pylist())
    assert {shard.split("/")[0] for shard in shards} == {"one"}


def test_forgotten_users_are_in_no_new_version(world: World, tmp_path: Path):
    (tmp_path / "forget.txt").write_text("u5\n\nu9\nnobody\n")
    make_version(world, tmp_path / "store", "one", 2)
    two = make_version(world, tmp_path / "store", "two", 2, forget=str(tmp_path / "forget.txt"))
    assert two.manifest.info["kept"] == 38
    assert {"u5", "u9"}.isdisjoint(read_users(two)["raw_id"].to_pylist())


def test_rows_of_a_lost_shard_are_asked_again(world: World, tmp_path: Path):
    one = make_version(world, tmp_path, "one", 2)
    lost = next(name for name in one.manifest.files if name.startswith("vectors/"))
    (one.folder / lost).unlink()
    two = make_version(world, tmp_path, "two", 2)
    assert two.manifest.info["asked"] == one.manifest.files[lost].rows
    assert len(read_users(two)) == 40
