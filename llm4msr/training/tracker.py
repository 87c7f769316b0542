"""A training as a run of MLflow or Weights & Biases, where `train.tracker` asks for it.

It is written where `llm4msr` was started, from the epochs that the driver is told of: so credentials stay in that
process's environment, and a run survives its workers. Ray's own `setup_mlflow` and `setup_wandb` write in a worker,
through the one active run of its process. A training that goes on goes on in the same run. A tracker that fails is
warned of once, and training goes on without it.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from upath import UPath

from llm4msr.config import Config
from llm4msr.errors import ConfigError
from llm4msr.progress import warn
from llm4msr.storage.manifest import mask_values
from llm4msr.text import mask, shorten
from llm4msr.training.checkpoint import Epoch

_TAG = "llm4msr.output"
"""By which a run of MLflow is found again: the name of the training's folder."""


class Run(NamedTuple):
    """A run that is open at a tracker."""

    write: Callable[[dict[str, float], int], object]
    """Takes the metrics of an epoch, and its number."""
    end: Callable[[bool], object]
    """Takes whether training came to its end."""


@contextlib.contextmanager
def open_run(config: Config, output: UPath) -> Iterator[Callable[[Epoch], None]]:
    """A function that writes an epoch to the tracker, or does nothing, while the block runs.

    Raises:
        ConfigError: the tracker's package is missing.
    """
    name = config.train.tracker
    run: Run | None = None
    if name != "none":
        with _warnings(name):
            run = (_mlflow if name == "mlflow" else _wandb)(config, output.name)

    def write(epoch: Epoch) -> None:
        nonlocal run
        if run is not None:
            values = {key: float(value) for key, value in epoch.items() if isinstance(value, int | float)}
            with _warnings(name):
                run.write(values, epoch["epoch"])
                return
            run = None

    def end(is_whole: bool) -> None:
        if run is not None:
            with _warnings(name):
                run.end(is_whole)

    try:
        yield write
    except BaseException:
        end(False)
        raise
    end(True)


@contextlib.contextmanager
def _warnings(tracker: str) -> Iterator[None]:
    """Turn what the block raises into a warning."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        warn(f"train.tracker = '{tracker}': {shorten(mask(str(error)), 200)}; training goes on without it")


def settings(config: Config) -> dict[str, Any]:
    """What a run says of its model: flat, without secrets."""
    flat: dict[str, Any] = {"seed": config.seed}
    for section in ("model", "train"):
        flat |= {f"{section}.{key}": value for key, value in getattr(config, section).model_dump(mode="json").items()}
    return mask_values(flat)


def _mlflow(config: Config, name: str) -> Run:
    try:
        from mlflow import MlflowClient
    except ImportError:
        raise ConfigError("train.tracker = 'mlflow' needs `pip install 'llm4msr[mlflow]'`") from None
    client = MlflowClient()
    experiment = client.get_experiment_by_name(config.name)
    number = experiment.experiment_id if experiment else client.create_experiment(config.name)
    earlier = client.search_runs([number], f"tags.`{_TAG}` = '{name}'")
    run = (earlier or [client.create_run(number, tags={_TAG: name}, run_name=name)])[0].info.run_id
    client.update_run(run, status="RUNNING")
    for key, value in [] if earlier else settings(config).items():
        client.log_param(run, key, value)

    def write(values: dict[str, float], step: int) -> None:
        for key, value in values.items():
            client.log_metric(run, key, value, step=step)

    return Run(write, lambda is_whole: client.set_terminated(run, "FINISHED" if is_whole else "FAILED"))


def _wandb(config: Config, name: str) -> Run:
    try:
        import wandb
    except ImportError:
        raise ConfigError("train.tracker = 'wandb' needs `pip install 'llm4msr[wandb]'`") from None
    # nothing of this machine, its environment or its files goes along
    alone = wandb.Settings(
        console="off",
        silent=True,
        disable_git=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )
    run = wandb.init(
        project=config.name,
        id=name,
        name=name,
        resume="allow",
        reinit="create_new",
        config=settings(config),
        settings=alone,
    )
    return Run(lambda values, step: run.log(values, step=step), lambda is_whole: run.finish(int(not is_whole)))
