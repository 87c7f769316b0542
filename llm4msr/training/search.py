"""Trials of one model on Ray Tune: each trains with some settings in a process of its own, and is judged after every
epoch by its best validation AUC so far.

What is weak is stopped early (ASHA). Since that AUC never falls, the best trial is never one that was stopped: whatever
stopped it would be better, unless that one failed later. So training again with the best settings comes to the very AUC
that was found here.

Each trial that has ended leaves one JSON file, from which an interrupted search goes on; a trial that had not ended
begins anew. One search at a time works on the trials of a model. Ray Tune's own state, which could be restored instead,
is made of pickles, and whoever can write to the storage could have them run anything: it goes to a temporary folder and
is never read.
"""

import os
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, TypedDict

from ray import tune
from ray.tune import Callback, FailureConfig, RunConfig, TuneConfig
from ray.tune.schedulers import AsyncHyperBandScheduler
from ray.tune.search.basic_variant import BasicVariantGenerator
from upath import UPath

from llm4msr import ray_session, storage
from llm4msr.config import Config
from llm4msr.config.tuning import Values
from llm4msr.errors import ConfigError, LLM4MSRError
from llm4msr.progress import Track, track
from llm4msr.storage import StageOutput, lock
from llm4msr.text import first_line
from llm4msr.training import search_space
from llm4msr.training.checkpoint import Checkpoint
from llm4msr.training.search_space import Settings
from llm4msr.training.trials import Trial, earliest, name_of, read_all

AUC = "best_auc"
"""Name of what trials are judged by: the best validation AUC of all epochs so far."""
SURE_EPOCHS, KEPT = 2, 3
"""ASHA: how many epochs every trial has, and that the best third goes on at each later look."""
MAX_FAILURES = 2
"""Times that a trial whose process died begins anew."""
NAMED = 3
"""Trials that a message names."""


class Job(TypedDict):
    """What every trial is given."""

    config: Config
    data: str
    """URI of what `prepare` published."""
    knowledge: str
    """URI of what `extract` published; empty for a model without knowledge."""


def search(
    config: Config, space: Mapping[str, Values], data: StageOutput, knowledge: StageOutput | None, folder: UPath
) -> list[Trial]:
    """The trials of this model, the one with its own settings first; those that have a file below `folder` are found.

    Raises:
        ConfigError: the extra for the search is missing, this Ray lacks a GPU, or training fails with its own settings.
    """
    own, trials = search_space.own_settings(config, space), config.tune.trials
    with lock.hold(folder):
        ended = read_all(folder)
        if config.tune.search == "random":
            wanted = search_space.draw(config, space, trials)
            ended = {name: trial for name, trial in ended.items() if trial.settings in wanted}
            missing = [one for one in wanted if name_of(one) not in ended]
            left = len(missing)
        else:
            ended = earliest(ended, name_of(own), trials)
            missing = [] if name_of(own) in ended else [own]
            left = trials - len(ended)
        if left:
            domains = search_space.domains(space)
            searcher: Any = BasicVariantGenerator(points_to_evaluate=missing)
            if config.tune.search == "optuna":
                searcher, domains = _optuna(config, domains, missing, ended.values()), {}  # which it has
            label = f"tune {config.model.backbone} {config.model.variant}"
            with track(label, left + len(ended), len(ended)) as progress:
                keeper = _Keeper(config, own, folder, ended, progress)
                _run(_job(config, data, knowledge), domains, searcher, left, keeper)
    first = ended.pop(name_of(own))
    if first.error:
        raise ConfigError(first.error)
    return [first, *sorted(ended.values(), key=lambda trial: trial.best, reverse=True)]


def _job(config: Config, data: StageOutput, knowledge: StageOutput | None) -> Job:
    return Job(config=config, data=str(data.folder), knowledge=str(knowledge.folder) if knowledge else "")


def _run(job: Job, space: dict[str, Any], searcher: Any, trials: int, keeper: "_Keeper") -> None:
    """Run trials with Ray Tune; `space` is empty where the searcher has its own.

    Raises:
        LLM4MSRError: a trial has left no result; told after all others have ended.
    """
    ray_session.connect()
    gpus = int(job["config"].train.device == "gpu")
    ray_session.require_resources(f"train.device = '{job['config'].train.device}'", {"CPU": 1, "GPU": gpus})
    ray_session.say_if_busy(1, "GPU" if gpus else "CPU")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the other kind shows a table though it shall be silent
    os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")  # they are told once, at the end
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C ends this command as every other
    with tempfile.TemporaryDirectory() as aside:
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(_train, job=job), {"CPU": 1, "GPU": gpus}),
            param_space=space,
            tune_config=TuneConfig(num_samples=trials, search_alg=searcher, scheduler=keeper.scheduler),
            run_config=RunConfig(
                name="tune",
                storage_path=aside,
                verbose=0,
                callbacks=[keeper],
                failure_config=FailureConfig(max_failures=MAX_FAILURES),
            ),
        )
        results = tuner.fit()
    if results.errors:
        raise _lost(keeper.lost, results.errors[0])


def _lost(lost: Sequence[Settings], error: Exception | str) -> Exception:
    """What to raise where trials were lost; `error` is of one of them, and a text if it could not be pickled."""
    if isinstance(error, Exception) and ray_session.our_error(error):
        return error  # which says more; `unwrap_errors` finds it
    cause = getattr(error, "cause", error)
    why = f"{type(cause).__name__}: {first_line(cause)}" if isinstance(cause, Exception) else cause[-300:].strip()
    named = "; ".join(search_space.described(settings) for settings in lost[:NAMED]) + ", ..." * (len(lost) > NAMED)
    return LLM4MSRError(
        f"{len(lost)} of the trials died {MAX_FAILURES + 1} times and left no result: those with {named} ({why}). All "
        "others are kept, and the same command tries these again; if they die again, their processes may need more "
        "memory, or [tune.space] other values"
    )


def _train(settings: Settings, job: Job) -> None:
    """One trial: train with these settings, and report after each epoch."""
    import torch

    from llm4msr.training.dataset import Dataset
    from llm4msr.training.loop import fit

    torch.set_num_threads(1)
    config = search_space.with_settings(job["config"], settings)
    aucs: list[float] = []
    latest: dict[str, Any] = {"aucs": aucs, "epoch": 0, "best_epoch": 0, AUC: 0.0, "error": ""}

    def report(state: Checkpoint) -> None:
        progress = state.progress
        if progress.batch == 0:
            assert progress.best_auc is not None  # `tune` refuses validation rows of one class
            aucs.append(progress.best_auc)
            latest.update({"epoch": progress.epoch, "best_epoch": progress.best_epoch, AUC: progress.best_auc})
            tune.report({**latest, "aucs": [*aucs]})

    prepared = storage.open_output(storage.path(job["data"]))
    extracted = storage.open_output(storage.path(job["knowledge"])) if job["knowledge"] else None
    assert prepared is not None
    try:
        fit(config, Dataset.open(config, prepared, extracted), None, report)
    except (ConfigError, torch.OutOfMemoryError) as error:  # too large a step, or model: other settings may do
        tune.report({**latest, "error": first_line(error)})


class _Keeper(Callback):
    """Writes the file of each trial that has ended, and says what is best so far."""

    def __init__(self, config: Config, own: Settings, folder: UPath, ended: dict[str, Trial], progress: Track):
        self.config, self.folder, self.ended, self.progress = config, folder, ended, progress
        self.scheduler = _Halving(own, config.train.epochs, ended.values())
        self.lost: list[Settings] = []
        """Of the trials that died as often as they may."""

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Called by Ray Tune in this process."""
        self.lost.append(trial.config)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Called by Ray Tune in this process."""
        result = trial.last_result
        if "aucs" not in result:
            return  # it ended before its first epoch did
        t = self.config.train
        epochs, patience = len(result["aucs"]), t.patience
        kept = Trial(
            number=len(self.ended),
            settings=trial.config,
            aucs=result["aucs"],
            best_epoch=result["best_epoch"],
            stopped=not result["error"] and epochs < t.epochs and epochs - result["best_epoch"] < patience,
            error=result["error"],
            seconds=round(result["time_total_s"], 1),
        )
        name = name_of(kept.settings)
        storage.write_bytes(self.folder / f"{name}.json", kept.model_dump_json().encode())
        self.ended[name] = kept
        best = max(trial.best for trial in self.ended.values())
        self.progress.advance(1, f"best validation AUC {best:.4f}")


class _Halving(AsyncHyperBandScheduler):
    """ASHA that knows the trials of an interrupted search, and lets the config's own settings train to their end."""

    def __init__(self, own: Settings, epochs: int, ended: Iterable[Trial]):
        super().__init__(
            time_attr="epoch",
            metric=AUC,
            mode="max",
            max_t=epochs,
            grace_period=min(SURE_EPOCHS, epochs),
            reduction_factor=KEPT,
        )
        self.own = own
        for number, trial in enumerate(trial for trial in ended if not trial.error):
            past = SimpleNamespace(trial_id=f"ended-{number}", config=trial.settings)
            self.on_trial_add(None, past)
            for epoch, auc in enumerate(trial.aucs, start=1):
                self.on_trial_result(None, past, {"epoch": epoch, AUC: auc})

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Whether the trial goes on."""
        decision: str = super().on_trial_result(tune_controller, trial, result)
        return self.CONTINUE if trial.config == self.own else decision


def _optuna(config: Config, domains: dict[str, Any], first: list[Settings], ended: Collection[Trial]) -> Any:
    """Optuna's search (TPE), which knows the trials that have ended."""
    try:
        import optuna
    except ImportError:
        raise ConfigError("tune.search = 'optuna' needs `pip install 'llm4msr[tune]'`, or set it to 'random'") from None
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    converted = OptunaSearch.convert_search_space(domains)
    seed = (config.seed + len(ended)) % (1 << 32)  # a search that goes on draws others than it began with
    searcher = OptunaSearch(converted, metric=AUC, mode="max", points_to_evaluate=first, seed=seed)
    for trial in ended:
        searcher.add_evaluated_point(trial.settings, trial.best)
    return searcher
