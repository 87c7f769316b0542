"""The stage that looks for better values of the ranker's keys: the configured model and, with the same budget, the
plain backbone beside it. Validation rows alone judge; test rows are never read."""

import json
from collections.abc import Sequence
from typing import NamedTuple

from upath import UPath

from llm4msr import ray_session, storage
from llm4msr.config import Config
from llm4msr.config.toml import as_toml, dump
from llm4msr.data import partitions
from llm4msr.errors import ConfigError
from llm4msr.progress import say
from llm4msr.storage import StageOutput, StageResult, cache
from llm4msr.text import mask, signed
from llm4msr.training import search_space
from llm4msr.training import train as train_stage
from llm4msr.training.results import PLAIN
from llm4msr.training.row_files import RowFiles
from llm4msr.training.search import search
from llm4msr.training.trials import Trial

VERSION = 1
TRIALS = "trials"
"""Folder beside the outputs that keeps the trials: searches of the same with other budgets share them."""


class Tuned(NamedTuple):
    """One model and its trials, the first with the settings of the config."""

    config: Config
    trials: list[Trial]

    @property
    def winner(self) -> Trial:
        """The trial with the best validation AUC."""
        return max(self.trials, key=lambda trial: trial.best)

    @property
    def result(self) -> Config:
        """The config with the winner's values, and nothing more to tune."""
        config = search_space.with_settings(self.config, self.winner.settings)
        return Config.model_validate(config.model_dump(exclude_unset=True, exclude={"tune"}))


def models(config: Config) -> list[Config]:
    """The models that are tuned: the plain backbone, and the configured one if it is another."""
    plain = config.using(PLAIN, config.seed)
    return [plain] if config.model.variant == PLAIN else [plain, config]


@ray_session.unwrap_errors
def tune(config: Config, data: StageOutput, knowledge: StageOutput | None) -> StageOutput:
    """Publish a TOML file for each model with the best values found, all trials and a table.

    Args:
        config: of which `model`, `train`, `tune` and `seed` count.
        data: what `prepare` published.
        knowledge: what `extract` published; None for a model without knowledge.

    Raises:
        ConfigError: the space does not suit the config, or validation rows have no AUC.
    """
    _require_auc(data)
    if knowledge is not None:
        cache.root()  # which the trials need
    works = [_work(one, data, knowledge if one.model.uses_knowledge else None) for one in models(config)]
    name = storage.digest_json([VERSION, config.tune.identity(), [work.name for work in works]])[:12]
    fingerprints = {"prepare": data.manifest.fingerprint}
    if knowledge is not None:
        fingerprints["extract"] = knowledge.manifest.fingerprint
    return storage.publish(
        storage.path(config.root) / "tune" / name,
        "tune",
        config.seed,
        config.model_dump(include={"model", "train", "tune"}),
        fingerprints,
        lambda folder: _build(config, data, knowledge, works, folder),
        resumable=True,
    )


def _require_auc(data: StageOutput) -> None:
    least, most = RowFiles(data, "valid", []).label_range() or (0, 1)
    if (least > 0.5) == (most > 0.5):
        raise ConfigError(
            f"{data.folder}: all validation rows are of one class, so they have no AUC to tune by; let split.negatives "
            "draw the other one"
        )


def _work(config: Config, data: StageOutput, knowledge: StageOutput | None) -> UPath:
    """The folder of a model's trials: its name tells what decides them, all but their number."""
    space = {key: as_toml(values) for key, values in search_space.space_of(config).items()}
    base = train_stage.folder(config, data, knowledge).name
    name = storage.digest_json([VERSION, base, config.tune.search, space])[:12]
    return storage.path(config.root) / "tune" / TRIALS / f"{base.rpartition('-')[0]}-{name}"


def _build(
    config: Config, data: StageOutput, knowledge: StageOutput | None, works: Sequence[UPath], folder: UPath
) -> StageResult:
    tuned = []
    for model, work in zip(models(config), works, strict=True):
        vectors = knowledge if model.model.uses_knowledge else None
        tuned.append(Tuned(model, search(model, search_space.space_of(model), data, vectors, work)))
    table = _table(tuned)
    files = {"table.md": len(tuned), "trials.json": sum(len(one.trials) for one in tuned)}
    storage.write_bytes(folder / "table.md", table.encode())
    trials = {one.config.model.variant: [_readable(trial) for trial in one.trials] for one in tuned}
    storage.write_bytes(folder / "trials.json", json.dumps(trials, indent=1, allow_nan=False).encode())
    for one in tuned:
        name = f"{one.config.model.variant}.toml"
        storage.write_bytes(folder / name, _toml(one).encode())
        files[name] = 1
        say(f"  {folder / name}: validation AUC {one.winner.best:.4f} (as configured {one.trials[0].best:.4f})")
    info = {"tuned": {one.config.model.variant: _summary(one) for one in tuned}, "warnings": []}
    return StageResult(files=files, rows=partitions.rows(data, "train"), info=info)


def _readable(trial: Trial) -> dict[str, object]:
    return {**trial.model_dump(), "settings": search_space.values_of(trial.settings)}


def _summary(one: Tuned) -> dict[str, object]:
    return {
        "valid_auc_as_configured": one.trials[0].best,
        "valid_auc": one.winner.best,
        "settings": search_space.values_of(one.winner.settings),
        "trials": len(one.trials),
    }


def _toml(one: Tuned) -> str:
    """A config to run, with its origin; secrets of its URIs are left out."""
    written = dump(one.result, defaults=False)
    hidden = mask(written)
    lines = [
        f"# Tuned in {len(one.trials)} trials: validation AUC {one.winner.best:.6f} after epoch "
        f"{one.winner.best_epoch}, {one.trials[0].best:.6f} as configured.",
        *(["# Write in what *** stands for: it was secret."] if hidden != written else []),
    ]
    return "\n".join([*lines, hidden, ""])


def _table(tuned: Sequence[Tuned]) -> str:
    """What was gained, and by what, as Markdown."""
    lines = [
        "| model | validation AUC as configured | tuned | gain | trials | stopped early | failed | training |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for one in tuned:
        before, after, trials = one.trials[0].best, one.winner.best, one.trials
        stopped, failed = sum(trial.stopped for trial in trials), sum(bool(trial.error) for trial in trials)
        seconds = sum(trial.seconds for trial in trials)
        lines.append(
            f"| `{one.config.model.variant}` | {before:.4f} | {after:.4f} | {signed(after - before)} | {len(trials)} | "
            f"{stopped} | {failed} | {seconds:.0f} s |"
        )
    for one in tuned:
        lines += ["", f"`{one.config.model.variant}`: {search_space.described(one.winner.settings)}"]
    return "\n".join([*lines, "", CAVEAT, ""])


CAVEAT = (
    "The best of many trials looks better on the rows that chose it than it is. Run both files to compare the models "
    "on test rows, each with several `evaluate.seeds`."
)
