"""What a user is interested in, scenario by scenario: JSON that the LLM is held to, and how it is read back.

An engine that can be held to a JSON schema (vLLM) writes nothing else; with one that cannot, an answer may hold none.
The raw text is what the store keeps.
"""

from collections.abc import Collection
from typing import Any

from pydantic_core import from_json

from llm4msr.knowledge.prompts.templates import cleaned

MOST = 3
"""Interests in one scenario."""
LONGEST = 60
"""Characters of one."""


def json_schema(prompt: str, scenarios: Collection[str]) -> dict[str, Any]:
    """A list of interests for every scenario that has a line of titles in the prompt, by its name there."""
    lines = prompt.split("\n")
    shown = list(dict.fromkeys(cleaned(list(scenarios))))
    liked = [name for name in shown if any(line.startswith(f"{name}: ") for line in lines)]
    words = {"type": "string", "minLength": 1, "maxLength": LONGEST}
    some = {"type": "array", "items": words, "minItems": 1, "maxItems": MOST}
    names = liked or shown
    return {
        "type": "object",
        "properties": dict.fromkeys(names, some),
        "required": names,
        "additionalProperties": False,
    }


def read(answer: str, scenarios: Collection[str]) -> dict[str, list[str]]:
    """Scenario -> interests; of an answer that was cut off, what is whole; empty for any other text."""
    try:
        found = from_json(answer, allow_partial=True)
    except ValueError:
        return {}
    if not isinstance(found, dict):
        return {}
    whole = {
        name: _words(found[shown])
        for name, shown in zip(scenarios, cleaned(list(scenarios)), strict=True)
        if isinstance(found.get(shown), list)
    }
    return {name: words for name, words in whole.items() if words}


def _words(found: list[Any]) -> list[str]:
    words = [" ".join(one.split())[:LONGEST] for one in found if isinstance(one, str)]
    return [one for one in words if one][:MOST]
