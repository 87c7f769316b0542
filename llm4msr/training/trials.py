"""The trials of a search: each that has ended is one JSON file, named by its settings."""

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, ValidationError
from upath import UPath

from llm4msr import storage
from llm4msr.progress import say
from llm4msr.training.search_space import Settings


class Trial(BaseModel):
    """One training, as its file has it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    number: int
    """How many had ended before it."""
    settings: Settings
    aucs: list[float]
    """The best validation AUC so far, after each epoch."""
    best_epoch: int
    stopped: bool
    """Whether it was given up early."""
    error: str
    """Why it could not go on; empty if nothing was wrong."""
    seconds: float

    @property
    def best(self) -> float:
        """Its best validation AUC; 0 if it failed, since training again with its settings would fail too."""
        return 0.0 if self.error else max(self.aucs, default=0.0)


def name_of(settings: Settings) -> str:
    """The name of the file of a trial with these settings, without `.json`."""
    return storage.digest_json(settings)[:12]


def read_all(folder: UPath) -> dict[str, Trial]:
    """The trials that have ended, by name; what cannot be read is tried again."""
    trials: dict[str, Trial] = {}
    for file in sorted(storage.files_below(folder)):
        try:
            trial = Trial.model_validate_json(storage.read_bytes(folder / file))
        except ValidationError:
            say(f"  {folder / file}: damaged; this trial runs again")
            continue
        if file == f"{name_of(trial.settings)}.json":
            trials[name_of(trial.settings)] = trial
    return trials


def earliest(ended: Mapping[str, Trial], own: str, most: int) -> dict[str, Trial]:
    """The config's own trial and those that ended first, so many in all, as an earlier search may have had more."""
    others = sorted(ended.keys() - {own}, key=lambda name: ended[name].number)
    return {name: ended[name] for name in [own, *others[: most - 1]] if name in ended}
