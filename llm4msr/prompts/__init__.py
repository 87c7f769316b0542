"""Prompts from templates: text files with `$name` places, the shared instruction first and what varies last.

All users' prompts begin with the same instruction, so that the LLM's key-value cache of it is computed once.
After a line of three dashes a template can begin the answer: the LLM reads on from there.
The fingerprint of a prompt and of what reads it identifies a vector: same fingerprint, same vector.
"""

from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

from llm4msr import storage
from llm4msr.errors import ConfigError

MAX_TITLE = 80
"""Characters kept of a title; shop titles can run to hundreds."""

ANSWER_BEGINS = "\n---\n"
"""Between a prompt and the beginning of its answer; titles and categories are put in without line breaks."""

_FOLDER = Path(__file__).parent
_FIELDS = {
    "user": {"history"},
    "item": {"title", "categories"},
    "scenario": {
        "scenario", "scenarios", "interactions", "users", "items", "positive_rate", "categories", "titles",
        "shared_users",
    },
}  # fmt: skip


def template(kind: str, uri: str = "") -> Template:
    """The `user`, `item` or `scenario` template: the user's own file, or the one shipped here.

    Raises:
        ConfigError: it names an unknown place, or lacks `$history` (of a user) or `$title` (of an item).
        StorageError: the file cannot be read.
    """
    where = uri or f"{kind}.txt"
    try:
        text = storage.read_bytes(storage.path(uri or _FOLDER / f"{kind}.txt")).decode().rstrip("\n")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: not UTF-8 text ({error})") from None
    found = Template(text)
    if not found.is_valid():
        raise ConfigError(f"{where}: a lone '$'; write '$$' for a dollar sign, or one of {_places(kind)}")
    names = set(found.get_identifiers())
    if names - _FIELDS[kind]:
        raise ConfigError(f"{where}: unknown place '${min(names - _FIELDS[kind])}'; known: {_places(kind)}")
    needed = {"user": "history", "item": "title"}.get(kind)
    if needed and needed not in names:
        raise ConfigError(f"{where}: '${needed}' is missing, so all {kind}s would get one prompt")
    return found


def user_prompt(instruction: Template, history: list[Mapping[str, Any]], titles_per_scenario: int) -> str:
    """One user's prompt: a line per scenario with the latest liked titles, oldest first. Empty without any."""
    lines = [f"{s['scenario_id']}: {_join(s['titles'][-titles_per_scenario:])}" for s in history if s["titles"]]
    return instruction.substitute(history="\n".join(lines)) if lines else ""


def item_prompt(instruction: Template, title: str, categories: list[str]) -> str:
    """One item's prompt."""
    words = ", ".join(" ".join(word.split()) for word in categories)
    return instruction.substitute(title=_join([title]), categories=words or "not known")


def scenario_prompt(instruction: Template, scenario: Mapping[str, Any], names: list[str]) -> str:
    """One scenario's prompt from its row of `schema.SCENARIOS`; `names` are all scenarios."""
    shared = [f"{s['scenario_id']} {100 * s['fraction']:.0f}%" for s in scenario["shared_users"]]
    return instruction.substitute(
        scenario=scenario["scenario_id"],
        scenarios=", ".join(names),
        interactions=scenario["interactions"],
        users=scenario["users"],
        items=scenario["items"],
        positive_rate=f"{100 * scenario['positive_rate']:.0f}",
        categories=", ".join(scenario["categories"]) or "not known",
        titles=_join(scenario["titles"]) or "not known",
        shared_users=", ".join(shared) or "none",
    )


def fingerprint(prompt: str, reader: str) -> str:
    """Identity of a vector: the prompt as sent, and the `reader` (model, revision and pooling) of it."""
    return storage.digest(prompt, reader)


def _join(titles: list[str]) -> str:
    return "; ".join(" ".join(title.split())[:MAX_TITLE] for title in titles)


def _places(kind: str) -> str:
    return ", ".join(f"${name}" for name in sorted(_FIELDS[kind]))
