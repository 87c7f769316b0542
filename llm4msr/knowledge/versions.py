"""Versions of the knowledge below one storage: listed, looked into, verified, and pruned. No Ray here."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from upath import UPath

from llm4msr import storage
from llm4msr.arrays import Bools, Floats, Halves, Ints32
from llm4msr.config import Config
from llm4msr.errors import ConfigError, StorageError
from llm4msr.knowledge import index, interests, store, work_list
from llm4msr.knowledge.engines import open_engine, open_tokenizer
from llm4msr.knowledge.extract import check_same_model
from llm4msr.knowledge.index import IndexFile
from llm4msr.knowledge.prompts import templates
from llm4msr.knowledge.reader import Reader
from llm4msr.storage import MANIFEST, StageOutput, cache, lock
from llm4msr.storage.vectors import to_column, to_matrix

SAME = 0.999
"""Least cosine of two vectors that count as the same."""
PRUNED = "pruned"
"""The error of a row that was erased in a shard of which other rows are still in use."""


def versions(config: Config) -> list[StageOutput]:
    """The finished versions below this storage, the newest first.

    Raises:
        StorageError: one is damaged.
    """
    root = _root(config)
    folders = [folder for folder in root.iterdir() if folder.is_dir()] if root.exists() else []
    found = [output for folder in folders if (output := storage.open_output(folder))]
    return sorted(found, key=lambda v: (v.manifest.info.get("version", 0), v.manifest.created), reverse=True)


def list_versions(config: Config) -> list[dict[str, Any]]:
    """A row per version: number, name, when, whose vectors, rows, how many of them by reference, bytes of its own."""
    rows = []
    for version in versions(config):
        m = version.manifest
        row = {"version": m.info.get("version", 0), "name": version.folder.name, "created": m.created}
        row |= {"model": m.inputs["model"], "users": m.info["users"], "kept": m.info.get("kept", 0)}
        row |= {"forgotten": m.info.get("forgotten", 0)}
        row |= {"failed": m.failed, "bytes": sum(part.bytes for part in m.files.values())}
        rows.append(row)
    return rows


def show(output: StageOutput, raw_id: str, neighbours: int = 5) -> dict[str, Any]:
    """A user's prompt, answer, the interests in it and error in a version, and who is nearest.

    Nearest by the cosine of vectors less the mean of all, since hidden states have a large part in common.

    Raises:
        ConfigError: no such user.
    """
    table = _part_with(output, raw_id)
    row = int(np.flatnonzero(np.array(table["raw_id"].to_pylist(), object) == raw_id)[0])
    columns = ["raw_id", "prompt", "answer", "tokens", "error"]
    found = {name: table[name][row].as_py() for name in columns}
    names = [str(scenario["raw_id"]) for scenario in store.texts(output)]
    found["interests"] = interests.read(found["answer"], names)
    if found["error"]:
        return found
    return found | {"nearest": _nearest(output, raw_id, to_matrix(table["vector"])[row], neighbours)}


def _part_with(output: StageOutput, raw_id: str) -> pa.Table:
    wanted = index.hashes([raw_id])
    columns = ["id", "raw_id", "prompt", "answer", "tokens", "error", "vector"]
    for part in store.user_parts(output):
        file, _, group = index.place(part)
        if group:
            at = IndexFile.of(f"index/{file.name}")
            if at is None or index.bucket_of(wanted, at.buckets)[0] != at.bucket:
                continue
            if wanted[0] not in index.read_entries(part, ["hash"])["hash"].to_numpy():
                continue
        table = index.read(part, columns)
        if pc.any(pc.equal(table["raw_id"], raw_id)).as_py():
            return table
    raise ConfigError(f"{output.folder}: knows no user '{raw_id}'; ids are those of the source's files")


def _nearest(output: StageOutput, raw_id: str, vector_Z: Halves, count: int) -> list[dict[str, Any]]:
    mean_Z, best = _mean(output), pa.table({"raw_id": pa.array([], pa.string()), "cosine": pa.array([], pa.float64())})
    own_Z = vector_Z.astype(np.float64) - mean_Z
    for table in _good(output):
        others_NZ = to_matrix(table["vector"]).astype(np.float64) - mean_Z
        lengths_N = np.linalg.norm(others_NZ, axis=1) * np.linalg.norm(own_Z)
        cosine_N = others_NZ @ own_Z / np.maximum(lengths_N, 1e-12)
        ranked = pa.table({"raw_id": table["raw_id"], "cosine": cosine_N}).filter(pc.field("raw_id") != raw_id)
        best = pa.concat_tables([best, ranked]).sort_by([("cosine", "descending")]).slice(0, count)
    return [{"raw_id": row["raw_id"], "cosine": round(row["cosine"], 4)} for row in best.to_pylist()]


def _good(output: StageOutput) -> Iterator[pa.Table]:
    for part in store.user_parts(output):
        table = store.read_part(part)
        yield table.filter(pa.array(store.good_rows(table)))


def _mean(output: StageOutput) -> Floats:
    total: Any = 0.0
    count = 0
    for table in _good(output):
        total, count = total + to_matrix(table["vector"]).sum(0, dtype=np.float64), count + len(table)
    return np.asarray(total / max(count, 1))


def verify(config: Config, output: StageOutput, sample: int = 16) -> dict[str, Any]:
    """Ask the LLM again about some of the rows that it read, and compare fingerprints and vectors.

    Raises:
        StorageError: the model is another one now, or a row is not what its prompt gives.
    """
    revision = check_same_model(config, output)
    kind = "items" if config.extract.reads == "items" else "users"
    rows = _sample(output, kind, sample, config.seed)
    tokenizer = open_tokenizer(config.extract)
    reads = Reader.of(config, revision, tokenizer.frame).reads
    for row in rows.to_pylist():
        if templates.fingerprint(row["prompt"], reads) != row["fingerprint"]:
            raise StorageError(f"{output.folder}: '{row['raw_id']}' has a fingerprint that is not its prompt's")
    engine = open_engine(config.extract, "vectors")
    after = rows["answer"].to_pylist() if config.extract.pooling == "answer" else [""] * len(rows)
    again_NZ = engine.vectors([tokenizer(*pair) for pair in zip(rows["prompt"].to_pylist(), after, strict=True)])
    stored_NZ = to_matrix(rows["vector"]).astype(np.float64)
    lengths_N = np.linalg.norm(stored_NZ, axis=1) * np.linalg.norm(again_NZ, axis=1)
    cosine_N = (stored_NZ * again_NZ).sum(1) / np.maximum(lengths_N, 1e-12)
    if len(rows) and not cosine_N.min() >= SAME:  # nor is what is no number the same
        worst = rows["raw_id"][int(cosine_N.argmin())].as_py()
        raise StorageError(
            f"{output.folder}: the vector of '{worst}' has cosine {cosine_N.min():.4f} with what the LLM says now; "
            f"delete {output.folder} and extract again"
        )
    least = round(float(cosine_N.min()), 6) if len(rows) else 1.0
    return {"uri": str(output.folder), "rows": output.manifest.rows, "compared": len(rows), "least_cosine": least}


def _sample(output: StageOutput, kind: str, count: int, seed: int) -> pa.Table:
    """Good rows from a few parts, drawn with the seed."""
    parts = store.parts(output, kind)
    rng = np.random.default_rng(seed)
    chosen = [parts[i] for i in rng.permutation(len(parts))[:4]]
    columns = ["raw_id", "fingerprint", "prompt", "answer", "error", "vector"]
    tables = [index.read(part, columns) for part in chosen]
    table = pa.concat_tables([table.filter(pa.array(store.good_rows(table))) for table in tables])
    return table.take(pa.array(rng.permutation(len(table))[:count])).combine_chunks()


# --- prune --------------------------------------------------------------------------------------------------------


def prune(
    config: Config, current: StageOutput | None, keep: int = 1, unfinished: bool = False, dry_run: bool = False
) -> dict[str, Any]:
    """Delete all but the newest `keep` versions and the `current` one, and every row that none of them refers to.

    Versions from before the newest one with a list of users to forget go too, whatever `keep` says. What unfinished
    runs refer to stays, unless `unfinished` says that they go as well; what is at work stays in any case.

    Returns:
        `kept` and `removed` versions, `unfinished` ones left, and bytes `freed`.
    """
    root = _root(config)
    there = storage.files_below(root, whole=True)
    running = {n.partition("/")[0] for n in there if n.endswith(("/work/work.json", f"/{lock.NAME}"))}
    running = {name for name in running if f"{name}/{MANIFEST}" not in there}
    running = {name for name in running if not unfinished or lock.is_held(root / name)}
    stay, go = _divide(config, current, keep, running)
    in_use = {f"{version.folder.name}/{name}" for version in stay for name in (MANIFEST, *version.manifest.files)}
    doomed = [name for name in there if name not in in_use and name.partition("/")[0] not in running]
    doomed = [name for name in doomed if name.removesuffix(index.CHECKSUMS) not in {*doomed} - {name}]  # go with theirs
    shards = [name for name in doomed if "/vectors/" in name]
    others = sorted(set(doomed) - set(shards), key=lambda name: not name.endswith(f"/{MANIFEST}"))
    freed = sum(there[name] for name in others)
    if not dry_run:
        cache.root()  # holds copies that go too: told before anything goes where it cannot be written
        for name in others:  # manifests first: from then on nobody finds these versions
            (root / name).unlink()
        for version in go:
            _forget_cache(version)
    indexes = {name: "" for name in there if "/work/kept/" in name and name.partition("/")[0] in running}
    for version in stay:
        own = {f"{version.folder.name}/{name}": part.digest for name, part in version.manifest.files.items()}
        indexes |= {name: checksum for name, checksum in own.items() if "/index/" in name}
    for bucket, names in _by_bucket(shards).items():
        live = _live_rows(root, bucket, indexes)
        for name in names:
            rows, checksum = live.get(name, (np.array([], np.int32), ""))
            if not len(rows) and not dry_run and name + index.CHECKSUMS in there:
                (root / (name + index.CHECKSUMS)).unlink()
            freed += _erase(root / name, rows, checksum, there[name], dry_run)
    names_of = {"kept": stay, "removed": go}
    report = {key: [version.folder.name for version in some] for key, some in names_of.items()}
    return report | {"unfinished": sorted(running), "freed": freed, "dry_run": dry_run}


def _forget_cache(version: StageOutput) -> None:
    """Delete this machine's memory-mapped copies of a version's vectors."""
    cached = store.cache_of(version)
    for copy in cached.parent.glob(f"{cached.name}.*"):
        storage.remove(storage.path(copy))


def _divide(
    config: Config, current: StageOutput | None, keep: int, running: set[str]
) -> tuple[list[StageOutput], list[StageOutput]]:
    """Versions that stay, and versions that go."""
    found = versions(config)
    forgetting = next((i for i, v in enumerate(found) if v.manifest.info.get("forget")), len(found))
    wanted = {version.folder.name for version in found[:keep]}
    if current is not None:
        wanted.add(current.folder.name)
    needed = {base for name in running for base in _bases(_root(config) / name)}
    stay = [v for i, v in enumerate(found) if v.folder.name in needed or (v.folder.name in wanted and i <= forgetting)]
    return stay, [version for version in found if version not in stay]


def _bases(folder: UPath) -> Sequence[str]:
    """Versions that an unfinished run still has to compare its rows with."""
    work = work_list.unfinished(folder)
    return work.bases if work and not work.planned else []


def _by_bucket(shards: Sequence[str]) -> dict[IndexFile, list[str]]:
    found: dict[IndexFile, list[str]] = defaultdict(list)
    for name in shards:
        stem = name.rpartition("/")[2].rpartition("-")[0]
        at = IndexFile.of(f"index/{stem}.parquet") or IndexFile(stem.partition("-")[0], 0, 1)
        found[at].append(name)
    return found


def _live_rows(root: UPath, bucket: IndexFile, indexes: Mapping[str, str]) -> dict[str, tuple[Ints32, str]]:
    """Shard -> its rows that a bucket's index files refer to, and its checksum there; `indexes` have theirs beside."""
    files = [
        name for name in indexes if (at := IndexFile.of(f"index/{name.rpartition('/')[2]}")) and at.overlaps(bucket)
    ]
    tables = [index.rows_of(root / name, ["shard", "checksum", "row"], indexes[name]) for name in files]
    if not tables:
        return {}
    rows = pa.concat_tables(tables).sort_by([("shard", "ascending"), ("row", "ascending")])
    found = index.by_shard(rows)
    return {shard: (np.unique(part["row"].to_numpy()), part["checksum"][0].as_py()) for shard, part in found}


def _erase(shard: UPath, live: Ints32, checksum: str, size: int, dry_run: bool) -> int:
    """Delete a shard, or all in its rows that are not `live`; rows keep their places. Gives back the bytes freed.

    Indexes go on to name the checksum that they know, so the new one is noted beside the shard, and before it changes.
    """
    if not len(live):
        if not dry_run:
            shard.unlink()
        return size
    with storage.open_parquet(shard) as parquet:
        if parquet.metadata.num_rows == len(live):
            return 0
    table = index.read_shard(shard, None, checksum, "delete it, and `llm4msr extract` asks anew for its rows")
    alive = np.isin(np.arange(len(table)), live)
    if dry_run or set(table["error"].filter(pa.array(~alive)).to_pylist()) == {PRUNED}:
        return 0
    data = storage.parquet_bytes([_blanked(table, alive)])
    history = [*(index.checksums(shard) or [checksum]), storage.digest(data)]
    storage.write_bytes(shard.with_name(shard.name + index.CHECKSUMS), json.dumps(history).encode())
    storage.write_bytes(shard, data)
    return size - len(data)


def _blanked(table: pa.Table, alive: Bools) -> pa.Table:
    mask = pa.array(alive)
    for at, name in enumerate(table.column_names):
        column = table[name]
        if name == "vector":
            halves = to_matrix(table["vector"]).copy()
            halves[~alive] = 0
            column = to_column(halves)
        elif pa.types.is_string(column.type):
            column = pc.if_else(mask, column, PRUNED if name == "error" else "")
        else:
            column = pc.if_else(mask, column, 0)
        table = table.set_column(at, table.schema.field(name), column)
    return table


def _root(config: Config) -> UPath:
    return storage.path(config.root) / "extract"
