"""What is finished for a config: the outputs that stages published, found and opened again.

The one place, with `pipeline`, that knows which outputs belong to a config.
"""

from typing import TYPE_CHECKING

from upath import UPath

from llm4msr import storage
from llm4msr.config import Config
from llm4msr.data import prepare as prepare_stage
from llm4msr.data.prepare import goes_by_seed
from llm4msr.errors import ConfigError
from llm4msr.storage import StageOutput

if TYPE_CHECKING:
    from llm4msr.training.trained import TrainedModel


def prepared(config: Config) -> StageOutput:
    """The finished output of `prepare`. Each of these raises a ConfigError where there is none yet: it tells how."""
    first = f"`llm4msr prepare` with --set seed={config.seed}" if goes_by_seed(config) else "`llm4msr prepare`"
    return _finished(prepare_stage.folder(config), f"nothing prepared for this config; run {first} first")


def extracted(config: Config) -> StageOutput:
    """The finished output of `extract`."""
    from llm4msr.knowledge import extract as extract_stage

    folder = extract_stage.folder(config, prepared(config))
    if (folder / "index").exists() and not (folder / storage.MANIFEST).exists():
        raise ConfigError(
            f"{folder / storage.MANIFEST}: missing; run `llm4msr extract` again: it makes a new one and keeps all rows"
        )
    return _finished(folder, "no finished extraction for this config; run `llm4msr extract` first")


def trained(config: Config) -> "TrainedModel":
    """The model that `train` made, with what it was trained on."""
    from llm4msr.training import train as train_stage
    from llm4msr.training.trained import TrainedModel

    data, vectors = inputs(config)
    model = config.model
    how = (
        f"'{model.variant}' with seed {config.seed} is not trained yet; run `llm4msr train` with "
        f"--set model.knowledge={model.knowledge} --set model.control={model.control} "
        f"--set seed={config.seed}, or `llm4msr run`, which trains all that `evaluate` compares"
    )
    return TrainedModel(config, data, vectors, _finished(train_stage.folder(config, data, vectors), how))


def exported(config: Config) -> StageOutput:
    """The bundle that is served: `serve.bundle`, else what `export` published."""
    if config.serve.bundle:
        from llm4msr.storage import local_copy

        return local_copy.open_finished(config.serve.bundle)
    from llm4msr.export import export as export_stage

    folder = export_stage.folder(config, trained(config).output)
    return _finished(folder, "no bundle for this config yet; run `llm4msr export` first")


def inputs(config: Config) -> tuple[StageOutput, StageOutput | None]:
    """What a model is trained on: prepared data, and knowledge where the model uses any."""
    return prepared(config), extracted(config) if config.model.uses_knowledge else None


def _finished(folder: UPath, otherwise: str) -> StageOutput:
    found = storage.open_output(folder)
    if found is None:
        raise ConfigError(f"{folder}: {otherwise}")
    return found
