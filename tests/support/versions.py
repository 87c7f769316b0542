"""Versions of the knowledge made step by step in this process, by an LLM that says nothing but the fingerprint."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from upath import UPath

from llm4msr import storage
from llm4msr.config import Config
from llm4msr.data import partitions
from llm4msr.knowledge import index, sums, versions, work_list
from llm4msr.knowledge.active_users import users_to_read
from llm4msr.knowledge.index import RowGroup
from llm4msr.knowledge.prompts.render import windows
from llm4msr.knowledge.reader import Reader
from llm4msr.knowledge.rows import read_vectors, row_groups
from llm4msr.knowledge.snapshots import KIND
from llm4msr.storage import MANIFEST, Manifest, StageOutput, StageResult
from llm4msr.storage.vectors import to_column

READER = Reader(
    revision="revision", frame="", reads="revision last float32", writes=dict.fromkeys(["users", KIND, "scenarios"], "")
)
WIDTH = 4


def fake_vectors(fingerprints: list[str]) -> np.ndarray:
    """What that LLM says: float16 [N, WIDTH]."""
    return np.array([np.frombuffer(f.encode()[: 2 * WIDTH], np.uint16) % 1000 for f in fingerprints], np.float16)


def write_shard(folder: UPath, shard: dict[str, Any], failed: tuple[str, ...] = ()) -> None:
    rows = work_list.read_prompts(pa.Table.from_pylist([shard]), str(folder))
    halves = fake_vectors(rows["fingerprint"].to_pylist())
    errors = ["Boom" if raw_id in failed else "" for raw_id in rows["raw_id"].to_pylist()]
    columns = {name: rows[name] for name in ("id", "raw_id", "fingerprint", "prompt")}
    columns |= {"answer": pa.array([""] * len(rows)), "tokens": pa.array([1] * len(rows)), "error": pa.array(errors)}
    columns["vector"] = to_column(halves)
    storage.write_table(folder / "vectors" / shard["name"], pa.table(columns).replace_schema_metadata({"writes": ""}))


def make_version(
    world: tuple[Config, StageOutput, StageOutput],
    root: Path,
    name: str,
    buckets: int,
    failed: tuple[str, ...] = (),
    **extract: Any,
) -> StageOutput:
    """A version of a config, its prepared data and knowledge; its manifest tells how many users were asked about.

    The LLM fails at those who are named in `failed`; `extract` changes the config's section of that name. There are at
    least as many buckets as the data have partitions.
    """
    config, data, _ = world
    config = with_extract(config, **extract)
    folder, total = storage.path(root) / name, partitions.count(data)
    todo = windows(users_to_read(config, data), {}, 16, config.extract.snapshots)[1:]
    counts = dict.fromkeys(["users", KIND], max(buckets, total))
    for window in todo:
        row = _table_of(window._asdict())
        work_list.render_window(row, config, data, str(folder), dict.fromkeys(counts, READER), counts)
    names = storage.files_below(folder.parent)
    bases = versions.index_files(folder.parent, names).values()
    earlier = versions.Earlier(bases, names)
    files: dict[str, int] = {}
    kept = asked = 0
    for bucket, spilled in work_list.spilled_by_bucket(todo, counts, total).items():
        job = work_list.match_job(bucket, spilled, earlier.of(bucket))
        (done,) = work_list.match_bucket(_table_of(job), str(folder), 3).to_pylist()
        shards = json.loads(done["shards"])
        for shard in shards:
            write_shard(folder, shard, failed)
            files[f"vectors/{shard['name']}"] = shard["rows"]
        job = bucket._asdict() | {"shards": [s["name"] for s in shards], "checksums": [""] * len(shards)}
        (sealed,) = work_list.seal_bucket(_table_of(job), str(folder)).to_pylist()
        files[sealed["file"]] = sealed["rows"]
        kept, asked = kept + done["kept"], asked + sum(shard["rows"] for shard in shards)
    rows = [RowGroup(str(folder / name), "", 0) for name in files if name.startswith("index/users-")]
    storage.write_table(folder / sums.FILE, sums.as_table(0, map(read_vectors, rows)))
    files[sums.FILE] = 1
    info = {"width": WIDTH, "kept": kept, "asked": asked, "version": len(bases) + 1, "partitions": total}
    info |= {KIND: config.extract.snapshots} if config.extract.snapshots > 1 else {}
    return storage.publish(
        folder, "extract", 1, {}, {}, lambda _: StageResult(files=files, rows=kept + asked, info=info), resumable=True
    )


def _table_of(row: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist([row])


def with_extract(config: Config, **changes: Any) -> Config:
    return config.model_copy(update={"extract": config.extract.model_copy(update=changes)})


def read_users(output: StageOutput) -> pa.Table:
    return pa.concat_tables([read_vectors(group) for group in row_groups(output)]).sort_by("raw_id")


def record_again(folder: UPath) -> StageOutput:
    """The version with the checksums that its files, and the shards that its index refers to, have now."""
    manifest = Manifest.model_validate_json(storage.read_bytes(folder / MANIFEST))
    for name in manifest.files:
        file = folder / name
        if name.startswith("index/"):
            table = storage.read_table(file)
            checksums = [storage.digest_file(folder.parent / shard) for shard in table["shard"].to_pylist()]
            at = table.column_names.index("checksum")
            storage.write_table(file, table.set_column(at, "checksum", pa.array(checksums)), index.GROUP_ROWS)
        manifest.files[name] = storage.record_file(file)
    storage.write_bytes(folder / MANIFEST, manifest.model_dump_json().encode())
    return StageOutput(folder, manifest)
