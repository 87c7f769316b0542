"""What `tune` tries for a model: settings, which are values of some of its keys.

A setting's value is a number, or the text of a JSON value where the key has a list of choices, so that any search takes
it: lists such as `model.hidden` too.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from ray import tune

from llm4msr.config import Config, ModelConfig, Range, SpaceConfig
from llm4msr.config.toml import as_toml
from llm4msr.config.tuning import Values
from llm4msr.errors import ConfigError

Settings = dict[str, float | int | str]
"""`section.key` -> its value as the search has it."""

DEFAULT = SpaceConfig(
    model={
        "dropout": (0.0, 0.1, 0.2, 0.4),
        "embedding_dim": (8, 16, 32),
        "hidden": ((64, 32), (128, 64), (256, 128)),
        "code_dim": (16, 32, 64),
        "meta_rank": (4, 8, 16),
        "knowledge_dropout": (0.0, 0.1, 0.3),
    },
    train={
        "learning_rate": Range(min=3e-4, max=1e-2, log=True),
        "weight_decay": (1e-5, 1e-2, 0.1, 0.5),
    },
)
"""What is tuned where `[tune.space]` names nothing."""
DIGITS = 4
"""Of a number that is drawn from a range: a config is read by people."""
DRAWS = 50
"""Times that a setting is drawn again before the space counts as exhausted."""


def space_of(config: Config) -> dict[str, Values]:
    """`section.key` -> values, for the keys that this model has; the config's own value is among the choices.

    Raises:
        ConfigError: its own value is 0, and the range has no 0 since it goes by orders of magnitude.
    """
    chosen = config.tune.space
    wanted = chosen if chosen.model or chosen.train else DEFAULT
    space: dict[str, Values] = {}
    for section, key, values in wanted.items():
        if section == "train" or _has(config.model, key):
            own = getattr(getattr(config, section), key)
            space[f"{section}.{key}"] = _with_own(f"{section}.{key}", values, own)
    if not space:
        raise ConfigError(f"tune.space: none of its keys is one of '{config.model.variant}'; name others too")
    return space


def _has(model: ModelConfig, key: str) -> bool:
    """Whether a key of `[model]` means anything to this model."""
    generates = model.knowledge in ("user", "scenario", "both")
    return {
        "code_dim": model.uses_knowledge,
        "past_events": model.reads_pasts,
        "knowledge_dropout": model.reads_codes,
        "fusion": model.knowledge in ("scenario", "both"),
        "meta_rank": generates,
        "meta_layers": generates,
        "meta_residual": model.knowledge in ("user", "both"),
    }.get(key, True)


def _with_own(name: str, values: Values, own: Any) -> Values:
    if not isinstance(values, Range):
        return (own, *(value for value in values if value != own))
    if values.log and own <= 0:
        raise ConfigError(
            f"tune.space.{name}: a range by orders of magnitude has no {own}, which the config has; give a list of "
            "values, or the key itself another one"
        )
    kind = type(own)  # a share's range may be written with the bound 0, a width's with 8.0
    return values.model_copy(update={"min": kind(min(values.min, own)), "max": kind(max(values.max, own))})


def domains(space: Mapping[str, Values]) -> dict[str, Any]:
    """The same space in Ray Tune's terms."""
    return {key: _domain(values) for key, values in space.items()}


def _domain(values: Values) -> Any:
    if not isinstance(values, Range):
        return tune.choice([json.dumps(value) for value in values])
    if isinstance(values.min, int) and isinstance(values.max, int):
        return (tune.lograndint if values.log else tune.randint)(values.min, values.max + 1)
    return (tune.loguniform if values.log else tune.uniform)(values.min, values.max)


def own_settings(config: Config, space: Mapping[str, Values]) -> Settings:
    """The config's own values, as the search has them."""
    document = config.model_dump()
    own: Settings = {}
    for key, values in space.items():
        section, name = key.split(".")
        value = document[section][name]
        own[key] = value if isinstance(values, Range) else json.dumps(value)
    return own


def draw(config: Config, space: Mapping[str, Values], trials: int) -> list[Settings]:
    """So many different settings, the config's own first, or all that there are. More of them begin with the same."""
    settings = [own_settings(config, space)]
    rng = np.random.default_rng(config.seed)
    by_key = domains(space)
    for _ in range(DRAWS * trials):
        if len(settings) == trials:
            break
        drawn = {key: _draw(domain, rng) for key, domain in by_key.items()}
        if drawn not in settings:
            settings.append(drawn)
    return settings


def _draw(domain: Any, rng: np.random.Generator) -> float | int | str:
    """A float of few digits, anything else as it is, in Python's own types."""
    value = domain.sample(random_state=rng)
    if isinstance(value, float):
        return min(max(float(f"{value:.{DIGITS}g}"), domain.lower), domain.upper)
    return value if isinstance(value, str) else int(value)


def values_of(settings: Settings) -> dict[str, Any]:
    """`section.key` -> the value that the config takes."""
    return {key: json.loads(value) if isinstance(value, str) else value for key, value in settings.items()}


def described(settings: Settings) -> str:
    """The settings for people: `model.dropout = 0.2, model.hidden = [64, 32]`."""
    return ", ".join(f"{key} = {as_toml(value)}" for key, value in values_of(settings).items())


def with_settings(config: Config, settings: Settings) -> Config:
    """The config with these values; what it does not say stays unsaid."""
    document = config.model_dump(exclude_unset=True)
    for key, value in values_of(settings).items():
        section, name = key.split(".")
        document.setdefault(section, {})[name] = value
    return Config.model_validate(document)
