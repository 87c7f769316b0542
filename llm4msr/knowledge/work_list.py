"""What is left to ask: prompts of all rows, less the rows that earlier versions below the same storage hold.

Two passes over Ray Data. The first renders windows of the prepared tables and writes each window's prompts sorted
into buckets of raw ids; the second takes one bucket out of all windows, finds its rows in the earlier versions, and
cuts the others into shards of prompts of like length. So memory is that of a window or a bucket, however many users
there are, and no row passes through the driver or stays in Ray's object store.

What they write lies below `work/` of the new version, and goes when it is published.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, Field, ValidationError, field_validator
from upath import UPath

from llm4msr import ray_session, storage
from llm4msr.config import Config
from llm4msr.errors import StorageError
from llm4msr.knowledge import drift, index
from llm4msr.knowledge.forget import check_list, forgotten
from llm4msr.knowledge.index import NOTHING_LIKED, IndexFile
from llm4msr.knowledge.prompts import templates
from llm4msr.knowledge.prompts.render import items_to_read, render, window_name, windows
from llm4msr.knowledge.reader import Reader
from llm4msr.progress import track
from llm4msr.schema import INDEX
from llm4msr.storage import Manifest, StageOutput, stage_files

WINDOW_ROWS = 1 << 16


Kind = Literal["users", "items", "scenarios"]
FileName = Annotated[str, Field(pattern=r"^(users|items|scenarios)-[A-Za-z0-9_-]+\.parquet$")]
"""A plan is read back from storage, and is believed only as far as it names files of its own."""


class Shard(BaseModel):
    """Rows that are asked and written in one piece: a row group of prompts, and the file that is to be."""

    name: FileName
    kind: Kind
    todo: FileName
    group: int = Field(ge=0)
    rows: int = Field(ge=0)


class Work(BaseModel):
    """All that a version needs besides the LLM: where its rows are, or will be."""

    reader: Reader
    bases: list[Annotated[str, Field(pattern=rf"^({stage_files.NAME.pattern})$")]]
    """Versions whose shards it may refer to."""
    planned: bool = False
    buckets: list[IndexFile] = []
    kept: dict[str, int] = {}
    """Rows of each kind that an earlier version holds."""
    steady: int = 0
    """Scenarios whose statistics moved, but by too little to ask again."""
    forgotten: int = 0
    """Ids of the list to forget that somebody has."""
    shards: list[Shard] = []
    files: dict[str, int] = {}
    """What the plan consists of besides, and its bytes."""

    @field_validator("buckets")
    @classmethod
    def _name_index_files(cls, buckets: list[IndexFile]) -> list[IndexFile]:
        if wrong := [at.name for at in buckets if IndexFile.of(at.name) != at]:
            raise ValueError(f"{wrong[0]}: no index file")
        return buckets


def work_left(config: Config, data: StageOutput, folder: UPath, reader: Reader) -> Work:
    """Plan the version in `folder`, or find the plan of a run that was interrupted."""
    file = folder / "work" / "work.json"
    found = unfinished(folder)
    if found and found.planned and found.reader == reader and found.files == _planned_files(folder):
        return found
    storage.remove(folder / "work")
    there = storage.files_below(folder.parent)
    bases = with_index(folder.parent, there)
    work = Work(reader=reader, bases=list(bases))
    work.forgotten = len(check_list(config, data, bases.values()).known)
    storage.write_bytes(file, work.model_dump_json().encode())  # from now on `prune` leaves the bases alone
    scenarios, work.steady = drift.steady(
        data.table("scenarios.parquet"), drift.earlier(folder, bases), config.extract.scenario_tolerance
    )
    storage.write_table(folder / drift.FILE, scenarios)
    items = items_to_read(data.table("items.parquet", ["f:item_id"]))
    todo = windows(config, data.manifest.info["histories"], items, WINDOW_ROWS)
    rows = {window["kind"]: window["stop"] for window in todo}  # the last one of each kind ends with its last row
    counts = {kind: index.bucket_count(stop) for kind, stop in rows.items()}
    work.buckets = [IndexFile(kind, at, count) for kind, count in counts.items() for at in range(count)]
    settled: dict[str, Any] = {"config": config, "folder_uri": str(folder), "reader": reader}
    with track("render", sum(rows.values()) + data.manifest.info["scenarios"] - 1) as progress:
        for done in ray_session.run_each(_render, todo, data=data, counts=counts, **settled):
            progress.advance(done["rows"])
    settled |= {"spilled": [window_name(window) for window in todo], "bases": list(bases.values())}
    settled["present"] = pa.array(sorted(name for name in there if "/vectors/" in name), pa.string())
    for done in ray_session.run_each(_match, [at._asdict() for at in work.buckets], **settled):
        work.kept[done["kind"]] = work.kept.get(done["kind"], 0) + done["kept"]
        work.shards += [Shard.model_validate(shard) for shard in json.loads(done["shards"])]
    storage.remove(folder / "work" / "spill")
    work.shards.sort(key=lambda shard: (shard.kind, shard.name))
    work.planned, work.files = True, _planned_files(folder)
    storage.flush(folder, list(work.files))
    storage.write_bytes(file, work.model_dump_json().encode(), durable=True)
    return work


def _planned_files(folder: UPath) -> dict[str, int]:
    there = storage.files_below(folder / "work")
    return {f"work/{name}": size for name, size in there.items() if name.startswith(("todo/", "kept/"))}


def unfinished(folder: UPath) -> Work | None:
    """What an unfinished run noted in its folder."""
    try:
        return Work.model_validate_json(storage.read_bytes(folder / "work" / "work.json"))
    except (StorageError, ValidationError):
        return None


def with_index(root: UPath, there: Mapping[str, int]) -> dict[str, list[str]]:
    """Name -> parts that are the index files of each version below `root`, the newest version first.

    A version without a manifest counts too: its index files were written last, so what they name is there, or is
    looked for once more; thus a version with a lost or damaged file is mended by making it again.
    """
    names: dict[str, list[str]] = {}
    for name in sorted(there):
        version, _, inner = name.partition("/")
        if IndexFile.of(inner):
            names.setdefault(version, []).append(inner)
    manifests = {version: _manifest(root / version) for version in names}
    found = {
        version: [index.part(root / version / name, _checksum(manifests[version], name)) for name in inner]
        for version, inner in names.items()
    }
    return dict(sorted(found.items(), key=lambda item: _number(manifests[item[0]]), reverse=True))


def version_number(version: UPath) -> int:
    """1, 2 and so on in the order in which versions were begun; 0 for one without a readable manifest."""
    return _number(_manifest(version))


def _manifest(version: UPath) -> Manifest | None:
    try:
        return Manifest.model_validate_json(storage.read_bytes(version / storage.MANIFEST))
    except (StorageError, ValidationError):
        return None


def _number(manifest: Manifest | None) -> int:
    number = manifest.info.get("version", 0) if manifest else 0
    return number if isinstance(number, int) else 0


def _checksum(manifest: Manifest | None, name: str) -> str:
    return manifest.files[name].digest if manifest and name in manifest.files else ""


def _render(
    batch: pa.Table, config: Config, data: StageOutput, folder_uri: str, reader: Reader, counts: dict[str, int]
) -> pa.Table:
    """Prompts, fingerprints and keys of one window, in a file with a row group for each bucket that has rows."""
    (window,) = batch.to_pylist()
    rows = render(window, config, data, storage.path(folder_uri) / drift.FILE)
    kept = rows.filter(pc.invert(pc.is_in(rows["raw_id"], value_set=forgotten(config, window["kind"]))))
    raw_ids, texts = kept["raw_id"].to_pylist(), kept["prompt"].to_pylist()
    fingerprints = [templates.fingerprint(text, reader.reads) for text in texts]
    hash_N = index.hashes(raw_ids)
    columns = {
        "fingerprint": pa.array(fingerprints, pa.string()),
        "error": pa.array(["" if text else NOTHING_LIKED for text in texts], pa.string()),
        "hash": pa.array(hash_N),
        "key": index.keys(raw_ids, fingerprints, reader.writes[window["kind"]]),
    }
    for name, column in columns.items():
        kept = kept.append_column(name, column)
    bucket_N = index.bucket_of(hash_N, counts[window["kind"]])
    order = np.argsort(bucket_N, kind="stable")
    filled, starts = np.unique(bucket_N[order], return_index=True)
    kept = kept.take(pa.array(order)).replace_schema_metadata({"buckets": json.dumps(filled.tolist())})
    groups = [kept.slice(at, end - at) for at, end in zip(starts, [*starts[1:], len(kept)], strict=True)]
    storage.write_groups(storage.path(folder_uri) / "work" / "spill" / window_name(window), groups or [kept])
    return pa.table({"rows": [len(rows)]})


def _match(
    batch: pa.Table,
    config: Config,
    folder_uri: str,
    reader: Reader,
    spilled: list[str],
    bases: list[list[str]],
    present: pa.Array,
) -> pa.Table:
    """One bucket: rows that earlier versions hold to `work/kept`, the others to `work/todo`, a row group each shard."""
    (at,) = (IndexFile(**row) for row in batch.to_pylist())
    work = storage.path(folder_uri) / "work"
    rows = pa.concat_tables(_bucket(work / "spill" / name, at) for name in spilled if name.startswith(f"{at.kind}-"))
    kept = index.match(rows, at, bases, present)
    if len(kept):
        storage.write_table(work / "kept" / at.file, kept)
    left = rows.filter(pc.invert(pc.is_in(rows["key"], value_set=kept["key"]))).drop_columns(["hash"])
    left = left.append_column("length", pc.utf8_length(left["prompt"]))
    left = left.sort_by([("length", "ascending"), ("raw_id", "ascending")]).drop_columns(["length"])
    size = config.extract.rows_per_shard
    groups = [left.slice(start, size) for start in range(0, len(left), size)]
    shards = []
    for number, group in enumerate(groups):
        content = storage.digest(*group["key"].to_pylist())[:12]
        name = f"{at.file.removesuffix('.parquet')}-{content}.parquet"
        shards.append({"name": name, "kind": at.kind, "todo": at.file, "group": number, "rows": len(group)})
    if groups:
        storage.write_groups(work / "todo" / at.file, [group.drop_columns(["key"]) for group in groups])
    return pa.table({"kind": [at.kind], "kept": [len(kept)], "shards": [json.dumps(shards)]})


def _bucket(file: UPath, at: IndexFile) -> pa.Table:
    """The rows of a bucket in one window's file."""
    with storage.open_parquet(file) as parquet:
        filled = json.loads((parquet.schema_arrow.metadata or {})[b"buckets"])
        groups = [filled.index(at.bucket)] if at.bucket in filled else []
        return parquet.read_row_groups(groups).replace_schema_metadata()


def prompts_of(batch: pa.Table, folder_uri: str) -> pa.Table:
    """A shard's rows with their prompts, out of `work/todo`, and the name of its file."""
    (shard,) = batch.to_pylist()
    with storage.open_parquet(storage.path(folder_uri) / "work" / "todo" / shard["todo"]) as parquet:
        rows = parquet.read_row_group(shard["group"])
    return rows.append_column("file", pa.array([shard["name"]] * len(rows), pa.string()))


def seal(batch: pa.Table, folder_uri: str) -> pa.Table:
    """Write one index file from the rows that were kept and those of the new shards; gives back its rows by state."""
    (job,) = batch.to_pylist()
    folder, at = storage.path(folder_uri), IndexFile(job["kind"], job["bucket"], job["buckets"])
    kept = folder / "work" / "kept" / at.file
    tables = [storage.read_table(kept)] if kept.exists() else [INDEX.empty_table()]
    for name, noted in zip(job["shards"], job["checksums"], strict=True):
        file = folder / "vectors" / name
        checksum = noted or storage.digest_file(file)  # an earlier run wrote it, and ended before it noted anything
        fix = storage.repair_advice(folder, "extract", file)
        table = storage.read_table(file, ["id", "raw_id", "fingerprint", "error"], fix, checksum)
        tables.append(index.entries(f"{folder.name}/vectors/{name}", table, checksum))
    rows = pa.concat_tables(tables).sort_by([("shard", "ascending"), ("row", "ascending")])
    own = [s for s in pc.unique(rows["shard"]).to_pylist() if s.startswith(f"{folder.name}/")]
    part = storage.write_table(folder / at.name, rows, index.PART_ROWS)
    states = np.bincount(rows["state"].to_numpy(), minlength=3)
    found = {"file": at.name, "kind": at.kind, "empty": int(states[1]), "failed": int(states[2])}
    columns = found | part.model_dump() | {"own": [s.partition("/")[2] for s in own]}
    return pa.table({name: [value] for name, value in columns.items()})
