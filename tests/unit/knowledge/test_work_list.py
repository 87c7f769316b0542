"""What Ray's tasks do when a version is planned and sealed, called one by one: windows, buckets, shards, index."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from upath import UPath

from llm4msr import storage
from llm4msr.config import Config
from llm4msr.errors import StorageError
from llm4msr.knowledge import index, versions, work_list
from llm4msr.knowledge.index import Bucket, State
from llm4msr.knowledge.prompts import templates
from llm4msr.knowledge.prompts.render import user_prompts, windows
from llm4msr.knowledge.reader import Reader
from llm4msr.knowledge.rows import find_texts, read_texts, read_vectors, row_groups
from llm4msr.schema import INDEX
from llm4msr.storage import StageOutput, StageResult
from llm4msr.storage.vectors import to_column, to_matrix
from tests.unit.conftest import World

READS = Reader(revision="revision", frame="", reads="revision last float32", writes={"users": "", "scenarios": ""})
WIDTH = 4


def vectors(fingerprints: list[str]) -> np.ndarray:
    """What an LLM made of nothing but the fingerprint says."""
    return np.array([np.frombuffer(f.encode()[: 2 * WIDTH], np.uint16) % 1000 for f in fingerprints], np.float16)


def write_shard(folder: UPath, shard: dict[str, Any], failed: tuple[str, ...] = ()) -> None:
    rows = work_list.read_prompts(pa.Table.from_pylist([shard]), str(folder))
    halves = vectors(rows["fingerprint"].to_pylist())
    errors = ["Boom" if raw_id in failed else "" for raw_id in rows["raw_id"].to_pylist()]
    columns = {name: rows[name] for name in ("id", "raw_id", "fingerprint", "prompt")}
    columns |= {"answer": pa.array([""] * len(rows)), "tokens": pa.array([1] * len(rows)), "error": pa.array(errors)}
    columns["vector"] = to_column(halves)
    storage.write_table(folder / "vectors" / shard["name"], pa.table(columns).replace_schema_metadata({"writes": ""}))


def make(
    world: World, root: Path, name: str, buckets: int, failed: tuple[str, ...] = (), **extract: Any
) -> StageOutput:
    """A version of the world's users, made step by step in this process; its manifest tells what was asked."""
    config = with_extract(world.config, **extract)
    folder = storage.path(root) / name
    todo = windows(config, 40, 0, 16)[1:]
    for window in todo:
        row = table_of(window._asdict())
        work_list.render_window(row, config, world.data, str(folder), READS, {"users": buckets})
    names = storage.files_below(folder.parent)
    bases = list(versions.index_files(folder.parent, names).values())
    spilled, present = [window.file for window in todo], versions.shards(names)
    files: dict[str, int] = {}
    kept = asked = 0
    for number in range(buckets):
        bucket = Bucket("users", number, buckets)._asdict()
        (done,) = work_list.match_bucket(table_of(bucket), str(folder), spilled, bases, present, 3).to_pylist()
        shards = json.loads(done["shards"])
        for shard in shards:
            write_shard(folder, shard, failed)
            files[f"vectors/{shard['name']}"] = shard["rows"]
        job = bucket | {"shards": [s["name"] for s in shards], "checksums": [""] * len(shards)}
        (sealed,) = work_list.seal_bucket(table_of(job), str(folder)).to_pylist()
        files[sealed["file"]] = sealed["rows"]
        kept, asked = kept + done["kept"], asked + sum(shard["rows"] for shard in shards)
    info = {"width": WIDTH, "kept": kept, "asked": asked, "version": len(bases) + 1}
    return storage.publish(
        folder, "extract", 1, {}, {}, lambda _: StageResult(files=files, rows=40, info=info), resumable=True
    )


def table_of(row: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist([row])


def with_extract(config: Config, **changes: Any) -> Config:
    return config.model_copy(update={"extract": config.extract.model_copy(update=changes)})


def users(output: StageOutput) -> pa.Table:
    return pa.concat_tables([read_vectors(group) for group in row_groups(output)]).sort_by("raw_id")


def expected(config: Config, world: World) -> pa.Table:
    histories = storage.read_table(world.data.folder / "histories.parquet")
    return user_prompts(histories, config).sort_by("raw_id")


@pytest.mark.parametrize("buckets", [1, 4])
def test_a_first_version_holds_every_user_once(world: World, tmp_path: Path, buckets: int):
    output = make(world, tmp_path, "one", buckets)
    assert (output.manifest.info["asked"], output.manifest.info["kept"]) == (40, 0)
    found, wanted = users(output), expected(world.config, world)
    assert found.select(["id", "raw_id"]).equals(wanted.select(["id", "raw_id"]))
    fingerprints = [templates.fingerprint(text, READS.reads) for text in wanted["prompt"].to_pylist()]
    np.testing.assert_array_equal(to_matrix(found["vector"]), vectors(fingerprints))
    assert found.schema.field("vector").type == pa.list_(pa.float16(), WIDTH)


def test_shards_are_cut_from_prompts_sorted_by_length(world: World, tmp_path: Path):
    output = make(world, tmp_path, "one", 2)
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
    one = make(world, tmp_path, "one", before)
    two = make(world, tmp_path, "two", after, max_failed_fraction=0.5)
    assert (two.manifest.info["asked"], two.manifest.info["kept"]) == (0, 40)
    assert not any(name.startswith("vectors/") for name in two.manifest.files)
    assert users(two).equals(users(one))


def test_failed_rows_are_asked_again_and_the_others_are_not(world: World, tmp_path: Path):
    one = make(world, tmp_path, "one", 2, failed=("u3", "u17"))
    assert {row["raw_id"] for row in users(one).to_pylist() if row["error"]} == {"u3", "u17"}
    two = make(world, tmp_path, "two", 2)
    assert (two.manifest.info["asked"], two.manifest.info["kept"]) == (2, 38)
    assert not any(users(two)["error"].to_pylist())


def test_only_changed_prompts_are_asked_and_the_newest_version_answers_first(world: World, tmp_path: Path):
    (tmp_path / "template").write_text("In short: $history")
    make(world, tmp_path, "one", 2)
    other = make(world, tmp_path, "two", 2, user_template=str(tmp_path / "template"))
    assert other.manifest.info["asked"] == 40
    again = make(world, tmp_path, "three", 2)
    assert (again.manifest.info["asked"], again.manifest.info["kept"]) == (0, 40)
    shards = set(pa.concat_tables([storage.read_table(f) for f in again.folder.glob("index/*")])["shard"].to_pylist())
    assert {shard.split("/")[0] for shard in shards} == {"one"}


def test_forgotten_users_are_in_no_new_version(world: World, tmp_path: Path):
    (tmp_path / "forget.txt").write_text("u5\n\nu9\nnobody\n")
    make(world, tmp_path / "store", "one", 2)
    two = make(world, tmp_path / "store", "two", 2, forget=str(tmp_path / "forget.txt"))
    assert two.manifest.info["kept"] == 38
    assert {"u5", "u9"}.isdisjoint(users(two)["raw_id"].to_pylist())


def test_rows_of_a_lost_shard_are_asked_again(world: World, tmp_path: Path):
    one = make(world, tmp_path, "one", 2)
    lost = next(name for name in one.manifest.files if name.startswith("vectors/"))
    (one.folder / lost).unlink()
    two = make(world, tmp_path, "two", 2)
    assert two.manifest.info["asked"] == one.manifest.files[lost].rows
    assert len(users(two)) == 40


@pytest.mark.parametrize("buckets", [1, 4])
def test_a_lookup_reads_no_more_than_the_bucket_and_the_shards_of_its_users(world: World, tmp_path: Path, buckets: int):
    output = make(world, tmp_path, "one", buckets)
    rows = {name: part.rows for name, part in output.manifest.files.items()}
    everybody = read_texts(output, "users")
    wanted = everybody[5]["raw_id"]
    assert find_texts(output, [wanted, "nobody"]) == [everybody[5]]
    assert find_texts(output, ["nobody"]) == find_texts(output, []) == []
    by_id = {row["raw_id"]: row for row in everybody}
    assert {row["raw_id"]: row for row in find_texts(output, list(by_id))} == by_id

    hash_1 = index.hash_ids([wanted])
    bucket = Bucket("users", int(index.bucket_numbers(hash_1, buckets)[0]), buckets)
    entries = storage.read_table(output.folder / bucket.index_file)
    (shard,) = entries.filter(pc.equal(entries["hash"], hash_1[0]))["shard"].to_pylist()
    for name in rows:
        if name.startswith(("index/users", "vectors/")) and name != bucket.index_file and not shard.endswith(name):
            (output.folder / name).unlink()
    assert find_texts(output, [wanted]) == [everybody[5]]


# --- what is damaged ----------------------------------------------------------------------------------------------


@pytest.fixture
def two_versions(world: World, tmp_path: Path) -> tuple[StageOutput, UPath]:
    """The second version, which refers to the first one's shards, and one of these."""
    one = make(world, tmp_path, "one", 1)
    output = make(world, tmp_path, "two", 1)
    return output, one.folder / next(name for name in one.manifest.files if name.startswith("vectors/"))


REPAIR = r"delete .*{name} and .*two/manifest\.json, then run `llm4msr extract` again: it asks anew for the rows"


def noted_again(output: StageOutput) -> StageOutput:
    """The version with the checksums that its files and the shards that it refers to have now."""
    for name in output.manifest.files:
        file = output.folder / name
        if name.startswith("index/"):
            table = storage.read_table(file)
            now = [storage.digest_file(output.folder.parent / shard) for shard in table["shard"].to_pylist()]
            storage.write_table(file, table.set_column(table.column_names.index("checksum"), "checksum", pa.array(now)))
        output.manifest.files[name] = storage.record_file(file)
    return output


def refused(output: StageOutput, shard: UPath, what: str) -> None:
    with pytest.raises(StorageError, match=rf"{shard.name}: .*{what}.*" + REPAIR.format(name=shard.name)):
        users(output)


def test_a_truncated_shard_is_refused(two_versions: tuple[StageOutput, UPath]):
    output, shard = two_versions
    shard.write_bytes(shard.read_bytes()[:-30])
    refused(output, shard, "damaged, its content is not what its checksum says")


def test_a_missing_shard_is_refused(two_versions: tuple[StageOutput, UPath]):
    output, shard = two_versions
    shard.unlink()
    refused(output, shard, "not a readable Parquet file")


def test_a_shard_with_too_few_rows_is_refused(two_versions: tuple[StageOutput, UPath]):
    output, shard = two_versions
    storage.write_table(shard, storage.read_table(shard).slice(0, 1))
    refused(output, shard, "damaged, its content is not what its checksum says")
    refused(noted_again(output), shard, "1 rows, not all that")


def test_another_models_shard_is_refused(two_versions: tuple[StageOutput, UPath]):
    output, shard = two_versions
    table = storage.read_table(shard)
    foreign = [templates.fingerprint(text, "another last float32") for text in table["prompt"].to_pylist()]
    at = table.column_names.index("fingerprint")
    storage.write_table(shard, table.set_column(at, "fingerprint", pa.array(foreign)))
    refused(noted_again(output), shard, "other rows than .*such as another model's")


def test_a_shard_of_another_width_is_refused(two_versions: tuple[StageOutput, UPath]):
    output, shard = two_versions
    table = storage.read_table(shard)
    wide = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(len(table) * 9, np.float16)), 9)
    storage.write_table(shard, table.set_column(table.column_names.index("vector"), "vector", wide))
    refused(noted_again(output), shard, "9 numbers in a vector")


# --- pieces -------------------------------------------------------------------------------------------------------


def test_buckets_are_ranges_of_hashes():
    some = index.hash_ids([f"u{i}" for i in range(1000)])
    assert len(set(some.tolist())) == 1000
    assert set(index.bucket_numbers(some, 1)) == {0}
    eight, two = index.bucket_numbers(some, 8), index.bucket_numbers(some, 2)
    assert set(eight) == set(range(8))
    np.testing.assert_array_equal(eight // 4, two)
    assert (np.diff(eight[np.argsort(some)]) >= 0).all()


@pytest.mark.parametrize(
    ("rows", "buckets"), [(0, 1), (1, 1), (1 << 16, 1), ((1 << 16) + 1, 2), (10**6, 16), (10**9, 1024)]
)
def test_number_of_buckets(rows: int, buckets: int):
    assert index.bucket_count(rows) == buckets


def test_overlap_of_buckets_is_that_of_their_ranges():
    for a in range(4):
        for b in range(8):
            assert Bucket("users", a, 4).overlaps(Bucket("users", b, 8)) == (b // 2 == a)
            assert Bucket("users", b, 8).overlaps(Bucket("users", a, 4)) == (b // 2 == a)
    assert not Bucket("users", 0, 1).overlaps(Bucket("items", 0, 1))
    assert Bucket.parse(Bucket("users", 3, 8).index_file) == Bucket("users", 3, 8)
    assert Bucket.parse("vectors/users-0.parquet") is None


def test_keys_tell_rows_apart():
    plain = index.row_keys(["a"], ["f"], "")
    assert plain == index.row_keys(["a"], ["f"], "")
    others = [index.row_keys(["b"], ["f"], ""), index.row_keys(["a"], ["g"], ""), index.row_keys(["a"], ["f"], "x")]
    others += [index.row_keys(["af"], [""], ""), index.row_keys(["a"], ["fx"], "")]
    assert all(not plain.equals(other) for other in others)


def test_states_follow_errors():
    assert index.states(["", index.NOTHING_LIKED, "Boom"]).to_pylist() == [State.GOOD, State.EMPTY, State.FAILED]


def test_rows_come_shard_by_shard():
    rows = pa.table({"shard": ["a", "a", "b", "c", "c"], "row": [0, 1, 0, 4, 9]})
    found = {shard: part["row"].to_pylist() for shard, part in index.split_by_shard(rows)}
    assert found == {"a": [0, 1], "b": [0], "c": [4, 9]}
    assert dict(index.split_by_shard(INDEX.empty_table())) == {}
