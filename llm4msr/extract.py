"""Prompts -> knowledge: Ray Data reads and renders shards of users, a pool of engine actors asks the frozen LLM.

The unit of work is a shard of `rows_per_shard` users. A shard's file appears in one piece when the shard is
finished, so a run that was interrupted, in whatever way, redoes only the shards in flight.

Two passes over the same shards, since an engine either writes or pools: `answers` (the scenarios' texts, on
request the users' too), then `vectors`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from upath import UPath

from llm4msr import prompts, session, storage
from llm4msr.ask import NOTHING_LIKED, AskLLM, Counts
from llm4msr.config import Config
from llm4msr.engines import Task, models
from llm4msr.errors import ConfigError, StorageError, TooManyFailedError
from llm4msr.pool_users import pool_users
from llm4msr.prepare import prepared
from llm4msr.progress import say, track
from llm4msr.render import items_to_read, render_shard, shard_name, shards
from llm4msr.storage import Built, StageOutput

VERSION = 1


def extract(config: Config) -> StageOutput:
    """Publish one knowledge row (vector, text, fingerprint) for each user and scenario.

    Raises:
        ConfigError: nothing is prepared yet, or a template is wrong.
        StorageError: the model cannot be found, or changed since this output was made.
        TooManyFailedError: more rows failed than `extract.max_failed_fraction`; finished shards are kept.
    """
    data = prepared(config)
    folder = _folder(config, data)
    revision = models.revision(models.resolve(config.extract.model))
    inputs = {"prepare": data.manifest.fingerprint, "model": config.extract.model, "revision": revision}
    settings = config.model_dump(include={"extract"})
    with session.own_errors():
        out = storage.publish(
            folder,
            "extract",
            config.seed,
            settings,
            inputs,
            lambda f: _build(config, data, f, revision),
            resumable=True,
        )
    done = out.manifest
    if done.failed - done.info.get("users_without_likes", 0) > config.extract.max_failed_fraction * done.rows:
        raise TooManyFailedError(
            f"{folder}: {done.failed} of {done.rows} rows had failed when this was made, which is more than "
            "max_failed_fraction allows now; delete that folder to ask again"
        )
    if done.inputs["revision"] != revision:
        raise StorageError(
            f"{folder}: made with revision {done.inputs['revision']} of {config.extract.model}, "
            f"which is {revision} now; delete that folder, or choose another storage"
        )
    return out


def extracted(config: Config) -> StageOutput:
    """The finished output of `extract` for this config.

    Raises:
        ConfigError: there is none yet.
    """
    folder = _folder(config, prepared(config))
    found = storage.open_output(folder)
    if found is None:
        raise ConfigError(f"{folder}: no finished extraction for this config; run `llm4msr extract` first")
    return found


def reader(config: Config, revision: str) -> str:
    """Who reads a prompt, and how: with the prompt it decides the vector. The engine is left out on purpose."""
    e = config.extract
    answer = f" answer={e.answer_tokens}" if e.pooling == "answer" else ""
    return f"{revision} {e.pooling} {e.dtype}{answer}"


def _folder(config: Config, data: StageOutput) -> UPath:
    """Named by what decides the content: the prepared histories themselves, not when they were prepared."""
    same_for = {"engine", "actors", "max_failed_fraction", "user_template", "scenario_template", "item_template"}
    e = config.extract
    names, templates = ["histories", "scenarios"], {"user": e.user_template, "scenario": e.scenario_template}
    if e.reads == "items":
        names, templates = ["seen", "items", "scenarios"], {"item": e.item_template, "scenario": e.scenario_template}
    else:
        same_for |= {"reads", "item_vectors", "pool_dim"}
    content = [data.manifest.files[f"{name}.parquet"].digest for name in names]
    texts = [prompts.template(kind, uri).template for kind, uri in templates.items()]
    wanted = [VERSION, e.model_dump(exclude=same_for), texts, content]
    return storage.path(config.root) / "extract" / storage.digest_of(wanted)[:12]


def _build(config: Config, data: StageOutput, folder: UPath, revision: str) -> Built:
    items = items_to_read(storage.read_table(data.folder / "items.parquet", ["f:item_id"]))
    todo = shards(config, data.manifest.info["histories"], items)
    e = config.extract
    everyone = e.answers == "all" or e.pooling == "answer"
    passes: list[tuple[Task, list[dict[str, Any]]]] = [("vectors", todo)]
    if everyone or e.answers == "scenarios":
        passes.insert(0, ("answers", todo if everyone else todo[:1]))
    done: dict[str, Counts] = {}
    total: dict[str, Counts] = {}
    skipped = 0
    for task, wanted in passes:
        done, skipped = _run(task, wanted, config, data, folder, reader(config, revision))
        total[task] = Counts(*map(sum, zip(*done.values(), strict=True)))
    rows, failed, empty = total["vectors"]
    _refuse_failures(config, folder, done, total["vectors"])
    files = {f"vectors/{name}": counts.rows for name, counts in done.items()}
    width = _width(folder / "vectors" / shard_name(todo[0]))
    info = {
        "width": width,
        "scenario_width": width,
        "users": rows - done[shard_name(todo[0])].rows,
        "users_without_likes": empty,
        "shards": len(files),
    }
    if e.reads == "items":
        pooled = pool_users(config, data, folder, items)
        files |= pooled
        info |= {"users": sum(pooled.values()), "items": info["users"], "width": _width(folder / min(pooled))}
    if "answers" in total:
        info["answers_failed"] = total["answers"].failed - total["answers"].empty
    return Built(files=files, rows=rows, failed=failed, skipped=skipped, info=info)


def _width(shard: UPath) -> int:
    with storage.open_parquet(shard) as parquet:
        return int(parquet.schema_arrow.field("vector").type.list_size)


def _run(
    task: Task, wanted: list[dict[str, Any]], config: Config, data: StageOutput, folder: UPath, reads: str
) -> tuple[dict[str, Counts], int]:
    """File -> counts of every wanted shard, and how many rows an earlier run had finished."""
    done = _finished(folder / task, reads)
    left = [shard for shard in wanted if shard_name(shard) not in done]
    skipped = sum(counts.rows for counts in done.values())
    if left:
        total = sum(_rows(s, data) for s in wanted)
        if skipped:
            say(f"  {task}: {skipped} of {total} rows were finished before")
        with track(task, total, skipped) as progress:
            for result in _stream(task, left, config, data, folder, reads):
                name, counts = result.pop("file"), Counts(**result)
                done[name] = counts
                bad = counts.failed - counts.empty
                progress.advance(counts.rows, f"({bad} failed)" if bad else "")
    return done, skipped


def _stream(
    task: Task, left: list[dict[str, Any]], config: Config, data: StageOutput, folder: UPath, reads: str
) -> Iterator[dict[str, Any]]:
    """The Ray Data pipeline: shards -> rendered prompts -> engine actors; yields a summary per finished shard."""
    import ray

    session.connect()
    resources = ray.cluster_resources()
    actors = min(config.extract.actors, len(left))
    cpus = max(1, int(min(resources["CPU"], max(n["Resources"].get("CPU", 0) for n in ray.nodes())) // actors))
    session.tell_if_busy(cpus * actors)
    rendered = ray.data.from_items(left, override_num_blocks=len(left)).map_batches(
        render_shard,
        fn_args=(config, str(data.folder), reads),
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=0,  # light work, and the engine's actors may hold every CPU
        compute=ray.data.TaskPoolStrategy(size=actors),
    )
    summaries = rendered.map_batches(
        AskLLM,
        fn_constructor_args=(config, task, str(folder), reads),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=cpus,
        num_gpus=1 if resources.get("GPU") else 0,
    )
    for batch in summaries.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield from batch.to_pylist()


def _finished(folder: UPath, reads: str) -> dict[str, Counts]:
    """Shard files of an earlier run that asked the same LLM in the same way and have no row to retry."""
    done: dict[str, Counts] = {}
    for file in sorted(folder.glob("*.parquet")) if folder.exists() else []:
        with storage.open_parquet(file) as parquet:
            same = (parquet.schema_arrow.metadata or {}).get(b"reader", b"").decode() == reads
            counts = Counts.of(parquet.read(["error"])["error"].to_pylist())
        if same and counts.failed == counts.empty:
            done[file.name] = counts
    return done


def _refuse_failures(config: Config, folder: UPath, done: dict[str, Counts], total: Counts) -> None:
    allowed, failed = config.extract.max_failed_fraction, total.failed - total.empty
    if failed <= allowed * total.rows:
        return
    bad = min(name for name, counts in done.items() if counts.failed > counts.empty)
    table = storage.read_table(folder / "vectors" / bad, ["raw_id", "error"]).to_pylist()
    first = next(row for row in table if row["error"] not in ("", NOTHING_LIKED))
    raise TooManyFailedError(
        f"{folder}: {failed} of {total.rows} rows failed, allowed is {allowed:g} of them; first: "
        f"'{first['raw_id']}' in {bad}: {first['error']}. Good shards are kept; run again to retry the others"
    )


def _rows(shard: Mapping[str, Any], data: StageOutput) -> int:
    return data.manifest.info["scenarios"] - 1 if shard["kind"] == "scenarios" else shard["stop"] - shard["start"]
