"""The report: a page that shows what the knowledge says, how the model does beside a plain one, and what it moves."""

from collections.abc import Sequence

from upath import UPath

from llm4msr import storage
from llm4msr.config import Config
from llm4msr.explain.opened_run import Seed
from llm4msr.progress import say
from llm4msr.storage import StageOutput, StageResult

VERSION = 2
REPORT = "report.html"


def explain(config: Config, seeds: Sequence[Seed]) -> StageOutput:
    """Publish `report.html`, and the data beneath its pictures beside it; say its headline, and warn of what loses.

    Args:
        config: what was trained.
        seeds: the trained seeds that read the same rows, the config's own first.

    Raises:
        ConfigError: `explain.users` names somebody unknown.
    """
    data, knowledge = seeds[0].own.prepared, seeds[0].own.extracted
    assert knowledge is not None
    models = [one for seed in seeds for one in (seed.own, seed.plain) if one is not None]
    fingerprints = {one.output.folder.name: one.weights_digest for one in models}
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
        lambda folder: _build(seeds, folder),
    )
    for line in (output.manifest.info["headline"], *(f"warning: {one}" for one in output.manifest.info["warnings"])):
        say(line)
    return output


def _build(seeds: Sequence[Seed], folder: UPath) -> StageResult:
    from llm4msr.explain.report.build import build  # loads what draws the pictures

    return build(seeds, folder / REPORT)
