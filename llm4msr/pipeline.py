"""The stages in order, from raw data to an endpoint: each finds what those before it published, and hands it on.

    prepare -> extract -> train -> evaluate -> explain
                 |          \\---> export -> serve -> skew
                 |                        \\---> refresh, score
                 \\---> tune

This and `finished` alone know which outputs belong to a config; a stage's own function takes them as arguments.
Work that is finished is never repeated. A stage's module is imported where it runs, for `prepare` needs no torch, and
torch takes longer to load than a small table to prepare.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from llm4msr import storage
from llm4msr.config import Config
from llm4msr.data import partitions
from llm4msr.data import prepare as prepare_stage
from llm4msr.data.prepare import goes_by_seed
from llm4msr.errors import ConfigError
from llm4msr.finished import exported, extracted, inputs, prepared, trained
from llm4msr.knowledge.prompts.sample import sampler
from llm4msr.progress import say
from llm4msr.run_result import RunResult
from llm4msr.storage import StageOutput

if TYPE_CHECKING:
    from ray.serve import Application

    from llm4msr.export.skew import Skew
    from llm4msr.training.trained import TrainedModel

__all__ = [
    "datasets",
    "evaluate",
    "explain",
    "export",
    "exported",
    "extract",
    "extracted",
    "inputs",
    "nearline",
    "prepare",
    "prepared",
    "refresh",
    "run",
    "score",
    "serve",
    "skew",
    "stages",
    "train",
    "trained",
    "trainings",
    "tune",
]

# --- the stages ---------------------------------------------------------------------------------------------------


def prepare(config: Config) -> StageOutput:
    """Read the source, split it, and publish tables of numbers by partition of users; warns of likely mistakes."""
    return prepare_stage.prepare(config, sampler)


def extract(config: Config) -> StageOutput:
    """Ask the frozen LLM and publish its vectors and texts; an interrupted run keeps its finished shards."""
    from llm4msr.knowledge import extract as extract_stage

    return extract_stage.extract(config, prepared(config))


def train(config: Config) -> StageOutput:
    """Train the configured model and publish the weights of its best epoch, and the history of all."""
    from llm4msr.model import backbones
    from llm4msr.training import train as train_stage

    backbones.find(config.model.backbone)  # a wrong import path is reported before anything is looked for
    return train_stage.train(config, *inputs(config))


def tune(config: Config) -> StageOutput:
    """Publish a config with better values of the ranker's keys, and one for the plain backbone."""
    from llm4msr.model import backbones
    from llm4msr.training import tune as tune_stage

    backbones.find(config.model.backbone)
    return tune_stage.tune(config, *inputs(config))


def evaluate(config: Config) -> StageOutput:
    """Compare the trained models on the test rows: publish `metrics.json`, `table.md` and all predictions."""
    from llm4msr.training import evaluate as evaluate_stage

    return evaluate_stage.evaluate(config, _compared(config))


def export(config: Config) -> StageOutput:
    """Publish the bundle of the configured model, which serving loads."""
    from llm4msr.export import export as export_stage

    export_stage.check_servable(config)
    return export_stage.export(config, trained(config))


def explain(config: Config) -> StageOutput:
    """Publish `report.html` on the models that `evaluate` compares, which it does first if need be."""
    from llm4msr.explain import stage as explain_stage
    from llm4msr.training import evaluate as evaluate_stage

    _check_has_something_to_explain(config)
    models = _compared(config)
    return explain_stage.explain(config, models, evaluate_stage.evaluate(config, models))


def refresh(config: Config) -> StageOutput:
    """Publish what is newly known of users for a bundle that is served; its endpoints take it over."""
    from llm4msr.export import refresh as refresh_stage

    served = refresh_stage.Served.open(exported(config))
    knowledge = extracted(config) if served.needs_knowledge else None
    return refresh_stage.refresh(config, prepared(config), knowledge, served)


def score(config: Config) -> StageOutput:
    """Publish each user's best items, by the bundle and the newest codes for it, as Parquet."""
    from llm4msr.bundle import files
    from llm4msr.score import stage as score_stage

    bundle = exported(config)
    return score_stage.score(config, prepared(config), bundle, files.latest_codes(str(bundle.folder)))


def skew(config: Config, most: int) -> "Skew":
    """Compare the newest requests of the log, at most so many, with what the trained net makes of them."""
    from llm4msr.export import skew as skew_check

    return skew_check.check(config, trained(config), exported(config), most)


def serve(config: Config) -> str:
    """Serve the bundle, and the explorer where it is asked for, until `serve.endpoint.stop`; gives back the address.

    Raises:
        ConfigError: nothing is exported yet, the host or port cannot be listened at, or Ray Serve refuses.
        StorageError: the bundle cannot be read or is damaged.
    """
    from llm4msr.serve import api_token, endpoint

    bundle = config.serve.bundle or str(exported(config).folder)
    explored = _explored(config, bundle) if config.serve.explore else None
    reader = nearline(config) if config.serve.nearline else None
    address = endpoint.start(config.serve, bundle, [config.model.backbone])
    if reader is not None:
        endpoint.deploy(reader, "nearline", None, config.serve)
    if explored is not None:
        from llm4msr.explain.explorer import app as explorer

        model, plain, calibrated = explored
        page = explorer.application(model, plain, bool(api_token.read()), calibrated)
        endpoint.deploy(page, explorer.NAME, explorer.PREFIX, config.serve)
    return address


def nearline(config: Config) -> "Application":
    """The application that reads users again whose events are new, beside an endpoint of the same bundle.

    `serve deploy` takes it as `import_path: llm4msr.pipeline:nearline`, with the whole config as args.

    Raises:
        ConfigError: no LLM has read the users of the bundle, or the endpoint keeps no events.
    """
    from llm4msr.export.refresh import Served
    from llm4msr.nearline import app, reader

    served = Served.open(exported(config))
    reader.check(config, served)
    return app.application(config, prepared(config), extracted(config), served)


def _explored(config: Config, bundle: str) -> "tuple[TrainedModel, TrainedModel | None, bool]":
    """The model that the explorer shows, the plain one beside it, and whether the bundle calibrates its scores."""
    from llm4msr.bundle import files

    _check_has_something_to_explain(config)
    return trained(config), _trained_plain(config), files.read_description(storage.path(bundle)).calibration is not None


def _compared(config: Config) -> "list[TrainedModel]":
    """The models that table and report compare, which must be trained."""
    from llm4msr.training.evaluate import compared_runs

    return _beside_words(config, [trained(run) for _, run in compared_runs(config)])


def _beside_words(config: Config, models: "list[TrainedModel]") -> "list[TrainedModel]":
    """These models and, before the configured one, the same with counts of words, if all of its seeds are trained."""
    extract, own = config.extract, [model for model in models if model.variant == config.model.variant]
    asks = config.model.uses_knowledge and config.model.control == "none" and {"llm", "encoder"} & {*extract.sources}
    if not asks:
        return models
    change = {"reads": "items", "item_vectors": "words"}
    words = config.model_copy(update={"extract": extract.model_copy(update=change)})
    try:
        rivals = [trained(words.model_copy(update={"seed": model.config.seed})) for model in own]
    except ConfigError:
        return models
    return [*models[: -len(own)], *(replace(rival, of_words=True) for rival in rivals), *own]


def _trained_plain(config: Config) -> "TrainedModel | None":
    """The model without knowledge that `evaluate` compares this one with, where it is there."""
    from llm4msr.training.results import PLAIN

    with suppress(ConfigError):
        return trained(config.using(PLAIN, config.seed))
    return None


def _check_has_something_to_explain(config: Config) -> None:
    if not config.model.uses_knowledge and not config.model.match:
        raise ConfigError("model.knowledge = 'none': nothing to explain; set it to both, user, scenario or feature")


# --- all of them --------------------------------------------------------------------------------------------------


def run(config: Config) -> RunResult:
    """Prepare, extract, train every compared model, evaluate, export; the outputs in that order.

    Raises:
        InputError: the config or the data is wrong.
        TooManyFailedError: the LLM failed on too many rows.
    """
    return RunResult(config, [*stages(config)])


def stages(config: Config) -> Iterator[StageOutput]:
    """The same, stage by stage."""
    from llm4msr.export import export as export_stage
    from llm4msr.knowledge import extract as extract_stage
    from llm4msr.model import backbones
    from llm4msr.storage import cache
    from llm4msr.training import driver, side_by_side
    from llm4msr.training import evaluate as evaluate_stage
    from llm4msr.training import train as train_stage
    from llm4msr.training.evaluate import compared_runs
    from llm4msr.training.trained import TrainedModel

    export_stage.check_servable(config)
    runs = trainings(config)
    backbones.find(config.model.backbone)  # a wrong import path is reported before the LLM works for hours
    uses_knowledge = any(run.model.uses_knowledge for _, run in runs)
    driver.require_machines(config)  # and so are machines that can never come,
    if uses_knowledge:
        extract_stage.require_machines(config)
        cache.root()  # and a cache that cannot be written, which training needs
    inputs: dict[int, tuple[StageOutput, StageOutput | None]] = {}
    for dataset in datasets(config):
        label = f", seed {dataset.seed}" if goes_by_seed(dataset) else ""
        data, vectors = prepare(dataset), None
        yield _report(1, f"prepare{label}", data)
        if uses_knowledge:
            vectors = extract_stage.extract(dataset, data)
            yield _report(2, f"extract{label}", vectors)
        inputs[dataset.seed] = data, vectors

    def train_one(run: tuple[str, Config]) -> TrainedModel:
        _, training = run
        data, vectors = inputs.get(training.seed, inputs[config.seed])
        vectors = vectors if training.model.uses_knowledge else None
        return TrainedModel(training, data, vectors, train_stage.train(training, data, vectors))

    models: dict[tuple[str, int], TrainedModel] = {}
    places = side_by_side.places(config, max(partitions.rows(data, "train") for data, _ in inputs.values()))
    for (name, training), model in zip(runs, side_by_side.each(train_one, runs, places), strict=True):
        models[name, training.seed] = model
        yield _report(3, f"train {name}, seed {training.seed}", model.output)
    compared = _beside_words(config, [models[name, training.seed] for name, training in compared_runs(config)])
    yield _report(4, "evaluate", evaluate_stage.evaluate(config, compared))
    yield _report(5, "export", export_stage.export(config, models[config.model.variant, config.seed]))


def trainings(config: Config) -> list[tuple[str, Config]]:
    """Name and config of every model to train: those that are compared, and the one that is exported."""
    from llm4msr.training.evaluate import compared_runs

    runs = compared_runs(config)
    exported = config.model.variant, config.seed
    return runs if exported in [(run.model.variant, run.seed) for _, run in runs] else [*runs, (exported[0], config)]


def datasets(config: Config) -> list[Config]:
    """A config for each set of prepared data that the trainings need, this config the last."""
    others = dict.fromkeys(run.seed for _, run in trainings(config) if run.seed != config.seed)
    return [*(config.model_copy(update={"seed": seed}) for seed in others if goes_by_seed(config)), config]


def _report(number: int, stage: str, output: StageOutput) -> StageOutput:
    m = output.manifest
    how = "found finished" if output.reused else f"{'continued, ' * m.continued}{m.seconds:.0f} s"
    empty = m.info.get("users_without_likes", 0)  # counted as failed, since they have no vector
    without = f", {empty} users liked nothing" if empty else ""
    say(f"[{number}/5] {stage}: {m.rows} rows, {m.failed - empty} failed{without}, {how} -> {output.folder}")
    return output
