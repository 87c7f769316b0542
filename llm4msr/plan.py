"""What a run would do, before it does anything: stages, prompts, tokens and an estimate of time."""

import math
import os
import time
from typing import Any

import numpy as np

from llm4msr.config import Config
from llm4msr.engines import engine_name, models
from llm4msr.engines.base import PromptTokenizer
from llm4msr.errors import ConfigError
from llm4msr.evaluate import compared
from llm4msr.extract import extracted
from llm4msr.prepare import to_ask
from llm4msr.render import item_prompts, items_to_read, user_prompts, users_to_read

CHARACTERS_PER_TOKEN = 4.0
SAMPLE = 2000
"""Prompts that are tokenised; the rest is estimated from them."""
EFFICIENCY = 0.5
"""Share of this machine's matrix rate that an engine reaches, and seconds to start it: measured with the quickstart."""
START_SECONDS = 40.0


def plan(config: Config, verb: str) -> dict[str, Any]:
    """The plan of one verb, or of all stages for `run`; reads the source, writes nothing."""
    parts: dict[str, Any] = {}
    if verb in ("prepare", "run"):
        parts["prepare"] = _prepare(config)
    if verb in ("extract", "run"):
        parts["extract"] = _extract(config)
    if verb in ("train", "run"):
        runs = [(config.model.variant, config)] if verb == "train" else compared(config)
        parts["train"] = [f"{config.model.backbone} {name}, seed {run.seed}" for name, run in runs]
    if verb in ("evaluate", "run"):
        parts["evaluate"] = f"{len(compared(config))} models on the test rows"
    if verb in ("export", "run"):
        parts["export"] = f"bundle of {config.model.backbone} {config.model.variant}, seed {config.seed}"
    if verb == "serve":
        s = config.serve
        parts["serve"] = f"http://{s.host}:{s.port}, {s.replicas} replica(s), {s.max_candidates} candidates at most"
    return parts


def _prepare(config: Config) -> dict[str, Any]:
    tables, _ = to_ask(config)
    counts = {"users": tables["histories"].num_rows, "scenarios": tables["scenarios"].num_rows - 1}
    return {"source": config.source.path, **counts}


def _extract(config: Config) -> dict[str, Any]:
    tables, fields = to_ask(config)
    of_items = config.extract.reads == "items"
    items = items_to_read(tables["items"]) if config.extract.item_vectors == "llm" else 0
    count = items if of_items else users_to_read(config, tables["histories"].num_rows)
    read = tables["items"].slice(1) if of_items else tables["histories"]
    chosen = read.take(np.linspace(0, count - 1, SAMPLE).astype(int)) if count > SAMPLE else read.slice(0, count)
    rendered = item_prompts(chosen, fields, config) if of_items else user_prompts(chosen, config)
    lengths, shared, exact = _tokens(config, [text for text in rendered["prompt"].to_pylist() if text])
    per_prompt = sum(lengths) / max(len(lengths), 1)
    found = {
        "engine": engine_name(config.extract),
        "model": config.extract.model,
        "prompts": count + tables["scenarios"].num_rows - 1,
        "shards": 1 + math.ceil(count / config.extract.rows_per_shard),
        "tokens": round(per_prompt * count),
        "tokens_p50": int(np.percentile(lengths or [0], 50)),
        "tokens_p99": int(np.percentile(lengths or [0], 99)),
        "tokens_shared": shared if engine_name(config.extract) == "vllm" else 0,
        "tokens_are": "counted" if exact else "estimated, since the model is not on this machine yet",
    }
    if _is_done(config):
        return found | {"estimate": "finished already: nothing to do"}
    fresh = per_prompt - float(found["tokens_shared"])
    return found | {"estimate": _time(config, fresh * count)}


def _is_done(config: Config) -> bool:
    try:
        extracted(config)
    except ConfigError:
        return False
    return True


def _tokens(config: Config, prompts: list[str]) -> tuple[list[int], int, bool]:
    """Tokens of each prompt, how many of them all prompts begin with, and whether they were counted."""
    folder = models.on_this_machine(config.extract.model)
    if folder is None:
        prefix = len(os.path.commonprefix(prompts))
        return (
            [round(len(p) / CHARACTERS_PER_TOKEN) for p in prompts],
            round(prefix / CHARACTERS_PER_TOKEN),
            False,
        )
    tokenizer = PromptTokenizer(folder, max_tokens=1 << 30)
    tokens = [tokenizer(prompt) for prompt in prompts]
    return [len(ids) for ids in tokens], len(os.path.commonprefix(tokens)), True


def _time(config: Config, fresh_tokens: float) -> str:
    folder = models.on_this_machine(config.extract.model)
    weights = models.parameters(folder) if folder else models.ALIAS_PARAMETERS * (config.extract.model == models.ALIAS)
    if not weights:
        return "unknown until the model is on this machine"
    seconds = 2.0 * weights * fresh_tokens / (EFFICIENCY * _matrix_rate()) + START_SECONDS
    return f"about {seconds / 60:.0f} min on this machine's CPU ({weights / 1e6:.0f}M weights), answers not counted"


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
