"""`--dry-run`: what a verb would do, and about how long it would take, before it does anything."""

from typing import Any

from llm4msr import pipeline
from llm4msr.config import Config
from llm4msr.config.toml import as_toml
from llm4msr.data.prepare import PromptData, prompt_data
from llm4msr.errors import ConfigError
from llm4msr.knowledge.estimate import estimate
from llm4msr.knowledge.prompts.sample import sampler
from llm4msr.training.estimate import estimate as time_of_trainings
from llm4msr.training.evaluate import compared_runs


def plan(config: Config, verb: str) -> dict[str, Any]:
    """The plan of one verb, or of all stages for `run`; reads the source, writes nothing."""
    parts: dict[str, Any] = {}
    if verb in ("prepare", "extract", "train", "tune", "run"):
        data = prompt_data(config, sampler)
        parts |= {"prepare": _of_prepare(config, data)} if verb in ("prepare", "run") else {}
        parts |= {"extract": estimate(config, data, _is_extracted(config))} if verb in ("extract", "run") else {}
        if verb == "run" and len(of_seeds := [one.seed for one in pipeline.datasets(config)]) > 1:
            parts["extract"]["again_for_each_seed"] = of_seeds
        if verb in ("train", "run"):
            runs = [(config.model.variant, config)] if verb == "train" else pipeline.trainings(config)
            parts["train"] = time_of_trainings(runs, data.report.parts["train"].rows)
        if verb == "tune":
            parts["tune"] = _of_tune(config, data.report.parts["train"].rows)
    if verb in ("evaluate", "run"):
        parts["evaluate"] = f"{len(compared_runs(config))} models on the test rows"
    if verb in ("export", "run"):
        bundle = f"bundle of {config.model.backbone} {config.model.variant}, seed {config.seed}"
        parts["export"] = bundle
    if verb == "explain":
        numbers = config.evaluate.seeds or (config.seed,)
        parts["explain"] = f"report on {config.model.backbone} {config.model.variant}, {len(numbers)} seed(s)"
    if verb == "refresh":
        parts["refresh"] = f"what is newly known of users for {config.serve.bundle or 'the bundle of this config'}"
    if verb == "score":
        wanted = config.score
        scenarios = wanted.scenarios if isinstance(wanted.scenarios, str) else ", ".join(wanted.scenarios)
        parts["score"] = f"the best {wanted.top_k} items for each user, scenarios: {scenarios}"
    if verb == "serve":
        s = config.serve
        parts["serve"] = f"http://{s.host}:{s.port}, {s.replicas} replica(s), {s.max_candidates} candidates at most"
    return parts


def _of_prepare(config: Config, data: PromptData) -> dict[str, Any]:
    counts = {"users": data.users, "scenarios": data.tables["scenarios"].num_rows - 1}
    return {"source": config.source.path, **counts, "warnings": data.warnings}


def _of_tune(config: Config, rows: int) -> dict[str, Any]:
    from llm4msr.training import search_space, tune

    trials = [(one.model.variant, one) for one in tune.models(config) for _ in range(config.tune.trials)]
    spaces = {one.model.variant: search_space.space_of(one) for one in tune.models(config)}
    return {
        "trials": f"{config.tune.trials} of each of {', '.join(spaces)}; most are stopped early",
        "space": {name: {key: as_toml(values) for key, values in space.items()} for name, space in spaces.items()},
        "estimate": time_of_trainings(trials, rows)["estimate"],
    }


def _is_extracted(config: Config) -> bool:
    try:
        pipeline.extracted(config)
    except ConfigError:
        return False
    return True
