"""The table: test AUC, GAUC and logloss per scenario and overall, for every variant and seed that is compared."""

import json
from typing import Any

import numpy as np
import safetensors.torch
from upath import UPath

from llm4msr import metrics, storage, wheels
from llm4msr.config import Config
from llm4msr.fit import Data, predict
from llm4msr.progress import track
from llm4msr.storage import Built, StageOutput
from llm4msr.train import WEIGHTS, inputs, trained

VERSION = 1
OVERALL = "overall"


def compared(config: Config) -> list[tuple[str, Config]]:
    """Every training run that the table needs: name of the variant and its config, the configured model last."""
    own = config.model.variant
    seeds = config.evaluate.seeds or (config.seed,)
    others = [config.using(variant, seed) for variant in config.evaluate.variants for seed in seeds]
    runs = {(o.model.variant, o.seed): o for o in others if o.model.variant != own}
    return [(name, run) for (name, _), run in runs.items()] + [
        (own, config.model_copy(update={"seed": seed})) for seed in seeds
    ]


def evaluate(config: Config) -> StageOutput:
    """Publish `metrics.json` and `table.md`; looks at the test rows once per model.

    Raises:
        ConfigError: a model that is compared is not trained yet; the message says how to train it.
    """
    runs = [(name, run, trained(run)) for name, run in compared(config)]
    if any(run.model.knowledge != "none" for _, run, _ in runs):
        wheels.cache_folder()  # told here where it cannot be written, not after the first models
    fingerprints = {output.folder.name: output.manifest.files[WEIGHTS].digest for _, _, output in runs}
    name = storage.digest_of([VERSION, config.evaluate.identity(), fingerprints])[:12]
    folder = storage.path(config.root) / "evaluate" / name
    settings = config.model_dump(include={"evaluate", "model", "train"})
    return storage.publish(folder, "evaluate", config.seed, settings, fingerprints, lambda f: _build(config, runs, f))


def _build(config: Config, runs: list[tuple[str, Config, StageOutput]], folder: UPath) -> Built:
    by_variant: dict[str, list[dict[str, Any]]] = {}
    rows = 0
    with track("evaluate", len(runs)) as progress:
        for name, run, output in runs:
            prepared, extracted = inputs(run)
            data = Data.open(run, prepared, extracted)
            net = data.new_net(run)
            net.load_state_dict(safetensors.torch.load(storage.read_bytes(output.folder / WEIGHTS)))
            scored = predict(net, data, data.rows("test"), run.train.batch_size)
            by_variant.setdefault(name, []).append(metrics.report(scored, data.scenario_names))
            rows = len(scored.label)
            progress.advance(1, name)
    summary = {name: summarise(reports) for name, reports in by_variant.items()}
    storage.write_bytes(
        folder / "metrics.json", json.dumps({"runs": by_variant, "summary": summary}, indent=1).encode()
    )
    seeds = config.evaluate.seeds or (config.seed,)
    storage.write_bytes(folder / "table.md", table(config.model.backbone, summary, len(seeds)).encode())
    own = summary[config.model.variant]
    means = {
        "on": "test",
        "overall": _means(own["overall"]),
        "scenarios": {place: _means(values) for place, values in own["scenarios"].items()},
    }
    compared_auc = {name: values["overall"]["auc"]["mean"] for name, values in summary.items()}
    return Built(
        files={"metrics.json": len(runs), "table.md": 1},
        rows=rows,
        info={"metrics": means, "compared_auc": compared_auc},
    )


def summarise(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and deviation over seeds of each metric; deviation None with one seed, both None where undefined."""
    places = {OVERALL: [r["overall"] for r in reports]}
    names = sorted({name for report in reports for name in report["scenarios"]})
    scenarios = {name: [r["scenarios"][name] for r in reports if name in r["scenarios"]] for name in names}
    return {
        "overall": {metric: _spread(places[OVERALL], metric) for metric in ("auc", "gauc", "logloss")},
        "scenarios": {
            name: {metric: _spread(values, metric) for metric in ("auc", "gauc", "logloss")}
            for name, values in scenarios.items()
        },
    }


def table(backbone: str, summary: dict[str, Any], seeds: int) -> str:
    """Markdown: a row per scenario, AUC and logloss of each variant side by side."""
    variants = list(summary)
    places = [OVERALL, *sorted({name for values in summary.values() for name in values["scenarios"]})]
    head = ["test rows of", *(f"{v} {m}" for m in ("AUC", "logloss") for v in variants)]
    lines = [_line(head), _line(["---", *["---:"] * (len(head) - 1)])]
    for place in places:
        cells = [
            _cell((summary[v]["overall"] if place == OVERALL else summary[v]["scenarios"].get(place, {})).get(metric))
            for metric in ("auc", "logloss")
            for v in variants
        ]
        lines.append(_line([place, *cells]))
    gauc = ", ".join(f"{v} {_cell(summary[v]['overall']['gauc'])}" for v in variants)
    spread = (
        "mean ± standard deviation over the seeds" if seeds > 1 else "one seed, so differences below 0.005 say little"
    )
    note = f"Backbone {backbone}, {seeds} seed{'s' * (seeds > 1)}: {spread}. GAUC (mean AUC within a user): {gauc}."
    return "\n".join(lines) + f"\n\n{note}\n"


def _spread(reports: list[dict[str, Any]], metric: str) -> dict[str, float | None]:
    values = [report[metric] for report in reports if report[metric] is not None]
    if not values:
        return {"mean": None, "std": None}
    return {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1)) if len(values) > 1 else None}


def _means(spreads: dict[str, dict[str, float | None]]) -> dict[str, float | None]:
    return {metric: spread["mean"] for metric, spread in spreads.items()}


def _cell(value: dict[str, float | None] | None) -> str:
    if value is None or value["mean"] is None:
        return "–"
    return f"{value['mean']:.4f}" + (f" ± {value['std']:.4f}" if value["std"] is not None else "")


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
