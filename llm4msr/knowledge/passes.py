"""One pass of the LLM over shards: those that are finished are left alone, a pool of actors asks about the others."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from upath import UPath

from llm4msr import ray_session, storage
from llm4msr.arrays import Column, strings
from llm4msr.errors import StorageError
from llm4msr.knowledge.actor import AskLLM
from llm4msr.knowledge.actor_pool import nodes, plan_pool
from llm4msr.knowledge.engines import Task
from llm4msr.knowledge.shards import SHARD_FOLDERS, Counts, Pass
from llm4msr.knowledge.spending import Spent, Tally
from llm4msr.knowledge.words import Words
from llm4msr.knowledge.work import Shard
from llm4msr.knowledge.work_list import read_prompts
from llm4msr.progress import say, track
from llm4msr.storage import FileRecord
from llm4msr.storage.vectors import to_column


class PassResult(NamedTuple):
    """What a pass came to, file names being relative to the version's folder."""

    counts: dict[str, Counts]
    """Of every shard, by its name."""
    written: dict[str, FileRecord]
    """Files that this run wrote."""
    skipped: int
    """Rows that an earlier run had finished."""
    spent: Mapping[str, float]
    """Sums of `Spent` over the actors, in this run."""


def merge(results: Mapping[str, PassResult], task: Task) -> PassResult:
    """All passes of a task as one, by their names: `answers` is one of the LLM's alone, the others give vectors."""
    of_task = [result for name, result in results.items() if (name == "answers") == (task == "answers")]
    counts, written, spent = dict[str, Counts](), dict[str, FileRecord](), Counter[str]()
    for result in of_task:
        counts |= result.counts
        written |= result.written
        spent.update(result.spent)
    return PassResult(counts, written, sum(result.skipped for result in of_task), spent)


SHARDS_AT_ONCE = 3
"""Of an actor: one is tokenised, one is with the LLM, one is written."""


def run_pass(
    pass_: Pass, shards: Sequence[Shard], words: Words | None = None, actor: type[AskLLM] = AskLLM
) -> PassResult:
    """Ask about every row of the shards, or count its `words`; finished shards stay as they are.

    Raises:
        ConfigError: no machine of the cluster fits an engine.
        StorageError: the model cannot be loaded, or is not the one that was planned.
    """
    counts = finished_shards(pass_.shard_folder(), shards)
    left = [shard for shard in shards if shard.name not in counts]
    skipped = sum(finished.rows for finished in counts.values())
    written: dict[str, FileRecord] = {}
    tally = Tally(pass_.config.extract)
    if left:
        total = sum(shard.rows for shard in shards)
        if skipped:
            say(f"  {pass_.name}: {skipped} of {total} rows were finished before")
        with track(pass_.name, total, skipped) as progress:
            summaries = (count_shard(pass_, shard, words) for shard in left) if words else _ask(pass_, left, actor)
            for summary in summaries:
                name = summary["file"]
                counts[name] = Counts(summary["rows"], summary["failed"], summary["empty"])
                written[f"{SHARD_FOLDERS[pass_.task]}/{name}"] = FileRecord.model_validate(summary)
                tally.add(summary)
                progress.advance(summary["rows"], tally.note())
        if timeline := tally.timeline():
            say(f"  {pass_.name}: {timeline}")
    return PassResult(counts, written, skipped, tally.spent)


def _ask(pass_: Pass, shards: Sequence[Shard], actor: type[AskLLM]) -> Iterator[dict[str, Any]]:
    """Names of shards -> engine actors, in Ray Data; yields what `AskLLM` says of each finished shard."""
    import ray

    pool = plan_pool(pass_.config, nodes(), len(shards))
    needed = {"CPU": pool.cpus * pool.actors, "GPU": pool.gpus * pool.actors}
    ray_session.require_resources(f"extract.actors = {pass_.config.extract.actors}", needed)
    ray_session.say_if_busy(needed["CPU"])
    items = [shard.model_dump() for shard in shards]
    summaries = ray.data.from_items(items, override_num_blocks=min(len(items), ray_session.MOST_TASKS)).map_batches(
        actor,
        fn_constructor_args=(pass_,),
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(
            min_size=pool.actors,
            max_size=pool.most,
            max_tasks_in_flight_per_actor=SHARDS_AT_ONCE + 1,  # more would wait for a slow machine with another free
            max_concurrent_calls_per_actor=SHARDS_AT_ONCE,
            enable_true_multi_threading=True,
        ),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
    )
    for batch in summaries.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield from batch.to_pylist()


def count_shard(pass_: Pass, shard: Shard, words: Words) -> dict[str, Any]:
    """Write the vectors of a shard by its words; gives back what `AskLLM` does. It takes milliseconds."""
    rows = read_prompts(pa.Table.from_pylist([shard.model_dump()]), pass_.folder_uri)
    errors, vectors_ND = strings(rows["error"]), words.vectors(strings(rows["prompt"])).astype(np.float16)
    if shard.kind == "scenarios":
        vectors_ND = vectors_ND[:, : pass_.config.extract.pool_dim]  # a projection is of items alone
    columns: dict[str, Column] = {field: rows[field] for field in ("id", "raw_id", "fingerprint", "prompt", "error")}
    columns |= {"answer": pa.array([""] * len(rows), pa.string()), "tokens": pa.array(np.zeros(len(rows), np.int64))}
    columns["vector"] = to_column(vectors_ND)
    record = pass_.write(shard.name, pa.Table.from_pydict(columns))
    return {"file": shard.name} | record.model_dump() | Counts.of(errors)._asdict() | Spent()._asdict()


def finished_shards(folder: UPath, shards: Sequence[Shard]) -> dict[str, Counts]:
    """Shards in `folder` without a row to retry; a shard's name tells its rows and how they were read."""
    files = storage.files_below(folder)
    finished: dict[str, Counts] = {}
    for shard in shards:
        if shard.name in files:
            try:
                counts = Counts.of(strings(storage.read_table(folder / shard.name, ["error"])["error"]))
            except StorageError as error:
                say(f"  {error.args[0].partition(';')[0]}: asked again")
                continue
            if counts.failed == counts.empty:
                finished[shard.name] = counts
    return finished
