"""The stage that looks at the test rows: every variant and seed that is compared, beside popularity and a constant."""

import json
from collections.abc import Sequence

from upath import UPath

from llm4msr import storage
from llm4msr.config import Config
from llm4msr.progress import say, track
from llm4msr.storage import StageOutput, StageResult, cache
from llm4msr.training import metrics, popularity
from llm4msr.training.loop import predict
from llm4msr.training.metrics import Report
from llm4msr.training.results import SeedReport, compare, means_of
from llm4msr.training.table import markdown_table
from llm4msr.training.trained import TrainedModel

VERSION = 2


def compared_runs(config: Config) -> list[tuple[str, Config]]:
    """Every training run that the table needs: name of the variant and its config, the configured model last."""
    own = config.model.variant
    seeds = config.evaluate.seeds or (config.seed,)
    others = [config.using(variant, seed) for variant in config.evaluate.variants for seed in seeds]
    runs = {(o.model.variant, o.seed): o for o in others if o.model.variant != own}
    return [(name, run) for (name, _), run in runs.items()] + [
        (own, config.model_copy(update={"seed": seed})) for seed in seeds
    ]


def evaluate(config: Config, models: Sequence[TrainedModel]) -> StageOutput:
    """Publish `metrics.json` and `table.md`; looks at the test rows once per model, and warns of those that lose.

    Args:
        config: says what is compared.
        models: those that `compared_runs` names, in its order.
    """
    if any(model.extracted for model in models):
        cache.root()  # told here where it cannot be written, not after the first models
    fingerprints = {model.output.folder.name: model.weights_digest for model in models}
    name = storage.digest_json([VERSION, config.evaluate.identity(), fingerprints])[:12]
    folder = storage.path(config.root) / "evaluate" / name
    settings = config.model_dump(include={"evaluate", "model", "train"})
    output = storage.publish(
        folder, "evaluate", config.seed, settings, fingerprints, lambda f: _build(config, models, f)
    )
    for line in output.manifest.info["warnings"]:
        say(f"warning: {line}")
    return output


def _build(config: Config, models: Sequence[TrainedModel], folder: UPath) -> StageResult:
    reports: dict[str, list[SeedReport]] = {}
    baselines: dict[str, dict[str, Report]] = {}  # by prepared data, of which each seed may have its own
    rows, read = 0, (0, 0)
    with track("evaluate", len(models)) as progress:
        for model in models:
            net, data = model.load()
            scored = predict(net, data, data.rows("test"), model.config.train.batch_size)
            rows = len(scored.label)
            reports.setdefault(model.variant, []).append(
                {"seed": model.config.seed, **metrics.report(scored, data.scenario_names)}
            )
            if str(data.prepared.folder) not in baselines:
                baselines[str(data.prepared.folder)] = popularity.reports(data.prepared, "test", data.scenario_names)
            if data.knowledge is not None:
                read = int(data.knowledge.known_N[scored.user].sum()), rows
            progress.advance(1, model.variant)
    by_name = {name: [one[name] for one in baselines.values()] for name in popularity.BASELINES}
    results = compare(reports, by_name, read)
    storage.write_bytes(folder / "metrics.json", json.dumps(results, indent=1, allow_nan=False).encode())
    storage.write_bytes(folder / "table.md", markdown_table(config.model.backbone, results).encode())
    summary = results["summary"]
    configured = summary[config.model.variant]
    places = [
        {"scenario": place["scenario"], "scenario_id": place["scenario_id"], **means_of(place)}
        for place in configured["scenarios"]
    ]
    info = {
        "metrics": {"on": "test", "overall": means_of(configured["overall"]), "scenarios": places},
        "baselines": {name: means_of(summary[name]["overall"]) for name in by_name},
        "compared_auc": {name: summary[name]["overall"]["auc"]["mean"] for name in reports},
        "warnings": results["warnings"],
    }
    return StageResult(files={"metrics.json": len(models), "table.md": 1}, rows=rows, info=info)
