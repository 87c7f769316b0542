"""What Ray's tasks do when a version is planned and sealed, called one by one: windows, buckets, shards, index."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from llm4msr import storage
from llm4msr.config import Config
from llm4msr.data import partitions
from llm4msr.knowledge.buckets import Bucket
from llm4msr.knowledge.prompts import render, templates
from llm4msr.knowledge.prompts.render import Window, slice_rows, user_prompts
from llm4msr.knowledge.rows import partition_of, read_vectors, row_groups
from llm4msr.knowledge.versions import Earlier, index_files
from llm4msr.knowledge.work_list import match_job, spilled_by_bucket
from llm4msr.storage import StageOutput
from llm4msr.storage.vectors import to_matrix
from tests.support.partitioned import in_partitions
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


def test_a_window_of_forgotten_users_alone_holds_nothing(world: World, tmp_path: Path):
    histories = world.data.table("histories/p=00000.parquet")["user_id"].to_pylist()
    (tmp_path / "forget.txt").write_text("\n".join(histories[:16]))
    version = make_version(world, tmp_path, "v1", 2, forget=str(tmp_path / "forget.txt"))
    assert read_users(version)["raw_id"].to_pylist() == sorted(histories[16:])


def test_rows_of_a_lost_shard_are_asked_again(world: World, tmp_path: Path):
    one = make_version(world, tmp_path, "one", 2)
    lost = next(name for name in one.manifest.files if name.startswith("vectors/"))
    (one.folder / lost).unlink()
    two = make_version(world, tmp_path, "two", 2)
    assert two.manifest.info["asked"] == one.manifest.files[lost].rows
    assert len(read_users(two)) == 40


# --- partitions ---------------------------------------------------------------------------------------------------


def in_parts(world: World, total: int, root: Path) -> tuple[Config, StageOutput, StageOutput]:
    return *in_partitions(world.config, world.data, total, root), world.knowledge


@pytest.mark.parametrize(("total", "buckets"), [(2, 2), (4, 8), (16, 16)])
def test_partitions_of_users_give_the_same_vectors_by_raw_id(world: World, tmp_path: Path, total: int, buckets: int):
    one = read_users(make_version(world, tmp_path / "one", "one", 1))
    parts = in_parts(world, total, tmp_path)
    version = make_version(parts, tmp_path / "many", "many", buckets)
    many = read_users(version)
    columns = ["raw_id", "error", "vector"]
    assert many.select(columns).equals(one.select(columns))
    for number in range(total):
        groups = [group for group in row_groups(version) if partition_of(f"index/{group.file.name}", total) == number]
        table = pa.concat_tables([read_vectors(group) for group in groups]) if groups else many.slice(0, 0)
        users = partitions.parquet(parts[1], "users", number).read()
        assert users["user_id"].take(table["id"]).equals(table["raw_id"]), "a user's id is the place in the partition"


@pytest.mark.parametrize(("before", "after"), [(1, 4), (4, 1), (2, 8)])
def test_users_are_taken_over_whatever_the_partitions(world: World, tmp_path: Path, before: int, after: int):
    make_version(in_parts(world, before, tmp_path / "a"), tmp_path, "one", 2)
    two = make_version(in_parts(world, after, tmp_path / "b"), tmp_path, "two", 4)
    assert (two.manifest.info["asked"], two.manifest.info["kept"]) == (0, 40)


def test_a_bucket_reads_the_files_of_its_partition_alone():
    todo = [Window("scenarios"), *(Window("users", start, start + 5, p) for p in (0, 2) for start in (0, 5))]
    spilled = spilled_by_bucket(todo, {"scenarios": 1, "users": 8}, 4)
    assert spilled.pop(Bucket("scenarios", 0, 1)) == ["scenarios-00000-000000000.parquet"]
    assert {(bucket.number, bucket.total): names for bucket, names in spilled.items()} == {
        (number, 8): [f"users-{p:05d}-{start:09d}.parquet" for start in (0, 5)]
        for p in (0, 2)
        for number in (2 * p, 2 * p + 1)
    }


def test_a_job_names_what_its_bucket_can_meet_and_nothing_else(world: World, tmp_path: Path):
    make_version(world, tmp_path, "one", 8)
    names = storage.files_below(storage.path(tmp_path))
    earlier = Earlier(index_files(storage.path(tmp_path), names).values(), names)
    job = match_job(Bucket("users", 1, 4), ["a"], earlier.of(Bucket("users", 1, 4)))
    (files,) = job["indexes"]
    assert [Path(file["uri"]).name for file in files] == [Bucket("users", n, 8).file for n in (2, 3)]
    assert job["present"] == sorted(n for n in names if any(f"/users-0000{bucket}-of-" in n for bucket in (2, 3))
                                    and "/vectors/" in n)  # fmt: skip
    assert len(job["present"]) < sum("/vectors/" in name for name in names)


def test_text_of_a_window_may_pass_what_one_arrow_column_of_strings_holds(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    histories = storage.read_table(world.data.folder / "histories/p=00000.parquet")
    at_once = user_prompts(histories, world.config)
    monkeypatch.setattr(render, "TEXT_ROWS", 7)
    pieces = user_prompts(histories, world.config)
    assert pieces["prompt"].num_chunks == 6
    assert pieces.equals(at_once)
    whole = slice_rows(world.data, "histories/p=00000.parquet", 3, 31)
    assert whole["history"].num_chunks == 5
    assert whole.equals(histories.slice(3, 28))
    output = make_version(world, tmp_path, "one", 2)
    spilled = storage.read_table(next((output.folder / "work" / "spill").glob("users-*")))
    assert spilled.schema.field("prompt").type == pa.large_string(), "so that `take` and `sort_by` may make one piece"
    todo = storage.read_table(next((output.folder / "work" / "todo").glob("users-*")))
    assert todo.schema.field("prompt").type == pa.string()
