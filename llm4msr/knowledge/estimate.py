"""What an extraction would read and cost, before anything is asked: prompts, tokens, hours and money."""

import math
import os
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm4msr import storage
from llm4msr.arrays import strings
from llm4msr.config import Config, ExtractConfig
from llm4msr.data import partitions
from llm4msr.data.prepare import PromptData
from llm4msr.knowledge import index, number_format, snapshots, versions
from llm4msr.knowledge.actor_pool import rows_per_shard
from llm4msr.knowledge.buckets import Bucket
from llm4msr.knowledge.engines import PromptTokenizer, engine_name, models, open_tokenizer, soundness
from llm4msr.knowledge.engines.letters import CHARACTERS_PER_TOKEN
from llm4msr.knowledge.prompts import templates
from llm4msr.knowledge.prompts.render import item_rows, items_to_read, user_prompts
from llm4msr.knowledge.reader import Reader
from llm4msr.knowledge.snapshots import KIND, Snapshots
from llm4msr.knowledge.sources import Source, sources

SAMPLE = 2000
"""Prompts that are tokenised at most; the others are taken to be like them."""
EFFICIENCY = 0.5
"""Share of this machine's matrix rate that an engine reaches, and seconds to start it: measured with the quickstart."""
START_SECONDS = 40.0
LESS = "; for a first look the LLM can read less, or nothing: docs/choosing.md"
LONG_HOURS = 0.25
"""From which on the plan says so."""
WORDS_ESTIMATE = "no LLM and no cost: words are counted, some thousand items a second"


def estimate(config: Config, data: PromptData, finished: bool) -> dict[str, object]:
    """Prompts, tokens and hours of an extraction as JSON; `finished` says that it is done already.

    What the first source of vectors reads, and as `beside` what each of the others does.
    """
    read = [source.extract.model for source in sources(config.extract) if source.is_local]
    local = [folder for model in read if (folder := models.find_local(model))]
    as_read = number_format.in_format(config, number_format.expected(config, [*map(models.revision, local)]))
    first, *others = (_estimate(as_read, data, source, finished) for source in sources(as_read.extract))
    return first | ({"beside": others} if others else {})


def _estimate(config: Config, data: PromptData, source: Source, finished: bool) -> dict[str, object]:
    """The same of one source."""
    tables, as_read = data.tables, config.model_copy(update={"extract": source.extract})
    scenarios = (tables["scenarios"].num_rows - 1) * ("scenarios" in source.kinds)
    if source.name == "words":
        return {
            "engine": "none",
            "model": source.model,
            "prompts": _rows(config, data, source.kinds[0]) + scenarios,
            "tokens": 0,
            "estimate": "finished already: nothing to do" if finished else WORDS_ESTIMATE,
        }
    kinds = [kind for kind in source.kinds if kind != "scenarios"] or [""]
    counts, own_text = [_rows(config, data, kind) for kind in kinds], source.reads_own_text(kinds[0])
    each = [*zip(kinds, counts, strict=True)]
    samples = [_sampled_prompts(as_read, data, source, kind, count, own_text) for kind, count in each]
    texts = [text for sample in samples for text in strings(sample["prompt"])]
    lengths, shared, exact = _count_tokens(source.extract, texts, own_text)
    parts = np.split(np.array(lengths), np.cumsum([len(sample) for sample in samples])[:-1])
    tokens = sum(count * part.sum() / max(len(part), 1) for count, part in zip(counts, parts, strict=True))
    read = [finished or _known_share(as_read, part, source, *one) for part, one in zip(samples, each, strict=True)]
    left = sum(round(count * (1 - share)) for count, share in zip(counts, read, strict=True))
    per_prompt, size = tokens / max(sum(counts), 1), rows_per_shard(config)
    cached = shared if engine_name(source.extract) == "vllm" and source.extract.pooling != "mean" else 0
    numbers: dict[str, object] = {
        "engine": engine_name(source.extract),
        "model": source.model,
        "prompts": sum(counts) + scenarios,
        "left": left,
        "shards": sum(math.ceil(rows / size) for rows in (*counts, scenarios)),
        "tokens": round(tokens),
        "tokens_p50": int(np.percentile(lengths or [0], 50)),
        "tokens_p99": int(np.percentile(lengths or [0], 99)),
        "tokens_shared": cached,
        "cached_share": round(cached / max(per_prompt, 1), 3),
        "tokens_are": "counted" if exact else f"estimated: {CHARACTERS_PER_TOKEN:g} characters each, {_why(source)}",
    }
    if kinds == ["items"]:
        numbers["tokens_by_pooling"] = _tokens_by_pooling(as_read, data, source, counts[0])
    if finished:
        return numbers | {"estimate": "finished already: nothing to do"}
    if price := source.extract.http_price * (not source.is_local):
        numbers["endpoint_cost"] = round(left * per_prompt * price / 1e6, 2)
        numbers["endpoint_cost_is"] = "of the prompts left, by extract.http_price; answers not counted"
    return numbers | cost(as_read, left, max(per_prompt - cached, 1), sum(counts) / max(counts[0], 1))


def _rows(config: Config, data: PromptData, kind: str) -> int:
    """How many rows of a kind are read; no kind has none."""
    users = min(data.users, config.extract.max_users or data.users)
    if kind == "users":
        return users
    if kind == KIND:
        return round(len(_snapshots(config, data).line_M) * users / max(_users_there(config, data), 1))
    return items_to_read(config, data.tables["items"]) if kind else 0


def _users_there(config: Config, data: PromptData) -> int:
    """How many of the users that are read have their histories here."""
    return round(_rows(config, data, "users") * len(data.tables["histories"]) / max(data.users, 1))


def _snapshots(config: Config, data: PromptData) -> Snapshots:
    """Those of these users."""
    return snapshots.find(data.tables["events"], _users_there(config, data), config.extract.snapshots)


def _tokens_by_pooling(config: Config, data: PromptData, source: Source, items: int) -> dict[str, int]:
    """Tokens of all items as `extract.pooling` has them read: the mean needs no question, so their own text will do."""
    tokens = {}
    for pooling, own_text in (("last", False), ("mean", True)):
        prompts = _sampled_prompts(config, data, source, "items", items, own_text)
        lengths = _count_tokens(config.extract, strings(prompts["prompt"]), own_text)[0]
        tokens[pooling] = round(items * sum(lengths) / max(len(lengths), 1))
    return tokens


def _sampled_prompts(
    config: Config, data: PromptData, source: Source, kind: str, count: int, own_text: bool
) -> pa.Table:
    """Prompts of some of these rows, spread over all of them."""
    there, tables = count, data.tables
    if kind == "users":  # the most active ones come first
        there = _users_there(config, data)
    elif kind == KIND:
        found = _snapshots(config, data)
        there = len(found.line_M)
    sample = np.linspace(0, there - 1, SAMPLE).astype(int) if there > SAMPLE else np.arange(there)
    if kind == "users":
        rendered = user_prompts(tables["histories"].take(sample), config)
    elif kind == KIND:
        user_ids, titles = tables["histories"]["user_id"], tables["items"]["title"]
        names = strings(tables["scenarios"]["scenario_id"])
        rows = snapshots.histories(tables["events"], found, sample, user_ids, titles, names)
        rendered = user_prompts(rows, config)
    else:
        rendered = item_rows(tables["items"].slice(1).take(sample), data.item_fields, config, source.name, own_text)
    return rendered.filter(pc.not_equal(rendered["prompt"], pa.scalar("")))


def _count_tokens(e: ExtractConfig, texts: list[str], own_text: bool) -> tuple[list[int], int, bool]:
    """Tokens of each prompt, how many all prompts have in common at their beginning, and whether they were counted."""
    folder = _tokenizer_here(e)
    if folder is None:
        shared = len(os.path.commonprefix(texts))
        return [round(len(text) / CHARACTERS_PER_TOKEN) for text in texts], round(shared / CHARACTERS_PER_TOKEN), False
    tokenizer = PromptTokenizer(folder, max_tokens=1 << 30, framed=not own_text)
    tokens = tokenizer.encode_batch(texts, [""] * len(texts))
    return [len(ids) for ids in tokens], len(os.path.commonprefix(tokens)), True


def _tokenizer_here(e: ExtractConfig) -> Path | None:
    """Where the tokenizer lies, if it is on this machine."""
    name = e.http_tokenizer if e.engine == "http" else e.model
    return models.find_local(name) if name else None


def _why(source: Source) -> str:
    if source.is_local:
        return "since the model is not on this machine yet"
    return "since the endpoint's tokenizer is not on this machine (extract.http_tokenizer)"


def _known_share(config: Config, prompts: pa.Table, source: Source, kind: str, count: int) -> float:
    """The share of these prompts, a sample of `count`, that earlier versions below this storage have read already."""
    root = versions.root(config)
    known = _tokenizer_here(config.extract) or not (source.is_local or config.extract.http_tokenizer)
    if not known or not root.exists() or not len(prompts):
        return 0.0
    names = storage.files_below(root)
    frame = open_tokenizer(config.extract, source.reads_own_text(kind)).frame
    reader = Reader.of(config, source.revision(), frame)
    raw_ids = strings(prompts["raw_id"])
    fingerprints = [templates.fingerprint(text, reader.reads) for text in strings(prompts["prompt"])]
    hash_N = partitions.hash_ids(raw_ids)
    keys = index.row_keys(raw_ids, fingerprints, reader.writes[kind])
    bucket = Bucket(kind, 0, 1 << max(0, (count >> 20).bit_length() - 1))  # of a large store some million rows
    rows = pa.Table.from_pydict({"id": prompts["id"], "hash": pa.array(hash_N), "key": keys})
    rows = rows.filter(pa.array(bucket.holds(hash_N)))
    held = versions.Earlier(versions.index_files(root, names).values(), names).of(bucket)
    return len(index.match(rows, held.indexes, pa.array(held.shards, pa.string()))) / max(len(rows), 1)


def cost(config: Config, prompts_left: int, fresh_per_prompt: float, prompts_each: float = 1) -> dict[str, object]:
    """Hours, and money where its rate is stated, of the prompts left and of a million users and more.

    `fresh_per_prompt` are the tokens of a prompt that no cache holds, `prompts_each` the prompts of a user. Answers are
    not counted. As JSON.
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
    long = f"{now['hours'] * 60:.0f} min" if now["hours"] < 2 else f"{now['hours']:.0f} hours"
    less = LESS * (now["hours"] > LONG_HOURS)
    return {
        "actors": actors,
        "tokens_per_second": round(rate),
        "rate_is": source,
        **now,
        "estimate": f"about {long}, {source}, with {actors} actor(s), answers not counted{less}",
        "at_scale": {name: forecast(round(float(name) * prompts_each)) for name in ("1e6", "1e8", "1e9")},
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
    if e.engine == "http":
        return 0.0, "how fast the endpoint is shows when it is asked"
    folder = models.find_local(e.model)
    weights = soundness.parameters(folder) if folder else models.ALIAS_PARAMETERS * (e.model == models.ALIAS)
    if not weights:
        return 0.0, "unknown until the model is on this machine"
    return EFFICIENCY * _matrix_rate(e.dtype) / 2.0 / weights, f"on this machine's CPU ({weights / 1e6:.0f}M weights)"


def _matrix_rate(dtype: str) -> float:
    """Floating-point operations per second of a matrix product on all cores, measured for 0.3 s."""
    import torch

    a = torch.randn(1024, 1024, dtype=getattr(torch, dtype))
    a @ a
    begun, times = time.perf_counter(), 0
    while time.perf_counter() - begun < 0.3:
        a @ a
        times += 1
    return float(times * 2 * 1024**3 / (time.perf_counter() - begun))
