"""The stage `explain`: a page that says what a model with knowledge gains over others, how surely, where, and for
whom."""

from collections.abc import Sequence

from upath import UPath

from llm4msr import storage
from llm4msr.config import Config
from llm4msr.progress import say
from llm4msr.storage import StageOutput, StageResult
from llm4msr.training.trained import TrainedModel

VERSION = 7
REPORT = "report.html"


def explain(config: Config, models: Sequence[TrainedModel], evaluation: StageOutput) -> StageOutput:
    """Publish `report.html` with the data behind its pictures beside it; print its verdict and what limits it.

    Args:
        config: whose model is explained.
        models: all that were compared, in any order.
        evaluation: what `evaluate` published of them.

    Raises:
        ConfigError: `explain.users` names an unknown user.
    """
    variant = config.model.variant
    ordered = sorted(models, key=lambda one: (one.variant != variant, one.config.seed != config.seed))
    own = ordered[0]
    inputs = {"evaluate": evaluation, "prepare": own.prepared} | ({"extract": own.extracted} if own.extracted else {})
    content = [{n: p.digest for n, p in stage.manifest.files.items()} for stage in inputs.values()]
    settings = config.explain.model_dump()
    name = storage.digest_json([VERSION, config.name, settings, own.weights_digest, content])[:12]
    output = storage.publish(
        storage.path(config.root) / "explain" / name,
        "explain",
        config.seed,
        config.model_dump(include={"explain", "evaluate", "model", "train"}),
        {stage: output.manifest.fingerprint for stage, output in inputs.items()},
        lambda folder: _build(ordered, evaluation, folder),
    )
    say(" ".join([output.manifest.info["verdict"], *output.manifest.info["limits"]]))
    return output


def _build(models: Sequence[TrainedModel], evaluation: StageOutput, folder: UPath) -> StageResult:
    from llm4msr.explain.report.build import build  # imports the libraries that draw and cluster

    return build(models, evaluation, folder / REPORT)
