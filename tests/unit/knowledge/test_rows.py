"""Rows of a version: those of some users alone, and what is damaged."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from upath import UPath

from llm4msr import storage
from llm4msr.data import partitions
from llm4msr.errors import StorageError
from llm4msr.knowledge.buckets import Bucket
from llm4msr.knowledge.prompts import templates
from llm4msr.knowledge.rows import find_texts, read_texts
from llm4msr.storage import StageOutput
from tests.support.versions import make_version, read_users, record_again
from tests.unit.conftest import World


@pytest.mark.parametrize("buckets", [1, 4])
def test_a_lookup_reads_no_more_than_the_bucket_and_the_shards_of_its_users(world: World, tmp_path: Path, buckets: int):
    output = make_version(world, tmp_path, "one", buckets)
    rows = {name: part.rows for name, part in output.manifest.files.items()}
    everybody = read_texts(output, "users")
    wanted = everybody[5]["raw_id"]
    assert find_texts(output, [wanted, "nobody"]) == [everybody[5]]
    assert find_texts(output, ["nobody"]) == find_texts(output, []) == []
    by_id = {row["raw_id"]: row for row in everybody}
    assert {row["raw_id"]: row for row in find_texts(output, list(by_id))} == by_id

    hash_1 = partitions.hash_ids([wanted])
    bucket = Bucket("users", int(partitions.numbers_of(hash_1, buckets)[0]), buckets)
    entries = storage.read_table(output.folder / bucket.index_file)
    (shard,) = entries.filter(pc.equal(entries["hash"], hash_1[0]))["shard"].to_pylist()
    for name in rows:
        if name.startswith(("index/users", "vectors/")) and name != bucket.index_file and not shard.endswith(name):
            (output.folder / name).unlink()
    assert find_texts(output, [wanted]) == [everybody[5]]


@pytest.fixture
def two_versions(world: World, tmp_path: Path) -> tuple[StageOutput, UPath]:
    """The second version, which refers to the first one's shards, and one of these."""
    one = make_version(world, tmp_path, "one", 1)
    output = make_version(world, tmp_path, "two", 1)
    return output, one.folder / next(name for name in one.manifest.files if name.startswith("vectors/"))


REPAIR = r"delete .*{name} and .*two/manifest\.json, then run `llm4msr extract` again: it asks anew for the rows"


def refused(output: StageOutput, shard: UPath, what: str) -> None:
    with pytest.raises(StorageError, match=rf"{shard.name}: .*{what}.*" + REPAIR.format(name=shard.name)):
        read_users(output)


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
    refused(record_again(output.folder), shard, "1 rows, not all that")


def test_another_models_shard_is_refused(two_versions: tuple[StageOutput, UPath]):
    output, shard = two_versions
    table = storage.read_table(shard)
    foreign = [templates.fingerprint(text, "another last float32") for text in table["prompt"].to_pylist()]
    at = table.column_names.index("fingerprint")
    storage.write_table(shard, table.set_column(at, "fingerprint", pa.array(foreign)))
    refused(record_again(output.folder), shard, "other rows than .*such as another model's")


def test_a_shard_of_another_width_is_refused(two_versions: tuple[StageOutput, UPath]):
    output, shard = two_versions
    table = storage.read_table(shard)
    wide = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(len(table) * 9, np.float16)), 9)
    storage.write_table(shard, table.set_column(table.column_names.index("vector"), "vector", wide))
    refused(record_again(output.folder), shard, "9 numbers in a vector")
