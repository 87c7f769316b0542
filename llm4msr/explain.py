"""The report: a page that shows what the knowledge says, how the model does beside a plain one, and what it moves."""

from upath import UPath

from llm4msr import storage
from llm4msr.config import Config
from llm4msr.errors import ConfigError
from llm4msr.extract import extracted
from llm4msr.prepare import prepared
from llm4msr.progress import say
from llm4msr.report.opened import Seed, Trained
from llm4msr.storage import Built, StageOutput
from llm4msr.train import WEIGHTS, trained

VERSION = 2
REPORT = "report.html"


def explain(config: Config) -> StageOutput:
    """Publish `report.html`, and the data beneath its pictures beside it; say its headline, and warn of what loses.

    Raises:
        ConfigError: the model uses no knowledge, is not trained yet, or `explain.users` names somebody unknown.
    """
    check_explainable(config)
    data, knowledge = prepared(config), extracted(config)
    seeds = _seeds(config, data)
    models = [one for seed in seeds for one in (seed.own, seed.plain) if one is not None]
    fingerprints = {one.output.folder.name: one.output.manifest.files[WEIGHTS].digest for one in models}
    fingerprints |= {"prepare": data.manifest.fingerprint, "extract": knowledge.manifest.fingerprint}
    content = [{n: p.digest for n, p in stage.manifest.files.items()} for stage in (data, knowledge)]
    settings = config.explain.model_dump()
    name = storage.digest_of([VERSION, config.name, settings, fingerprints, content])[:12]
    output = storage.publish(
        storage.path(config.root) / "explain" / name,
        "explain",
        config.seed,
        config.model_dump(include={"explain", "evaluate", "model", "train"}),
        fingerprints,
        lambda folder: _build(data, knowledge, seeds, folder),
    )
    for line in (output.manifest.info["headline"], *(f"warning: {one}" for one in output.manifest.info["warnings"])):
        say(line)
    return output


def check_explainable(config: Config) -> None:
    """Raise a ConfigError if there is no finished run with knowledge to look into."""
    if config.model.knowledge == "none":
        raise ConfigError("model.knowledge = 'none': nothing to explain; set it to both, user, scenario or feature")
    extracted(config)
    trained(config)


def _seeds(config: Config, data: StageOutput) -> list[Seed]:
    """The trained seeds whose rows are these, the config's own first, each with its plain backbone if there is one.

    Where each seed has rows of its own, the config's own alone, even if `evaluate.seeds` lacks it.
    """
    numbers = sorted(config.evaluate.seeds or (config.seed,), key=lambda seed: seed != config.seed)
    runs = [config.model_copy(update={"seed": seed}) for seed in numbers]
    same = [run for run in runs if prepared(run).folder == data.folder]
    return [Seed(Trained(run, trained(run)), _plain(run)) for run in same or [config]]


def _plain(config: Config) -> Trained | None:
    run = config.using("none", config.seed)
    try:
        return Trained(run, trained(run))
    except ConfigError:
        return None


def _build(data: StageOutput, knowledge: StageOutput, seeds: list[Seed], folder: UPath) -> Built:
    from llm4msr.report.build import build  # here alone: its libraries are slow to import, and every worker imports us

    return build(data, knowledge, seeds, folder / REPORT)
