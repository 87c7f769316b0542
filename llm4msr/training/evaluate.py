"""The stage that looks at the test rows: every variant and seed that is compared, beside popularity and a constant."""

import json
from collections.abc import Mapping, Sequence

from upath import UPath

from llm4msr import ray_session, storage
from llm4msr.config import Config
from llm4msr.data import partitions
from llm4msr.progress import track, warn
from llm4msr.storage import FileRecord, StageOutput, StageResult, cache
from llm4msr.training import popularity, predictions
from llm4msr.training.dataset import scenario_names
from llm4msr.training.metrics import Report
from llm4msr.training.results import Results, SeedReport, compare, means_of
from llm4msr.training.table import markdown_table
from llm4msr.training.trained import TrainedModel

VERSION = 5


def compared_runs(config: Config) -> list[tuple[str, Config]]:
    """Every training run that the table needs: name of the variant and its config, the configured model last."""
    own = config.model.variant
    seeds = config.evaluate.seeds or (config.seed,)
    others = [config.using(variant, seed) for variant in config.evaluate.variants for seed in seeds]
    runs = {(o.model.variant, o.seed): o for o in others if o.model.variant != own}
    return [(name, run) for (name, _), run in runs.items()] + [
        (own, config.model_copy(update={"seed": seed})) for seed in seeds
    ]


@ray_session.unwrap_errors
def evaluate(config: Config, models: Sequence[TrainedModel]) -> StageOutput:
    """Publish `metrics.json`, `table.md` and the models' predictions; warns of models that lose.

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
        folder,
        "evaluate",
        config.seed,
        settings,
        fingerprints,
        lambda f: _build(config, models, f),
        resumable=True,
    )
    for line in output.manifest.info["warnings"]:
        warn(line)
    return output


def _build(config: Config, models: Sequence[TrainedModel], folder: UPath) -> StageResult:
    with track("evaluate", sum(partitions.count(model.prepared) for model in models)) as progress:
        for model in models:
            for done in predictions.score(model, folder):
                progress.advance(done, model.variant)
    by_data: dict[str, list[TrainedModel]] = {}  # each seed may have prepared data of its own
    for model in models:
        by_data.setdefault(str(model.prepared.folder), []).append(model)
    files: dict[str, FileRecord] = {}
    baselines: list[dict[str, Report]] = []
    for same in by_data.values():
        data, seed = same[0].prepared, same[0].config.seed
        name = predictions.FOLDER if len(by_data) == 1 else f"{predictions.FOLDER}/seed={seed}"
        files |= predictions.write(same, folder, name)
        baselines.append(popularity.reports(data, "test", scenario_names(data)))
    results = _results(models, folder, baselines)
    storage.remove(folder / predictions.SCORES)
    storage.write_bytes(folder / "metrics.json", json.dumps(results, indent=1, allow_nan=False).encode())
    storage.write_bytes(folder / "table.md", markdown_table(config.model.backbone, results).encode())
    rows = partitions.rows(models[-1].prepared, "test")
    records = {"metrics.json": len(models), "table.md": 1, **files}
    return StageResult(files=records, rows=rows, info=_info(config.model.variant, results))


def _results(models: Sequence[TrainedModel], folder: UPath, baselines: Sequence[Mapping[str, Report]]) -> Results:
    runs: dict[str, list[SeedReport]] = {}
    read = 0, 0
    for model, (report, known) in zip(models, predictions.reports(models, folder), strict=True):
        runs.setdefault(model.variant, []).append({"seed": model.config.seed, **report})
        if model.extracted is not None:
            read = known, report["overall"]["rows"]
    return compare(runs, {name: [one[name] for one in baselines] for name in popularity.BASELINES}, read)


def _info(variant: str, results: Results) -> dict[str, object]:
    """What the manifest says of the results."""
    summary = results["summary"]
    places = [
        {"scenario": place["scenario"], "scenario_id": place["scenario_id"], **means_of(place)}
        for place in summary[variant]["scenarios"]
    ]
    return {
        "metrics": {"on": "test", "overall": means_of(summary[variant]["overall"]), "scenarios": places},
        "baselines": {name: means_of(summary[name]["overall"]) for name in results["baselines"]},
        "compared_auc": {name: summary[name]["overall"]["auc"]["mean"] for name in results["runs"]},
        "warnings": results["warnings"],
    }
