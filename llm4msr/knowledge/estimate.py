"""What an extraction would read and cost, before anything is asked: prompts, tokens, hours and money."""

import math
import os
import time

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm4msr import storage
from llm4msr.arrays import strings
from llm4msr.config import Config
from llm4msr.data import partitions
from llm4msr.data.prepare import PromptData
from llm4msr.knowledge import index, versions
from llm4msr.knowledge.actor_pool import rows_per_shard
from llm4msr.knowledge.buckets import Bucket
from llm4msr.knowledge.engines import PromptTokenizer, engine_name, models, open_tokenizer, soundness
from llm4msr.knowledge.prompts import templates
from llm4msr.knowledge.prompts.render import item_prompts, items_to_read, user_prompts
from llm4msr.knowledge.reader import Reader

CHARACTERS_PER_TOKEN = 4.0
"""Where the model's tokenizer is not on this machine."""
SAMPLE = 2000
"""Prompts that are tokenised at most; the others are taken to be like them."""
EFFICIENCY = 0.5
"""Share of this machine's matrix rate that an engine reaches, and seconds to start it: measured with the quickstart."""
START_SECONDS = 40.0


def estimate(config: Config, data: PromptData, finished: bool) -> dict[str, object]:
    """Prompts, tokens and hours of an extraction as JSON; `finished` says that it is done already."""
    tables, fields = data.tables, data.item_fields
    reads_items = config.extract.reads == "items"
    items = items_to_read(tables["items"]) if config.extract.item_vectors != "random" else 0
    count = items if reads_items else min(data.users, config.extract.max_users or data.users)
    rows = tables["items"].slice(1) if reads_items else tables["histories"]
    there = count if reads_items else round(count * len(rows) / max(data.users, 1))  # the most active ones come first
    sample = rows.take(np.linspace(0, there - 1, SAMPLE).astype(int)) if there > SAMPLE else rows.slice(0, there)
    rendered = item_prompts(sample, fields, config) if reads_items else user_prompts(sample, config)
    prompts = rendered.filter(pc.not_equal(rendered["prompt"], pa.scalar("")))
    lengths, shared, exact = _count_tokens(config, strings(prompts["prompt"]))
    per_prompt, size = sum(lengths) / max(len(lengths), 1), rows_per_shard(config)
    cached = shared if engine_name(config.extract) == "vllm" else 0
    known = 1 if finished else _known_share(config, prompts, "items" if reads_items else "users", count)
    left = round(count * (1 - known))
    numbers: dict[str, object] = {
        "engine": engine_name(config.extract),
        "model": config.extract.model,
        "prompts": count + tables["scenarios"].num_rows - 1,
        "left": left,
        "shards": sum(math.ceil(rows / size) for rows in (count, tables["scenarios"].num_rows - 1)),
        "tokens": round(per_prompt * count),
        "tokens_p50": int(np.percentile(lengths or [0], 50)),
        "tokens_p99": int(np.percentile(lengths or [0], 99)),
        "tokens_shared": cached,
        "cached_share": round(cached / max(per_prompt, 1), 3),
        "tokens_are": "counted" if exact else "estimated, since the model is not on this machine yet",
    }
    if finished:
        return numbers | {"estimate": "finished already: nothing to do"}
    return numbers | cost(config, left, max(per_prompt - cached, 1))


def _count_tokens(config: Config, texts: list[str]) -> tuple[list[int], int, bool]:
    """Tokens of each prompt, how many all prompts have in common at their beginning, and whether they were counted."""
    folder = models.find_local(config.extract.model)
    if folder is None:
        shared = len(os.path.commonprefix(texts))
        return [round(len(text) / CHARACTERS_PER_TOKEN) for text in texts], round(shared / CHARACTERS_PER_TOKEN), False
    tokenizer = PromptTokenizer(folder, max_tokens=1 << 30)
    tokens = tokenizer.encode_batch(texts, [""] * len(texts))
    return [len(ids) for ids in tokens], len(os.path.commonprefix(tokens)), True


def _known_share(config: Config, prompts: pa.Table, kind: str, count: int) -> float:
    """The share of these prompts, a sample of `count`, that earlier versions below this storage have read already."""
    model = models.find_local(config.extract.model)
    root = versions.root(config)
    if model is None or not root.exists() or not len(prompts):
        return 0.0
    names = storage.files_below(root)
    reader = Reader.of(config, models.revision(model), open_tokenizer(config.extract).frame)
    raw_ids = strings(prompts["raw_id"])
    fingerprints = [templates.fingerprint(text, reader.reads) for text in strings(prompts["prompt"])]
    hash_N = partitions.hash_ids(raw_ids)
    keys = index.row_keys(raw_ids, fingerprints, reader.writes[kind])
    bucket = Bucket(kind, 0, 1 << max(0, (count >> 20).bit_length() - 1))  # of a large store some million rows
    rows = pa.Table.from_pydict({"id": prompts["id"], "hash": pa.array(hash_N), "key": keys})
    rows = rows.filter(pa.array(bucket.holds(hash_N)))
    held = versions.Earlier(versions.index_files(root, names).values(), names).of(bucket)
    return len(index.match(rows, held.indexes, pa.array(held.shards, pa.string()))) / max(len(rows), 1)


def cost(config: Config, prompts_left: int, fresh_per_prompt: float) -> dict[str, object]:
    """Hours, and money where its rate is stated, of the prompts left and of a million users and more.

    `fresh_per_prompt` are the tokens of a prompt that no cache holds. Answers are not counted. As JSON.
    """
    e = config.extract
    rate, source = _rate(config)
    if not rate:
        return {"estimate": source}
    actors = 1 if e.actors == "auto" else e.actors

    def forecast(count: int) -> dict[str, float]:
        hours = (count * fresh_per_prompt / rate / actors + START_SECONDS * bool(count)) / 3600
        money = {"cost": round(hours * actors * e.actor_cost_per_hour, 2)} if e.actor_cost_per_hour else {}
        return {"fresh_tokens": round(count * fresh_per_prompt), "hours": float(f"{hours:.3g}"), **money}

    now = forecast(prompts_left)
    return {
        "actors": actors,
        "tokens_per_second": round(rate),
        "rate_is": source,
        **now,
        "estimate": f"about {now['hours'] * 60:.0f} min, {source}, with {actors} actor(s), answers not counted",
        "at_scale": {name: forecast(count) for name, count in (("1e6", 10**6), ("1e8", 10**8), ("1e9", 10**9))},
    }


def _rate(config: Config) -> tuple[float, str]:
    """Tokens per second of one actor, 0 if unknown; and where the number is from."""
    e = config.extract
    if e.tokens_per_second:
        return e.tokens_per_second, "as extract.tokens_per_second states"
    for version in versions.finished_versions(config):
        manifest = version.manifest
        spent = manifest.info.get("spent", {}).get("vectors", {})
        if manifest.inputs.get("model") == e.model and spent.get("seconds"):
            return (spent["tokens"] - spent["cached"]) / spent["seconds"], f"as version {manifest.fingerprint} measured"
    folder = models.find_local(e.model)
    weights = soundness.parameters(folder) if folder else models.ALIAS_PARAMETERS * (e.model == models.ALIAS)
    if not weights:
        return 0.0, "unknown until the model is on this machine"
    return EFFICIENCY * _matrix_rate() / 2.0 / weights, f"on this machine's CPU ({weights / 1e6:.0f}M weights)"


def _matrix_rate() -> float:
    """Floating-point operations per second of a float32 matrix product on all cores, measured for 0.3 s."""
    import torch

    a = torch.randn(1024, 1024)
    a @ a
    begun, times = time.perf_counter(), 0
    while time.perf_counter() - begun < 0.3:
        a @ a
        times += 1
    return float(times * 2 * 1024**3 / (time.perf_counter() - begun))
