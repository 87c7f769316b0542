"""What a run would do, before it does anything: stages, prompts, tokens and an estimate of time."""

import math
import os
import time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm4msr import storage
from llm4msr.config import Config
from llm4msr.data.prepare import PromptData
from llm4msr.knowledge import index, versions
from llm4msr.knowledge.engines import PromptTokenizer, engine_name, models, open_tokenizer, soundness
from llm4msr.knowledge.index import Bucket
from llm4msr.knowledge.prompts import templates
from llm4msr.knowledge.prompts.render import item_prompts, items_to_read, user_prompts, users_to_read
from llm4msr.knowledge.reader import Reader
from llm4msr.storage import Manifest

CHARACTERS_PER_TOKEN = 4.0
SAMPLE = 2000
"""Prompts that are tokenised; the rest is estimated from them."""
EFFICIENCY = 0.5
"""Share of this machine's matrix rate that an engine reaches, and seconds to start it: measured with the quickstart."""
START_SECONDS = 40.0


def estimate(config: Config, data: PromptData, finished: bool) -> dict[str, Any]:
    """Prompts, tokens and hours of an extraction; `finished` says that it is done already."""
    tables, fields, _ = data
    of_items = config.extract.reads == "items"
    items = items_to_read(tables["items"]) if config.extract.item_vectors == "llm" else 0
    count = items if of_items else users_to_read(config, tables["histories"].num_rows)
    read = tables["items"].slice(1) if of_items else tables["histories"]
    chosen = read.take(np.linspace(0, count - 1, SAMPLE).astype(int)) if count > SAMPLE else read.slice(0, count)
    rendered = item_prompts(chosen, fields, config) if of_items else user_prompts(chosen, config)
    asked = rendered.filter(pc.not_equal(rendered["prompt"], ""))
    lengths, shared, exact = _tokens(config, asked["prompt"].to_pylist())
    per_prompt, size = sum(lengths) / max(len(lengths), 1), config.extract.rows_per_shard
    of_cache = shared if engine_name(config.extract) == "vllm" else 0
    left = 0 if finished else round(count * (1 - _known_share(config, asked, "items" if of_items else "users", count)))
    found = {
        "engine": engine_name(config.extract),
        "model": config.extract.model,
        "prompts": count + tables["scenarios"].num_rows - 1,
        "left": left,
        "shards": sum(math.ceil(rows / size) for rows in (count, tables["scenarios"].num_rows - 1)),
        "tokens": round(per_prompt * count),
        "tokens_p50": int(np.percentile(lengths or [0], 50)),
        "tokens_p99": int(np.percentile(lengths or [0], 99)),
        "tokens_shared": of_cache,
        "cached_share": round(of_cache / max(per_prompt, 1), 3),
        "tokens_are": "counted" if exact else "estimated, since the model is not on this machine yet",
    }
    if finished:
        return found | {"estimate": "finished already: nothing to do"}
    return found | cost(config, left, max(per_prompt - of_cache, 1))


def _tokens(config: Config, texts: list[str]) -> tuple[list[int], int, bool]:
    """Tokens of each prompt, how many of them all prompts begin with, and whether they were counted."""
    folder = models.find_local(config.extract.model)
    if folder is None:
        prefix = len(os.path.commonprefix(texts))
        return (
            [round(len(p) / CHARACTERS_PER_TOKEN) for p in texts],
            round(prefix / CHARACTERS_PER_TOKEN),
            False,
        )
    tokenizer = PromptTokenizer(folder, max_tokens=1 << 30)
    tokens = tokenizer.encode_batch(texts, [""] * len(texts))
    return [len(ids) for ids in tokens], len(os.path.commonprefix(tokens)), True


def _known_share(config: Config, prompts_: pa.Table, kind: str, count: int) -> float:
    """Which share of these prompts, a sample of `count`, an earlier version below this storage has read already."""
    model = models.find_local(config.extract.model)
    root = storage.path(config.root) / "extract"
    if model is None or not root.exists() or not len(prompts_):
        return 0.0
    names = storage.files_below(root)
    reader = Reader.of(config, models.revision(model), open_tokenizer(config.extract).frame)
    raw_ids, texts = prompts_["raw_id"].to_pylist(), prompts_["prompt"].to_pylist()
    fingerprints = [templates.fingerprint(text, reader.reads) for text in texts]
    columns = {
        "hash": pa.array(index.hash_ids(raw_ids)),
        "key": index.row_keys(raw_ids, fingerprints, reader.writes[kind]),
    }
    rows = pa.table({"id": prompts_["id"], **columns})
    wide = max(1, index.bucket_count(count) // 16)  # a part of a large store is enough
    rows = rows.filter(pa.array(Bucket(kind, 0, wide).holds(rows["hash"].to_numpy())))
    bases = versions.index_files(root, names).values()
    return len(index.match(rows, Bucket(kind, 0, wide), bases, versions.shards(names))) / max(len(rows), 1)


def cost(config: Config, prompts_left: int, fresh_per_prompt: float) -> dict[str, Any]:
    """Hours, and money where its rate is stated, of the prompts left and of a million users and more.

    `fresh_per_prompt` are the tokens of a prompt that no cache holds. Answers are not counted.
    """
    e = config.extract
    rate, source = _rate(config)
    if not rate:
        return {"estimate": source}
    actors = 1 if e.actors == "auto" else e.actors

    def of(count: int) -> dict[str, Any]:
        hours = (count * fresh_per_prompt / rate / actors + START_SECONDS * bool(count)) / 3600
        money = {"cost": round(hours * actors * e.actor_cost_per_hour, 2)} if e.actor_cost_per_hour else {}
        return {"fresh_tokens": round(count * fresh_per_prompt), "hours": float(f"{hours:.3g}"), **money}

    now = of(prompts_left)
    found = {"actors": actors, "tokens_per_second": round(rate), "rate_is": source, **now}
    found["estimate"] = f"about {now['hours'] * 60:.0f} min, {source}, with {actors} actor(s), answers not counted"
    return found | {"at_scale": {f"{count:.0e}".replace("+0", ""): of(count) for count in (10**6, 10**8, 10**9)}}


def _rate(config: Config) -> tuple[float, str]:
    """Tokens per second of one actor, 0 if unknown; and how that is known."""
    e = config.extract
    if e.tokens_per_second:
        return e.tokens_per_second, "as extract.tokens_per_second states"
    for manifest in _manifests(config):
        spent = manifest.info.get("spent", {}).get("vectors", {})
        if manifest.inputs.get("model") == e.model and spent.get("seconds"):
            return (spent["tokens"] - spent["cached"]) / spent["seconds"], f"as version {manifest.fingerprint} measured"
    folder = models.find_local(e.model)
    weights = soundness.parameters(folder) if folder else models.ALIAS_PARAMETERS * (e.model == models.ALIAS)
    if not weights:
        return 0.0, "unknown until the model is on this machine"
    return EFFICIENCY * _matrix_rate() / 2.0 / weights, f"on this machine's CPU ({weights / 1e6:.0f}M weights)"


def _manifests(config: Config) -> list[Manifest]:
    """Of the finished extractions below this storage, the newest first."""
    root = storage.path(config.root) / "extract"
    outputs = [storage.open_output(folder) for folder in root.iterdir()] if root.exists() else []
    found = [output.manifest for output in outputs if output]
    return sorted(found, key=lambda m: int(m.info.get("version", 0)), reverse=True)


def _matrix_rate() -> float:
    """Floating-point operations per second of a float32 matrix product on all cores, measured for a moment."""
    import torch

    a = torch.randn(1024, 1024)
    a @ a
    begun, times = time.perf_counter(), 0
    while time.perf_counter() - begun < 0.3:
        a @ a
        times += 1
    return float(times * 2 * 1024**3 / (time.perf_counter() - begun))
