"""What `llm4msr tune` tries."""

import difflib
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator

from llm4msr.config.model import ModelConfig
from llm4msr.config.section import Key, Section
from llm4msr.config.training import TrainConfig

Value = bool | int | float | str | tuple[int, ...]

SECTIONS: dict[str, type[Section]] = {"model": ModelConfig, "train": TrainConfig}
FIXED = {"backbone", "knowledge", "control", "match", "past", "epochs", "patience", "warm_start"}
"""Keys that decide which models are compared, on what and for how long."""


class Range(Section):
    """Numbers between two bounds; whole ones where the key has whole numbers."""

    min: int | float
    """The smallest."""
    max: int | float
    """The greatest."""
    log: bool = False
    """Whether each order of magnitude is as likely as every other, as suits a learning rate."""

    @model_validator(mode="after")
    def _check_bounds(self) -> Self:
        if self.min >= self.max:
            raise ValueError(f"min = {self.min} is not below max = {self.max}")
        if self.log and self.min <= 0:
            raise ValueError(f"log = true needs a min above 0, not {self.min}")
        return self


Values = Annotated[tuple[Value, ...], Field(min_length=1)] | Range
"""Values of a key: a list of them, or a range."""


def _check_keys(section: str, space: Mapping[str, Values]) -> None:
    """Raise a ValueError if a key cannot be tuned, or cannot have one of the values."""
    known = [name for name, field in SECTIONS[section].model_fields.items() if Key.HOW not in field.metadata]
    known = [name for name in known if name not in FIXED]
    for key, values in space.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"those that can are {', '.join(known)}"
            raise ValueError(f"{section}.{key} cannot be tuned; {hint}")
        for value in (values.min, values.max) if isinstance(values, Range) else values:
            try:
                SECTIONS[section].model_validate({key: value})
            except ValidationError as error:
                raise ValueError(f"{section}.{key} cannot be {value!r}: {error.errors()[0]['msg']}") from None


def _check_model(space: dict[str, Values]) -> dict[str, Values]:
    _check_keys("model", space)
    return space


def _check_train(space: dict[str, Values]) -> dict[str, Values]:
    _check_keys("train", space)
    return space


class SpaceConfig(Section):
    """Keys that are tuned, each with a list of values or a range."""

    model: Annotated[dict[str, Values], AfterValidator(_check_model)] = Field({})
    """Keys of `[model]`, such as `dropout = [0.0, 0.2]` or `hidden = [[64, 32], [128, 64]]`."""
    train: Annotated[dict[str, Values], AfterValidator(_check_train)] = Field({})
    """Keys of `[train]`, such as `learning_rate = { min = 3e-4, max = 1e-2, log = true }`."""

    def items(self) -> Iterator[tuple[str, str, Values]]:
        """Section, key and values of each."""
        for section, space in (("model", self.model), ("train", self.train)):
            for key, values in space.items():
                yield section, key, values


class TuneConfig(Section):
    """The search for better values of the ranker's keys: `llm4msr tune`."""

    trials: int = Field(16, ge=2)
    """Trainings of each model, the first of them as configured. More of them later go on from those that there are."""
    search: Literal["random", "optuna"] = "random"
    """How values are chosen: drawn at random, or by Optuna (extra `tune`) in view of the trials that have ended."""
    space: SpaceConfig = SpaceConfig()
    """What is tuned; empty = what `llm4msr tune --help` lists. The config's own value of a key is tried in any case."""
