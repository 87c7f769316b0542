"""Publish the bundle of one trained model: everything that serving needs, and a card that says what it is."""

from collections.abc import Iterable

import pyarrow as pa
from upath import UPath

from llm4msr import ray_session, storage
from llm4msr.arrays import strings
from llm4msr.bundle.files import VERSION
from llm4msr.config import Config
from llm4msr.errors import ConfigError
from llm4msr.export import user_codes
from llm4msr.export.as_trained import AsTrained
from llm4msr.export.calibration import Calibrated, calibrate, phrase
from llm4msr.export.write import Sources, write_bundle
from llm4msr.knowledge import item_vectors, number_format
from llm4msr.knowledge.forget import check_list, ids_to_forget
from llm4msr.knowledge.prompts import templates
from llm4msr.storage import StageOutput, StageResult
from llm4msr.text import markdown, mask, shorten
from llm4msr.training import popularity
from llm4msr.training.checkpoint import WEIGHTS
from llm4msr.training.trained import TrainedModel

_CARD = """# {name}: a multi-scenario ranker{suffix}

- Backbone `{backbone}`, knowledge `{variant}`, seed {seed}; {parameters:,} parameters.
- Trained on {rows:,} rows, the best of {epochs} epochs by {by} on validation rows (epoch {best}).
- On validation rows: {metrics}. Beside it, {baselines}.
{warnings}- Frozen LLM: {llm}.
- What it keeps of users: {kept}.
- Load it: `from llm4msr import Ranker; Ranker.load("THIS FOLDER").rank(request)`, or serve it: `llm4msr serve`.
- Scores are probabilities of a like among rows like those of the data{drawn}. {calibration}.
- Made by LLM4MSR (CIKM 2024, arXiv 2406.12529) as implemented in llm4msr {version}.
"""


@ray_session.unwrap_errors
def export(config: Config, model: TrainedModel) -> StageOutput:
    """Publish the bundle of a model that was trained with this config and that `check_servable` lets pass.

    Raises:
        StorageError: the list of users to forget cannot be read, or nobody on it is known.
    """
    knowledge = model.extracted

    def build(at: UPath) -> StageResult:
        llm = {} if knowledge is None else llm_identity(config, knowledge)
        encoded: Iterable[pa.Table] = ()
        calibrated = calibrate(model) if config.export.calibration == "platt" else None
        trained = as_trained(model, calibrated)
        if knowledge is not None and trained.net.uses_users and trained.vectors is None:
            encoded = user_codes.encode_all(knowledge, trained.net.user_code)
        forget = ids_to_forget(config)
        if knowledge is None:  # or the extraction has told of ids that are nobody's
            check_list(config, trained.data.prepared, ())
        sources = Sources(config, trained.net, trained.data, encoded, trained.vectors, forget, calibrated)
        return write_bundle(sources, at, llm, _card(config, model.output, knowledge, calibrated))

    settings, inputs = config.model_dump(include={"model", "export"}), {"train": model.output.folder.name}
    return storage.publish(folder(config, model.output), "export", config.seed, settings, inputs, build)


def as_trained(model: TrainedModel, calibrated: Calibrated | None) -> AsTrained:
    """The trained net with all that its scores are made of."""
    net, data = model.load()
    pools_items = model.extracted is not None and net.uses_users and _pools_items(model.extracted)
    vectors = item_vectors.read(model.extracted).vectors_ID if model.extracted is not None and pools_items else None
    return AsTrained(net, data, vectors, None if calibrated is None else calibrated.lines)


def check_servable(config: Config) -> None:
    """Raise a ConfigError if the model is a control, which nobody would serve."""
    if config.model.control != "none":
        raise ConfigError(f"model.control = '{config.model.control}': wrong vectors are for measuring, not for serving")


def llm_identity(config: Config, knowledge: StageOutput) -> dict[str, str]:
    """What decides whether two extractions' vectors mean the same to a net."""
    e = config.extract
    identity = {
        "model": mask(e.model),
        "revision": knowledge.manifest.inputs["revision"],
        "pooling": e.pooling,
        "dtype": number_format.used_by(knowledge),
    }
    if e.reads == "items":  # what models see of them is fitted in one extraction
        return identity | {"items": knowledge.manifest.fingerprint}
    return identity | {"template": storage.digest(templates.read("user", e.user_template).template)}


def folder(config: Config, model: StageOutput) -> UPath:
    """The folder of this config's bundle, exported or not."""
    made_of = [VERSION, config.name, model.folder.name, model.checksum(WEIGHTS), config.export.identity()]
    if forgotten := strings(ids_to_forget(config)):
        made_of.append(forgotten)
    name = storage.digest_json(made_of)
    return storage.path(config.root) / "export" / name[:12]


def _kept(config: Config, knowledge: StageOutput | None) -> str:
    """Files that tell what users like, and what is in them."""
    kept = ["codes of what is known of them (`codes.arrow`)"] if config.model.reads_codes else []
    if config.model.reads_pasts or (config.model.reads_codes and _pools_items(knowledge)):
        events = config.model.past_events
        kept.append(f"their latest {events} events, rows of validation and test included (`pasts.arrow`)")
    return "; ".join(kept) or "ids and features alone"


def _pools_items(knowledge: StageOutput | None) -> bool:
    """Whether users' vectors are pooled from those of items."""
    return knowledge is not None and item_vectors.FILE in knowledge.manifest.files


def _calibration(error: float | None, calibrated: Calibrated | None) -> str:
    """How far scores can be taken for probabilities; the error is the model's own on validation rows."""
    if calibrated is not None:
        return f"Calibrated by a line for each scenario: {markdown(phrase(calibrated.report), 500)}"
    known = "" if error is None else f" (expected calibration error {error:.4f} on validation rows)"
    return f'They are the model\'s own{known}; `export.calibration = "platt"` calibrates them'


def _card(
    config: Config, model: StageOutput, knowledge: StageOutput | None, calibrated: Calibrated | None = None
) -> str:
    info = model.manifest.info
    llm = "none"
    if knowledge is not None:
        inputs = knowledge.manifest.inputs
        model_name, revision = markdown(inputs["model"], 200), markdown(inputs["revision"])
        llm = f"{model_name} (revision {revision}), pooling {config.extract.pooling}"
    return _CARD.format(
        name=config.name,
        suffix="" if knowledge is None else " with LLM knowledge",
        backbone=shorten(config.model.backbone).replace("`", ""),
        variant=config.model.variant,
        seed=config.seed,
        parameters=info["parameters"],
        rows=model.manifest.rows,
        epochs=info["epochs"],
        metrics=popularity.phrase(info["metrics"]["overall"]),
        baselines="; ".join(f"{name}: {popularity.phrase(metrics)}" for name, metrics in info["baselines"].items()),
        warnings="".join(f"- **Warning**: {line}.\n" for line in info["warnings"]),
        best=info["best_epoch"],
        by="AUC" if info["metrics"]["overall"]["auc"] is not None else "logloss",
        llm=llm,
        kept=_kept(config, knowledge),
        drawn=", whose negatives were drawn: they are no rates of likes in service" * bool(config.split.negatives),
        calibration=_calibration(info["metrics"]["overall"]["ece"], calibrated),
        version=model.manifest.libraries.get("llm4msr", ""),
    )
