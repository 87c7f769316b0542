"""Prompts -> knowledge: what earlier versions lack is rendered, a pool of engine actors reader the frozen LLM about it.

The unit of work is a shard of `rows_per_shard` rows. A shard's file appears in one piece when the shard is
finished, so a run that was interrupted, in whatever way, redoes only the shards in flight.

Two passes over the same shards, since an engine either writes or pools: `answers` (the scenarios' texts, on
request the users' too), then `vectors`. Last, an index is written of all rows, new ones and those of earlier versions.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from upath import UPath

from llm4msr import ray_session, storage
from llm4msr.config import Config
from llm4msr.errors import ConfigError, StorageError
from llm4msr.knowledge import drift, index, work_list
from llm4msr.knowledge.actor import PLACE, AskLLM, Counts
from llm4msr.knowledge.engines import Task, models, open_tokenizer, soundness
from llm4msr.knowledge.failures import refuse_failed_rows, refuse_failures, total
from llm4msr.knowledge.forget import forgotten
from llm4msr.knowledge.prompts import templates
from llm4msr.knowledge.prompts.render import items_to_read
from llm4msr.knowledge.reader import Reader
from llm4msr.knowledge.user_pooling import pool_users
from llm4msr.knowledge.work_list import Shard, Work
from llm4msr.progress import say, track
from llm4msr.storage import FileRecord, StageOutput, StageResult

VERSION = 3

Spent = Counter[str]
SPENT = ("tokens", "cached", "seconds", "cpu_seconds", "with_interests")
"""Prompt tokens, those of them from the prefix cache, seconds of the actors and of their cores, and users' answers that
hold interests."""


@ray_session.unwrap_errors
def extract(config: Config, data: StageOutput) -> StageOutput:
    """Publish one knowledge row (vector, text, fingerprint) for each user and scenario.

    Raises:
        ConfigError: a template is wrong, or prompts may be longer than the model can read.
        StorageError: the model cannot be found or loaded, or changed since this output was made; nobody in the list of
            users to forget is known.
        TooManyFailedError: more rows of a kind failed than `extract.max_failed_fraction`; finished shards are kept.
    """
    at = folder(config, data)
    place = models.resolve(config.extract.model)
    revision = models.revision(place)
    name = models.pinned(config.extract.model, place)
    inputs = {"prepare": data.manifest.fingerprint, "model": config.extract.model, "revision": revision}
    inputs |= {"pinned": name} if name != config.extract.model else {}
    settings = config.model_dump(include={"extract"})

    def build(folder: UPath) -> StageResult:
        exact = config.model_copy(update={"extract": config.extract.model_copy(update={"model": name})})
        soundness.check_model(place)
        soundness.check_positions(config.extract, place)
        return _build(exact, data, folder, Reader.of(config, revision, open_tokenizer(exact.extract).frame))

    _withdraw_if_of_another_model(at, revision, config.extract.model)
    out = storage.publish(at, "extract", config.seed, settings, inputs, build, resumable=True)
    storage.remove(at / "work")
    refuse_failed_rows(config, out)
    check_same_model(config, out, revision)
    return out


def _withdraw_if_of_another_model(folder: UPath, revision: str, model: str) -> None:
    """What a model made whose content has changed since is asked again; its shards stay for versions that name them."""
    made = storage.open_output(folder)
    if made is not None and made.manifest.inputs["revision"] != revision:
        say(f"  {model} is another one than when {folder} was made: all rows are asked again")
        storage.remove(folder / storage.MANIFEST)


def check_same_model(config: Config, out: StageOutput, revision: str = "") -> str:
    """The revision of the config's model, which is the one that an extraction is made with.

    Raises:
        StorageError: it is another one, or the model cannot be found.
    """
    now = revision or models.revision(models.resolve(config.extract.model))
    if (made := out.manifest.inputs["revision"]) != now:
        raise StorageError(
            f"{out.folder}: made with revision {made} of {config.extract.model}, "
            f"which is {now} now; delete that folder, or choose another storage"
        )
    return now


def folder(config: Config, data: StageOutput) -> UPath:
    """Where this config's knowledge lies, or will: named by the prepared histories, not by when they came."""
    e = config.extract
    names, uris = ["histories", "scenarios"], {"user": e.user_template, "scenario": e.scenario_template}
    if e.reads == "items":
        names, uris = ["seen", "items", "scenarios"], {"item": e.item_template, "scenario": e.scenario_template}
    content = [data.manifest.files[f"{name}.parquet"].digest for name in names]
    texts = [templates.template(kind, uri).template for kind, uri in uris.items()]
    wanted = [VERSION, e.identity(), texts, content, *forgotten(config).to_pylist()]
    return storage.path(config.root) / "extract" / storage.digest_json(wanted)[:12]


def _build(config: Config, data: StageOutput, folder: UPath, reader: Reader) -> StageResult:
    work = work_list.work_left(config, data, folder, reader)
    kept = sum(work.kept.values())
    if kept:
        say(f"  {kept} rows are as an earlier version has them, {sum(s.rows for s in work.shards)} are to be asked")
    if work.steady:
        say(f"  {work.steady} scenarios moved by no more than extract.scenario_tolerance and keep their prompts")
    e = config.extract
    everyone = e.answers == "all" or e.pooling == "answer"
    passes: list[tuple[Task, list[Shard]]] = [("vectors", work.shards)]
    if everyone or e.answers == "scenarios":
        passes.insert(0, ("answers", [s for s in work.shards if everyone or s.kind == "scenarios"]))
    done: dict[Task, dict[str, Counts]] = {}
    written: dict[str, FileRecord] = {}
    spent: dict[Task, Spent] = {}
    info: dict[str, Any] = {"version": _next_version(folder)}
    skipped = 0
    scenarios = data.table("scenarios.parquet", ["scenario_id"])["scenario_id"].to_pylist()[1:]
    for task, wanted in passes:
        spent[task] = Counter()
        done[task], written, skipped = _run(task, wanted, config, folder, reader, scenarios, spent[task])
    if "answers" in done:
        info["answers_failed"] = sum(counts.failed - counts.empty for counts in done["answers"].values())
    refuse_failures(config, folder, done, work)
    files, sealed = _seal(folder, work, written)
    files[drift.FILE] = storage.record_file(folder / drift.FILE)
    by_kind = {kind: total(one for one in sealed if one["kind"] == kind) for kind in reader.writes}
    rows = {kind: total["rows"] for kind, total in by_kind.items()}
    width = _width(index.parts(folder, files, "scenarios"))
    info |= {"width": width, "scenario_width": width, "users": rows["users"], "kept": kept}
    info |= {"shards": len(done["vectors"]), "by_kind": by_kind}
    info |= {"users_without_likes": sum(one["empty"] for one in sealed)}
    info |= {"spent": {task: dict(some) for task, some in spent.items()}}  # by the actors together, in this run
    if e.forget:
        info |= {"forgotten": work.forgotten, "forget": len(forgotten(config))}
    if e.reads == "items":
        items = items_to_read(data.table("items.parquet", ["f:item_id"]))
        pooled = pool_users(config, data, folder, items, index.parts(folder, files, "items"))
        files |= pooled
        info |= {
            "users": sum(part.rows for name, part in pooled.items() if "/users-" in name),
            "items": rows["items"],
            "width": _width(index.parts(folder, pooled, "users")),
        }
    failed = sum(one["empty"] + one["failed"] for one in sealed)
    return StageResult(files=files, rows=sum(rows.values()), failed=failed, skipped=skipped + kept, info=info)


def _next_version(folder: UPath) -> int:
    others = [v for v in folder.parent.iterdir() if v.name != folder.name] if folder.parent.exists() else []
    return 1 + max(map(work_list.version_number, others), default=0)


def _seal(
    folder: UPath, work: Work, written: dict[str, FileRecord]
) -> tuple[dict[str, FileRecord], list[dict[str, Any]]]:
    """Index all rows; gives back the version's files, and the rows of each index file by state."""
    new = defaultdict(list)
    for shard in work.shards:
        new[shard.todo].append(shard.name)
    noted = {name.partition("/")[2]: part.digest for name, part in written.items()}
    jobs = [
        at._asdict() | {"shards": new[at.file], "checksums": [noted.get(name, "") for name in new[at.file]]}
        for at in work.buckets
    ]
    sealed = list(ray_session.run_each(work_list.seal, jobs, folder_uri=str(folder)))
    files: dict[str, FileRecord] = {one["file"]: FileRecord.model_validate(one) for one in sealed}
    for name in sorted({name for one in sealed for name in one["own"]}):
        files[name] = written.get(name) or storage.record_file(folder / name)
    return files, sealed


def _width(parts: list[str]) -> int:
    return int(index.read(parts[0], ["vector"])["vector"].type.list_size)


def _run(
    task: Task, wanted: list[Shard], config: Config, folder: UPath, reader: Reader, scenarios: list[str], spent: Spent
) -> tuple[dict[str, Counts], dict[str, FileRecord], int]:
    """Counts of every wanted shard, the files that were written now, and the rows that an earlier run had finished."""
    done = _finished(folder / PLACE[task], wanted)
    left = [shard for shard in wanted if shard.name not in done]
    skipped = sum(counts.rows for counts in done.values())
    written: dict[str, FileRecord] = {}
    if left:
        total = sum(shard.rows for shard in wanted)
        if skipped:
            say(f"  {task}: {skipped} of {total} rows were finished before")
        with track(task, total, skipped) as progress:
            for result in _stream(task, left, config, folder, reader, scenarios):
                counts = Counts(result["rows"], result["failed"], result["empty"])
                done[result["file"]] = counts
                written[f"{PLACE[task]}/{result['file']}"] = FileRecord.model_validate(result)
                spent.update({name: result[name] for name in SPENT})
                bad = counts.failed - counts.empty
                progress.advance(counts.rows, f"({bad} failed)" if bad else "")
    return done, written, skipped


def _stream(
    task: Task, left: list[Shard], config: Config, folder: UPath, reader: Reader, scenarios: list[str]
) -> Iterator[dict[str, Any]]:
    """The Ray Data pipeline: names of shards -> engine actors; yields a summary per finished shard."""
    import ray

    ray_session.connect()
    actors, cpus, gpus = _pool(config, [node["Resources"] for node in ray.nodes() if node["Alive"]], len(left))
    ray_session.require_resources(
        f"extract.actors = {config.extract.actors}", {"CPU": cpus * actors, "GPU": gpus * actors}
    )
    ray_session.say_if_busy(cpus * actors)
    items = [shard.model_dump() for shard in left]
    summaries = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        AskLLM,
        fn_constructor_args=(config, task, str(folder), reader, scenarios),
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=cpus,
        num_gpus=gpus,
    )
    for batch in summaries.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield from batch.to_pylist()


def require_machines(config: Config) -> None:
    """Refuse a config whose engines can never run here, before any work.

    Raises:
        ConfigError: names the key, what is there, and what to do.
    """
    e = config.extract
    gpus = e.tensor_parallel if e.device == "gpu" else 0
    ray_session.require_resources(f"extract.device = '{e.device}'", {"CPU": 1, "GPU": gpus})


def _pool(config: Config, nodes: Sequence[Mapping[str, float]], shards: int) -> tuple[int, int, int]:
    """How many actors, and the CPUs and GPUs of each, on nodes with these resources."""
    e = config.extract
    waits = e.device == "gpu"
    gpus = e.tensor_parallel if waits or any(node.get("GPU") for node in nodes) else 0
    hosts = [node for node in nodes if node.get("CPU", 0) >= 1 and node.get("GPU", 0) >= gpus]
    if not hosts and waits:
        if e.actors == "auto":
            raise ConfigError(f"extract.device = 'gpu': none has {gpus} yet; give extract.actors, and they can come")
        return min(e.actors, shards), 1, gpus  # Ray reader the autoscaler for machines
    if not hosts:
        raise ConfigError(f"extract.tensor_parallel = {gpus}: no machine of this cluster has so many GPUs")
    fit = sum(int(node["GPU"] // gpus) if gpus else 1 for node in hosts)
    actors = min(fit if e.actors == "auto" else e.actors, shards)
    each = -(-actors // len(hosts))  # of the fullest machine
    return actors, max(1, int(min(node["CPU"] for node in hosts) // each)), gpus


def _finished(folder: UPath, wanted: Sequence[Shard]) -> dict[str, Counts]:
    """Shards that are there and have no row to retry; a name tells the rows, and how they were read."""
    there = storage.files_below(folder)
    done: dict[str, Counts] = {}
    for shard in wanted:
        if shard.name in there:
            try:
                counts = Counts.of(storage.read_table(folder / shard.name, ["error"])["error"].to_pylist())
            except StorageError as error:
                say(f"  {error.args[0].partition(';')[0]}: asked again")
                continue
            if counts.failed == counts.empty:
                done[shard.name] = counts
    return done
