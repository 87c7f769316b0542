"""Rows of one version of the knowledge: read row group by row group, or found by raw id.

A row group of an index file names rows of shards, its own version's and earlier ones'. Each shard is compared with the
checksum, and each row with the key, that the index has of it.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from upath import UPath

from llm4msr import storage
from llm4msr.arrays import Bools, strings, typed_rows
from llm4msr.data.partitions import hash_ids, numbers_of
from llm4msr.errors import StorageError
from llm4msr.knowledge.buckets import Bucket
from llm4msr.knowledge.index import GROUP_ROWS, RowGroup, read_index, row_keys, split_by_shard, texts_to_write
from llm4msr.storage import FileRecord, StageOutput, stage_files
from llm4msr.text import shorten

CHECKSUMS = ".checksums.json"
"""What is added to a shard's name for the file that `prune` writes beside it."""


def row_groups(output: StageOutput, kind: str = "users") -> list[RowGroup]:
    """Row groups of a version, each a bounded number of its `users`, `scenarios` or `items`.

    Together they hold every one of them once.
    """
    return list_row_groups(output.folder, output.manifest.files, kind)


def list_row_groups(folder: UPath, files: Mapping[str, FileRecord], kind: str) -> list[RowGroup]:
    """The row groups of a version that is not published yet; without an index, its shards of that kind."""
    indexed = sorted(name for name in files if name.startswith(f"index/{kind}-"))
    if indexed:
        groups = [(name, number) for name in indexed for number in range(-(-files[name].rows // GROUP_ROWS))]
        return [RowGroup(str(folder / name), files[name].digest, number) for name, number in groups]
    shards = [name for name in sorted(files) if name.rpartition("/")[2].startswith(f"{kind}-")]
    return [RowGroup(str(folder / name), files[name].digest) for name in shards]


def groups_beside(output: StageOutput, raw_id: str) -> list[RowGroup]:
    """The row groups of all users of the partition that a user lies in, or would."""
    total = int(output.manifest.info.get("partitions", 1))
    home = int(numbers_of(hash_ids([raw_id]), total)[0])
    files = {name: part for name, part in output.manifest.files.items() if partition_of(name, total) == home}
    return list_row_groups(output.folder, files, "users")


def partition_of(name: str, total: int) -> int:
    """The partition of the users in a file of a version, by its name, where there are `total` of them."""
    window = re.search(r"-(\d{5})-\d{9}\.parquet$", name)
    bucket = Bucket.parse(name)
    return bucket.partition(total) if bucket else int(window[1]) if window else 0


def read_rows(group: RowGroup, columns: Sequence[str]) -> pa.Table:
    """These columns of the rows of a row group; `id` is the version's own.

    Raises:
        StorageError: a shard is missing, damaged, or holds other rows than the version was made of.
    """
    if group.number is None:
        return storage.read_table(group.file, list(columns), group.advice, group.checksum)
    index = read_index(group)
    tables = {shard: _read_indexed(group.version, shard, rows, columns) for shard, rows in split_by_shard(index)}
    _refuse_other_widths(group.version, tables)
    table = pa.concat_tables(tables.values())
    return table.append_column("id", index["id"]).select(list(columns)) if "id" in columns else table


def read_vectors(group: RowGroup) -> pa.Table:
    """id int64, raw_id, error and vector fixed_size_list<float16>[Z] of the rows of a row group.

    Raises:
        StorageError: a shard is missing, damaged, or holds other rows than the version was made of.
    """
    return read_rows(group, ["id", "raw_id", "error", "vector"])


def good_rows(table: pa.Table) -> Bools:
    """Which rows have a vector: bool [N]."""
    return np.array([not error for error in strings(table["error"])], bool)


TEXTS = ["raw_id", "prompt", "answer", "error"]
"""Whom the LLM was asked about, what it read, what it said, and why that failed, if it did."""


def read_texts(output: StageOutput, kind: str = "scenarios") -> list[dict[str, str]]:
    """`TEXTS` of all scenarios (or users); scenarios come in the order of their numbers."""
    tables = [read_rows(group, ["id", *TEXTS]) for group in row_groups(output, kind)]
    if kind == "scenarios" and tables:
        tables = [pa.concat_tables(tables).sort_by("id")]
    return [row for table in tables for row in typed_rows(table.select(TEXTS), dict[str, str])]


def find_texts(output: StageOutput, raw_ids: Sequence[str]) -> list[dict[str, str]]:
    """`TEXTS` of these users, less those that the version does not have.

    It reads their buckets and the shards that they lie in; without an index, all shards of users.

    Raises:
        StorageError: a shard is missing, damaged, or holds other rows than the version was made of.
    """
    files, hash_N = output.manifest.files, hash_ids(raw_ids)
    buckets = [bucket for name in sorted(files) if (bucket := Bucket.parse(name)) and bucket.kind == "users"]
    tables = [] if buckets else [read_rows(group, TEXTS) for group in row_groups(output)]
    for bucket in buckets:
        sought = hash_N[bucket.holds(hash_N)]
        if len(sought):
            index = read_index(RowGroup(str(output.folder / bucket.index_file), files[bucket.index_file].digest))
            hits = index.filter(pc.is_in(index["hash"], value_set=pa.array(sought))).sort_by("shard")
            tables += [_read_indexed(output.folder, shard, rows, TEXTS) for shard, rows in split_by_shard(hits)]
    exact = pa.array(raw_ids, pa.string())  # a hash may be another id's too
    tables = [table.filter(pc.is_in(table["raw_id"], value_set=exact)) for table in tables]
    return [row for table in tables for row in typed_rows(table, dict[str, str])]


def _refuse_other_widths(version: UPath, tables: Mapping[str, pa.Table]) -> None:
    widths = {
        shard: table.schema.field("vector").type.list_size
        for shard, table in tables.items()
        if "vector" in table.schema.names
    }
    common = Counter(widths.values()).most_common()
    if len(common) > 1:
        odd = next(shard for shard, width in widths.items() if width == common[-1][0])
        file = version.parent / odd
        raise StorageError(
            f"{file}: {widths[odd]} numbers in a vector, others of {version} have {common[0][0]}; "
            + storage.repair_advice(version, "extract", file)
        )


def _read_indexed(version: UPath, shard: str, index: pa.Table, columns: Sequence[str]) -> pa.Table:
    """These columns, `id` left out, of the rows of a shard that the index of a version names."""
    if not stage_files.SHARD.fullmatch(shard):
        raise StorageError(f"{version / 'index'}: names '{shorten(shard)}', which is no shard; do not use this version")
    file = version.parent / shard
    advice = storage.repair_advice(version, "extract", file)
    columns = [name for name in columns if name != "id"]
    table = read_shard(
        file, list(dict.fromkeys([*columns, "raw_id", "fingerprint"])), index["checksum"][0].as_py(), advice
    )
    if pc.max(index["row"]).as_py() >= len(table):
        raise StorageError(f"{file}: {len(table)} rows, not all that {version} refers to; {advice}")
    writes, table = texts_to_write(table), table.take(index["row"])
    keys = row_keys(strings(table["raw_id"]), strings(table["fingerprint"]), writes)
    if not keys.equals(index["key"].combine_chunks()):
        raise StorageError(
            f"{file}: other rows than {version} was made of, such as another model's or another prompt's; {advice}"
        )
    return table.select(columns).replace_schema_metadata()


def read_shard(file: UPath, columns: list[str] | None, checksum: str, advice: str) -> pa.Table:
    """These columns of a shard (None: all), whose content is what an index says, or what `prune` has left of that.

    Args:
        file: the shard.
        columns: their names.
        checksum: what the index says.
        advice: what a message says to do if the shard is damaged.

    Raises:
        StorageError: it is missing or damaged.
    """
    try:
        return storage.read_table(file, columns, advice, checksum)
    except StorageError:
        history = read_checksums(file)
        current = storage.digest_file(file) if checksum in history else ""
        if current not in history:
            raise
        return storage.read_table(file, columns, advice, current)


def read_checksums(shard: UPath) -> list[str]:
    """The checksums that a shard has had, the oldest first, if `prune` has erased rows in it; else none."""
    try:
        checksums = json.loads(storage.read_bytes(shard.with_name(shard.name + CHECKSUMS)))
    except (StorageError, ValueError, RecursionError):
        return []
    return [str(checksum) for checksum in checksums] if isinstance(checksums, list) else []
