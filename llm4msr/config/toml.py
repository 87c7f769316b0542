"""The configuration from one TOML file and `--set section.key=value`, and as TOML again."""

import difflib
import tomllib
from collections.abc import Iterable, Sequence
from typing import Any, cast

from pydantic import BaseModel, ValidationError

from llm4msr import storage
from llm4msr.config.experiment import Config
from llm4msr.config.section import Section
from llm4msr.errors import ConfigError
from llm4msr.text import as_json


def load(uri: str, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file from any URI and apply `section.key=value` overrides.

    Raises:
        ConfigError: not TOML, an unknown key (the nearest known one is named), or a bad value.
        StorageError: the file cannot be read.
    """
    try:
        document = tomllib.loads(storage.read_text(storage.path(uri)))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{uri}: not valid TOML: {error}") from None
    for override in overrides:
        _apply(document, override)
    try:
        return Config.model_validate(document)
    except ValidationError as error:
        raise ConfigError(
            "\n".join(_explain(uri, e["loc"], e["type"], e["input"], e["msg"]) for e in error.errors())
        ) from None


def _apply(document: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {override}: write it as section.key=value, for example train.epochs=5")
    *sections, last = key.strip().split(".")
    for section in sections:
        document = document.setdefault(section, {})
        if not isinstance(document, dict):
            raise ConfigError(f"--set {override}: '{section}' is a value, not a section")
    try:
        document[last] = _value(text)
    except RecursionError:
        raise ConfigError(f"--set {key}=...: the value is nested too deeply") from None


def _value(text: str) -> object:
    """A TOML value; a bare word is a string, in a list too, so that no quotes need escaping in a shell."""
    try:
        document = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        document = {}
    if list(document) == ["value"]:  # and no key after a line break
        return document["value"]
    stripped = text.strip()
    if stripped.startswith("[") and stripped.endswith("]"):
        return [_value(word.strip()) for word in stripped[1:-1].split(",") if word.strip()]
    return text


def _explain(uri: str, location: Sequence[int | str], kind: str, value: object, message: str) -> str:
    where = ".".join(map(str, location))
    if kind == "extra_forbidden":
        known = list(_keys_at(location[:-1]))
        near = difflib.get_close_matches(str(location[-1]), known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(known)}"
        return f"{uri}: unknown key '{where}'; {hint}"
    if kind == "missing":
        return f"{uri}: '{where}' is missing; add it to the file or with --set {where}=..."
    given = "" if isinstance(value, dict) else f" (given: {value!r})"
    if kind == "tuple_type" and given:
        given += f"; write [{value}]"
    return f"{uri}: '{where}': {message.removeprefix('Value error, ')}{given}"


def _keys_at(location: Sequence[int | str]) -> Iterable[str]:
    section: type[BaseModel] = Config
    for key in location:
        section = cast("type[BaseModel]", section.model_fields[str(key)].annotation)
    return section.model_fields


def dump(config: Section, name: str = "", defaults: bool = True) -> str:
    """Every key as TOML, `# default` behind those that were not given, or without them; it loads as the same config."""
    values = {key: getattr(config, key) for key in type(config).model_fields}
    if not defaults:
        values = {key: value for key, value in values.items() if key in config.model_fields_set}
    sections = {key: value for key, value in values.items() if isinstance(value, Section)}
    lines = [f"[{name}]"] if name else []
    for key in [key for key in values if key not in sections]:
        mark = "" if key in config.model_fields_set else "  # default"
        lines.append(f"{key} = {as_toml(values[key])}{mark}")
    parts = [dump(section, f"{name}.{key}" if name else key, defaults) for key, section in sections.items()]
    return "\n\n".join(["\n".join(lines), *parts])


def as_toml(value: object) -> str:
    """A value as TOML writes it: text, numbers, booleans, and lists and tables of them."""
    if isinstance(value, Section):
        return as_toml(value.model_dump(exclude_unset=True))
    if isinstance(value, str):
        return as_json(value)  # JSON's escapes are TOML's too
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(as_toml, value))}]"
    if isinstance(value, dict):
        pairs = ", ".join(f"{as_toml(key)} = {as_toml(inner)}" for key, inner in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    return repr(value)
