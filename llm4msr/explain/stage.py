"""The stage `explain`: a page that shows what the knowledge says, how the model compares with a plain one, and what
each level of knowledge moves."""

from collections.abc import Sequence

from upath import UPath

from llm4msr import storage
from llm4msr.config import Config
from llm4msr.explain.finished_run import ModelPair
from llm4msr.progress import say
from llm4msr.storage import StageOutput, StageResult

VERSION = 4
REPORT = "report.html"


def explain(config: Config, pairs: Sequence[ModelPair]) -> StageOutput:
    """Publish `report.html` with the data behind its pictures beside it; print its headline and warnings.

    Args:
        config: what was trained.
        pairs: the models of all seeds that read the same rows, the config's own seed first.

    Raises:
        ConfigError: `explain.users` names an unknown user.
    """
    data, knowledge = pairs[0].model.prepared, pairs[0].model.extracted
    assert knowledge is not None
    models = [model for pair in pairs for model in (pair.model, pair.plain) if model is not None]
    fingerprints = {model.output.folder.name: model.weights_digest for model in models}
    fingerprints |= {"prepare": data.manifest.fingerprint, "extract": knowledge.manifest.fingerprint}
    content = [{n: p.digest for n, p in stage.manifest.files.items()} for stage in (data, knowledge)]
    settings = config.explain.model_dump()
    name = storage.digest_json([VERSION, config.name, settings, fingerprints, content])[:12]
    output = storage.publish(
        storage.path(config.root) / "explain" / name,
        "explain",
        config.seed,
        config.model_dump(include={"explain", "evaluate", "model", "train"}),
        fingerprints,
        lambda folder: _build(pairs, folder),
    )
    for line in (output.manifest.info["headline"], *(f"warning: {text}" for text in output.manifest.info["warnings"])):
        say(line)
    return output


def _build(pairs: Sequence[ModelPair], folder: UPath) -> StageResult:
    from llm4msr.explain.report.build import build  # imports the libraries that draw and cluster

    return build(pairs, folder / REPORT)
