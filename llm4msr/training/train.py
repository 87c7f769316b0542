"""The stage that trains one model and publishes its best weights."""

import json
from typing import TypedDict

from upath import UPath

from llm4msr import ray_session, storage
from llm4msr.config import Config
from llm4msr.data import catalogue, partitions
from llm4msr.progress import say, warn
from llm4msr.storage import StageOutput, StageResult, cache
from llm4msr.training import checkpoint, driver, popularity, warm_start
from llm4msr.training.checkpoint import WEIGHTS
from llm4msr.training.dataset import scenario_names
from llm4msr.training.metrics import Metrics, Report
from llm4msr.training.row_files import RowFiles
from llm4msr.training.user_features import UserFeatures

VERSION = 8


@ray_session.unwrap_errors
def train(config: Config, data: StageOutput, knowledge: StageOutput | None) -> StageOutput:
    """Publish the best weights and the history of one model.

    Args:
        config: of which `model`, `train` and `seed` count.
        data: what `prepare` published.
        knowledge: what `extract` published; None for a model without knowledge.

    Raises:
        ConfigError: the cluster can never hold the workers, or a loss is no finite number.
        StorageError: the storage or this machine's cache cannot be written.
    """
    fingerprints = {"prepare": data.manifest.fingerprint}
    if knowledge is not None:
        cache.root()  # the workers will need it: this raises where it cannot be written
        fingerprints["extract"] = knowledge.manifest.fingerprint
    settings = config.model_dump(include={"model", "train"})
    output = storage.publish(
        folder(config, data, knowledge),
        "train",
        config.seed,
        settings,
        fingerprints,
        lambda f: _build(config, data, knowledge, f),
        resumable=True,
    )
    if not output.reused:
        storage.remove(output.folder / checkpoint.FOLDER)
    for line in output.manifest.info["warnings"]:
        warn(line)
    return output


def folder(config: Config, data: StageOutput, knowledge: StageOutput | None) -> UPath:
    """Where this config's weights lie, or will."""
    content = {name: part.digest for name, part in data.manifest.files.items()}
    vectors = {name: part.digest for name, part in knowledge.manifest.files.items()} if knowledge else {}
    model, settings = config.model.identity(), config.train.identity()
    begin = warm_start.weights_checksum(config)
    name = storage.digest_json([VERSION, config.seed, model, settings, content, vectors, *filter(None, [begin])])[:12]
    label = f"{config.model.backbone.replace(':', '.')}-{config.model.variant}-s{config.seed}"
    return storage.path(config.root) / "train" / f"{label}-{name}"


def _build(config: Config, data: StageOutput, knowledge: StageOutput | None, folder: UPath) -> StageResult:
    warn_of_one_class(data)
    _tell_shared_embeddings(config, data)
    moved = warm_start.warnings(config, data, knowledge)  # while the earlier training is still there
    progress, weights = driver.run_workers(config, data, knowledge, folder)
    report = progress.best_report
    assert report is not None
    measured = quality(config, data, report)
    baselines = "; ".join(f"{name}: {popularity.phrase(one)}" for name, one in measured["baselines"].items())
    say(
        f"  {folder.name}: {progress.epoch} epochs in {progress.precision}, best epoch {progress.best_epoch}; "
        f"validation rows: {popularity.phrase(report['overall'])} ({baselines})"
    )
    storage.write_bytes(folder / WEIGHTS, weights)
    storage.write_bytes(folder / "history.json", json.dumps(progress.history, indent=1, allow_nan=False).encode())
    info = {
        **measured,
        "warnings": [*measured["warnings"], *moved],
        "best_epoch": progress.best_epoch,
        "best_by": "logloss" if progress.best_auc is None else "auc",
        "epochs": progress.epoch,
        "starts": progress.starts,
        "precision": progress.precision,
        "parameters": checkpoint.count_numbers(weights),
    }
    rows = partitions.rows(data, "train")
    return StageResult(files={WEIGHTS: 1, "history.json": progress.epoch}, rows=rows, info=info)


def _tell_shared_embeddings(config: Config, data: StageOutput) -> None:
    if rows := UserFeatures(data, config.model).hashed_rows:
        users = catalogue.field_sizes(data)["user"]["user_id"]
        say(f"  {users:,} users share {rows:,} embeddings by a hash of their id; model.user_embedding can change that")


class ValidMetrics(Report):
    """A report, and on which rows."""

    on: str


class Quality(TypedDict):
    """How good a trained model is, as the manifest says it."""

    metrics: ValidMetrics
    baselines: dict[str, Metrics]
    warnings: list[str]


def quality(config: Config, data: StageOutput, report: Report) -> Quality:
    """The best epoch's metrics on validation rows, those of the baselines, and what to warn of."""
    reports = popularity.reports(data, "valid", scenario_names(data))
    baselines = {name: baseline["overall"] for name, baseline in reports.items()}
    warnings = popularity.warnings(config.model.variant, report["overall"], baselines, "validation")
    return {"metrics": {"on": "valid", **report}, "baselines": baselines, "warnings": warnings + known_labels(config)}


def known_labels(config: Config) -> list[str]:
    """What to warn of where users' vectors know the labels of the rows that train with them, as in the paper."""
    model, extract = config.model, config.extract
    apart = extract.point_in_time or extract.snapshots > 1 or config.split.history_share < 1
    if apart or not model.reads_codes or model.control != "none":
        return []
    advice = "extract.point_in_time = true" if extract.reads == "items" else "extract.reads = 'items'"
    return [
        f"{model.variant}: training rows see vectors of their users that know these rows' labels, as published, and "
        f"a model can learn to read them off; set {advice}, or see 'Rows that the LLM has read' in docs/knowledge.md"
    ]


def warn_of_one_class(data: StageOutput) -> None:
    """Say what it means for training if all rows of a split are positives, or all are negatives."""
    meanings = {
        "train": "a model learns no order from one class; without labels, let split.negatives draw the other one",
        "valid": "they have no AUC, so the best epoch is that of the lowest logloss",
    }
    for split, meaning in meanings.items():
        files = RowFiles(data, split, [])
        positive = {label > 0.5 for label in files.label_range() or (0, 1)}
        if len(positive) == 1:
            say(f"  {split}: all {files.rows} rows are {'positives' if positive.pop() else 'negatives'}: {meaning}")
