"""Prompts -> knowledge: a frozen LLM reads what no earlier version has read; vectors and texts are published.

The unit of work is a shard of `rows_per_shard` rows. A shard's file appears in one piece when the shard is
finished, so a run that was interrupted, in whatever way, redoes only the shards in flight.

The sources of vectors take turns, each with the shards of its own kinds of rows. Of the LLM there are two passes over
the same shards, since an engine either writes or pools: `answers` (the scenarios' texts, on request the users' too),
then `vectors`. Last, an index is written of all rows, new ones and those of earlier versions.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from upath import UPath

from llm4msr import ray_session, storage
from llm4msr.arrays import Ints, strings
from llm4msr.config import Config
from llm4msr.data import partitions
from llm4msr.errors import StorageError
from llm4msr.knowledge import drift, item_vectors, number_format, sums, work_list
from llm4msr.knowledge.engines import Task
from llm4msr.knowledge.failures import refuse_failed_rows, refuse_failures, total
from llm4msr.knowledge.forget import ids_to_forget
from llm4msr.knowledge.index import RowGroup
from llm4msr.knowledge.passes import PassResult, merge, run_pass
from llm4msr.knowledge.prompts import templates
from llm4msr.knowledge.reader import Reader
from llm4msr.knowledge.rows import list_row_groups, read_rows
from llm4msr.knowledge.shards import SHARD_FOLDERS, Pass
from llm4msr.knowledge.snapshots import KIND
from llm4msr.knowledge.sources import ITEM_KINDS, Source, sources, texts_of_items
from llm4msr.knowledge.user_pooling import pool_users
from llm4msr.knowledge.versions import readable_manifests, version_number
from llm4msr.knowledge.words import Words
from llm4msr.knowledge.work import Shard, Work
from llm4msr.progress import say
from llm4msr.storage import FileRecord, StageOutput, StageResult

VERSION = 6


@ray_session.unwrap_errors
def extract(config: Config, data: StageOutput) -> StageOutput:
    """Publish one knowledge row (vector, text, fingerprint) for each scenario, and for each user or item.

    A row's layout is `schema.knowledge`; an output that is finished already is given back as it is.

    Raises:
        ConfigError: a template is wrong, or prompts may be longer than the model can read.
        DataError: nobody liked two items, from which a contrastive projection could be learned.
        StorageError: the model cannot be found or loaded, or changed since this output was made; nobody in the list of
            users to forget is known.
        TooManyFailedError: more rows of a kind failed than `extract.max_failed_fraction`; finished shards are kept.
    """
    version, named = folder(config, data), sources(config.extract)
    revisions = [source.revision() for source in named]
    revision, pinned = _joined(revisions), [source.pin() for source in named]
    inputs = {"prepare": data.manifest.fingerprint, "model": model_name(config), "revision": revision}
    inputs |= (
        {"pinned": _joined(source.model for source in pinned)}
        if [s.model for s in pinned] != [s.model for s in named]
        else {}
    )
    settings = config.model_dump(include={"extract"})

    def build(folder: UPath) -> StageResult:
        readers = dict[str, Reader]()
        models = [it for source, it in zip(pinned, revisions, strict=True) if source.is_local]
        dtype = number_format.settle(config, folder, models) if models else ""
        exact = [source.in_format(dtype) for source in pinned]
        for source, its_revision in zip(exact, revisions, strict=True):
            source.check()
            readers |= source.readers(config, its_revision, texts_of_items(data))
        return _build(config, data, folder, exact, readers, {"dtype": dtype})

    _withdraw_if_of_another_model(version, revision, inputs["model"])
    output = storage.publish(version, "extract", config.seed, settings, inputs, build, resumable=True)
    storage.remove(version / "work")
    refuse_failed_rows(config, output)
    check_same_model(config, output, revision)
    return output


def _joined(names: Iterable[str]) -> str:
    return number_format.JOINT.join(names)


def model_name(config: Config) -> str:
    """What the config's vectors come from: the model, or several of them, of which counts of words may be one."""
    return _joined(source.model for source in sources(config.extract))


def _withdraw_if_of_another_model(folder: UPath, revision: str, model: str) -> None:
    """Ask again where the model's content changed since; the shards stay for versions that refer to them."""
    output = storage.open_output(folder)
    if output is not None and output.manifest.inputs["revision"] != revision:
        say(f"  {model} is another one than when {folder} was made: all rows are asked again")
        storage.remove(folder / storage.MANIFEST)


def check_same_model(config: Config, output: StageOutput, revision: str = "") -> str:
    """The revision of the config's model, which must be the one that the extraction was made with.

    Raises:
        StorageError: it is another one, or the model cannot be found.
    """
    now = revision or _joined(source.revision() for source in sources(config.extract))
    if (then := output.manifest.inputs["revision"]) != now:
        raise StorageError(
            f"{output.folder}: made with revision {then} of {model_name(config)}, "
            f"which is {now} now; delete that folder, or choose another storage"
        )
    return now


def folder(config: Config, data: StageOutput) -> UPath:
    """Where this config's knowledge lies, or will: named by the prepared histories, not by when they came."""
    e = config.extract
    tables, uris = ["histories", "scenarios"], {"user": e.user_template, "scenario": e.scenario_template}
    if e.reads == "items":
        tables, uris = (
            ["seen", "items", "fields.json", "scenarios", *["events"] * e.point_in_time],
            {"item": e.item_template, "scenario": e.scenario_template},
        )
    elif e.snapshots > 1:
        tables += ["events", "items"]
    files = sorted(name for name in data.manifest.files if name.partition("/")[0].removesuffix(".parquet") in tables)
    content = [data.manifest.files[name].digest for name in files]
    texts = [templates.read(kind, uri).template for kind, uri in uris.items()]
    identity = [VERSION, e.identity(), texts, content, *ids_to_forget(config).to_pylist()]
    return storage.path(config.root) / "extract" / storage.digest_json(identity)[:12]


def _build(
    config: Config,
    data: StageOutput,
    folder: UPath,
    pinned: list[Source],
    readers: dict[str, Reader],
    info: dict[str, object],
) -> StageResult:
    work = work_list.plan_work(config, data, folder, readers)
    kept = sum(work.kept.values())
    if kept:
        say(f"  {kept} rows are as an earlier version has them, {sum(s.rows for s in work.shards)} are to be asked")
    if work.steady:
        say(f"  {work.steady} scenarios moved by no more than extract.scenario_tolerance and keep their prompts")
    info |= {"version": _next_version(folder), "partitions": partitions.count(data)}
    pairs_P2 = _pairs(config, data)
    results = _run_passes(config, data, folder, pinned, work)
    refuse_failures(config, folder, {task: merge(results, task).counts for task in SHARD_FOLDERS}, work)
    vectors, answers = merge(results, "vectors"), merge(results, "answers")
    files, sealed = _seal(folder, work, vectors.written)
    files[drift.FILE] = storage.record_file(folder / drift.FILE)
    by_kind = {kind: total(part for part in sealed if part["kind"] == kind) for kind in readers}
    rows = {kind: total["rows"] for kind, total in by_kind.items()}
    width = _width(list_row_groups(folder, files, "scenarios"))
    if answers.counts:
        info["answers_failed"] = sum(shard.failed - shard.empty for shard in answers.counts.values())
    info |= {"width": width, "scenario_width": width, "users": rows.get("users", 0), "kept": kept}
    info |= {"shards": len(vectors.counts), "by_kind": by_kind}
    without_likes = sum(part["empty"] for part in sealed if part["kind"] != KIND)
    info |= {"users_without_likes": without_likes}
    info |= {"spent": {name: dict(result.spent) for name, result in results.items()}}
    if config.extract.snapshots > 1:
        info[KIND] = config.extract.snapshots
    if config.extract.forget:
        info |= {"forgotten": work.forgotten, "forget": len(ids_to_forget(config))}
    if config.extract.reads == "items":
        trained_I = data.table("items.parquet", ["f:item_id"])["f:item_id"].to_numpy() > 0
        groups = {kind: list_row_groups(folder, files, kind) for kind in readers if kind in ITEM_KINDS.values()}
        items = item_vectors.make(config, folder, trained_I, groups, pairs_P2)
        files[item_vectors.FILE] = item_vectors.write(folder, items)
        pooled = pool_users(config, data, folder, items)
        files |= pooled
        info |= {
            "users": sum(part.rows for name, part in pooled.items() if "/users-" in name),
            "items": int(items.known_I.sum()),
            "item_width": items.vectors_ID.shape[1],
            "width": _width(list_row_groups(folder, pooled, "users")),
        }
    files[sums.FILE] = sums.write(folder, list_row_groups(folder, files, "users"), partitions.count(data))
    failed = without_likes + sum(part["failed"] for part in sealed)  # a snapshot without likes is shown as none is
    skipped = vectors.skipped + kept
    return StageResult(files=files, rows=sum(rows.values()), failed=failed, skipped=skipped, info=info)


def _pairs(config: Config, data: StageOutput) -> Ints | None:
    """What a contrastive projection learns from, before the LLM is asked: there may be none."""
    if config.extract.projection == "principal":
        return None
    from llm4msr.knowledge import contrastive  # PyTorch takes seconds to load

    return contrastive.draw_pairs(data, ids_to_forget(config))


def _run_passes(
    config: Config, data: StageOutput, folder: UPath, pinned: list[Source], work: Work
) -> dict[str, PassResult]:
    """Every source reads its shards; by the names of the passes, in their order."""
    scenarios = strings(data.table("scenarios.parquet", ["scenario_id"])["scenario_id"])[1:]
    results: dict[str, PassResult] = {}
    for source in pinned:
        as_read = config.model_copy(update={"extract": source.extract})
        mine = [shard for shard in work.shards if shard.kind in source.kinds]
        counted = mine and source.name == "words"
        width = _width_before(config, work.readers["scenarios"].revision) if source.name == "llm" else 0
        words = Words.fit(texts_of_items(data)(), config.extract.width_before) if counted else None
        for task, shards in _tasks(source, mine).items():
            pass_ = Pass(task, as_read, str(folder), work.readers, scenarios, source.name, width)
            results[pass_.name] = run_pass(pass_, shards, words)
    return results


def _width_before(config: Config, revision: str) -> int:
    """Width of the LLM's vectors in the newest version that one of this revision read; 0 if there is none."""
    for manifest in readable_manifests(config):
        if revision in manifest.inputs.get("revision", "").split(number_format.JOINT):
            return int(manifest.info.get("scenario_width", 0))
    return 0


def _tasks(source: Source, shards: list[Shard]) -> dict[Task, list[Shard]]:
    """What a source does, in order, and with which of its shards."""
    e, tasks = source.extract, dict[Task, list[Shard]]()
    if source.name == "llm" and e.pooling == "answer":
        tasks["answers"] = shards
    elif source.name == "llm" and e.answers != "none":
        told = [kind for kind in source.kinds if kind == "scenarios" or (e.answers == "all" and kind != KIND)]
        tasks["answers"] = [shard for shard in shards if shard.kind in told]
    return tasks | {"vectors": shards}


def _next_version(folder: UPath) -> int:
    others = [v for v in folder.parent.iterdir() if v.name != folder.name] if folder.parent.exists() else []
    return 1 + max(map(version_number, others), default=0)


def _seal(
    folder: UPath, work: Work, written: dict[str, FileRecord]
) -> tuple[dict[str, FileRecord], list[dict[str, Any]]]:
    """Index all rows; gives back the version's files, and what `work_list.seal_bucket` says of each index file."""
    names = defaultdict(list)
    for shard in work.shards:
        names[shard.todo].append(shard.name)
    checksums = {name.partition("/")[2]: part.digest for name, part in written.items()}
    jobs = []
    for bucket in work.buckets:
        shards = names[bucket.file]
        jobs.append(bucket._asdict() | {"shards": shards, "checksums": [checksums.get(name, "") for name in shards]})
    sealed = list(ray_session.run_each(work_list.seal_bucket, jobs, few=work_list.FEW, folder_uri=str(folder)))
    files: dict[str, FileRecord] = {part["file"]: FileRecord.model_validate(part) for part in sealed}
    for name in sorted({name for part in sealed for name in part["own"]}):
        files[name] = written.get(name) or storage.record_file(folder / name)
    return files, sealed


def _width(groups: list[RowGroup]) -> int:
    return int(read_rows(groups[0], ["vector"])["vector"].type.list_size)


def require_machines(config: Config) -> None:
    """Refuse a config whose engines can never run here, before any work.

    Raises:
        ConfigError: names the key, what is there, and what to do.
    """
    e = config.extract
    if all(source.name == "words" for source in sources(e)):
        return
    gpus = e.tensor_parallel if e.device == "gpu" else 0
    ray_session.require_resources(f"extract.device = '{e.device}'", {"CPU": 1, "GPU": gpus})
