"""All stages one after the other, from raw data to a bundle; what is finished already is not done again."""

from collections.abc import Iterator

from llm4msr import backbones, wheels
from llm4msr.config import Config
from llm4msr.evaluate import compared, evaluate
from llm4msr.export import check_servable, export
from llm4msr.extract import extract, require_machines
from llm4msr.prepare import goes_by_seed, prepare
from llm4msr.progress import say
from llm4msr.storage import StageOutput
from llm4msr.train import require_machines as require_workers
from llm4msr.train import train


def run(config: Config) -> list[StageOutput]:
    """Prepare, extract, train every compared model, evaluate, export.

    Raises:
        InputError: the config or the data is wrong.
        TooManyFailedError: the LLM failed on too many rows.
    """
    return list(stages(config))


def stages(config: Config) -> Iterator[StageOutput]:
    """The same, stage by stage."""
    check_servable(config)
    runs = trainings(config)
    backbones.find(config.model.backbone)  # a wrong import path is told before the LLM's hours
    knows = any(run.model.knowledge != "none" for _, run in runs)
    require_workers(config)  # so are machines that can never come,
    if knows:
        require_machines(config)
        wheels.cache_folder()  # and a cache that cannot be written, which training needs
    for one in datasets(config):
        of_seed = f", seed {one.seed}" if goes_by_seed(one) else ""
        yield _tell(1, f"prepare{of_seed}", prepare(one))
        if knows:
            yield _tell(2, f"extract{of_seed}", extract(one))
    for name, training in runs:
        yield _tell(3, f"train {name}, seed {training.seed}", train(training))
    yield _tell(4, "evaluate", evaluate(config))
    yield _tell(5, "export", export(config))


def trainings(config: Config) -> list[tuple[str, Config]]:
    """Name and config of every model to train: those that are compared, and the one that is exported."""
    runs = compared(config)
    exported = config.model.variant, config.seed
    return runs if exported in [(run.model.variant, run.seed) for _, run in runs] else [*runs, (exported[0], config)]


def datasets(config: Config) -> list[Config]:
    """A config for each set of prepared data that the trainings need, this config the last."""
    others = dict.fromkeys(run.seed for _, run in trainings(config) if run.seed != config.seed)
    return [*(config.model_copy(update={"seed": seed}) for seed in others if goes_by_seed(config)), config]


def _tell(number: int, stage: str, output: StageOutput) -> StageOutput:
    m = output.manifest
    how = "found finished" if output.reused else f"{'continued, ' * m.continued}{m.seconds:.0f} s"
    empty = m.info.get("users_without_likes", 0)  # counted as failed, since they have no vector
    without = f", {empty} users liked nothing" if empty else ""
    say(f"[{number}/5] {stage}: {m.rows} rows, {m.failed - empty} failed{without}, {how} -> {output.folder}")
    return output
