"""The JSON schema of the TOML file, by which editors complete keys and check values."""

from collections.abc import Iterator
from typing import Any

from llm4msr.config.experiment import Config
from llm4msr.config.section import Section


def json_schema() -> dict[str, Any]:
    """The schema, in which the docstrings of sections and keys are the descriptions."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema"} | Config.model_json_schema()
    _join_lines(schema)
    return schema | {"title": "llm4msr"}


def _join_lines(part: object) -> None:
    """Make each description one line, without the line breaks of the source code."""
    if isinstance(part, list):
        for inner in part:
            _join_lines(inner)
    if isinstance(part, dict):
        for inner in part.values():
            _join_lines(inner)
        if isinstance(part.get("description"), str):
            part["description"] = " ".join(part["description"].split())


def keys(section: type[Section] = Config, prefix: str = "") -> Iterator[str]:
    """Every key of the file with its sections before it, as `--set` takes them."""
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from keys(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
