"""A user's interests, scenario by scenario: JSON that the LLM is held to, and how it is read back.

An engine that can be held to a JSON schema (vLLM) writes nothing else; with one that cannot, an answer may hold none.
The raw text is what the store keeps.
"""

from collections.abc import Collection

from pydantic_core import from_json

from llm4msr.knowledge.engines.base import JsonSchema
from llm4msr.knowledge.prompts.templates import clean

MOST = 3
"""Interests in one scenario."""
LONGEST = 60
"""Characters of an interest."""


def json_schema(prompt: str, scenarios: Collection[str]) -> JsonSchema:
    """A list of interests for every scenario that has a line of titles in the prompt, by its name there.

    All scenarios where none has such a line, as in a prompt of another form.
    """
    lines = prompt.split("\n")
    known = list(dict.fromkeys(clean(list(scenarios))))
    liked = [name for name in known if any(line.startswith(f"{name}: ") for line in lines)]
    interest = {"type": "string", "minLength": 1, "maxLength": LONGEST}
    interests = {"type": "array", "items": interest, "minItems": 1, "maxItems": MOST}
    names = liked or known
    return {
        "type": "object",
        "properties": dict.fromkeys(names, interests),
        "required": names,
        "additionalProperties": False,
    }


def read(answer: str, scenarios: Collection[str]) -> dict[str, list[str]]:
    """Scenario -> interests: those that are whole in an answer that was cut off, none in any other text."""
    try:
        content = from_json(answer, allow_partial=True)
    except ValueError:
        return {}
    if not isinstance(content, dict):
        return {}
    interests = {
        scenario: _clip(content[name])
        for scenario, name in zip(scenarios, clean(list(scenarios)), strict=True)
        if isinstance(content.get(name), list)
    }
    return {scenario: words for scenario, words in interests.items() if words}


def _clip(interests: list[object]) -> list[str]:
    words = [" ".join(interest.split())[:LONGEST] for interest in interests if isinstance(interest, str)]
    return [interest for interest in words if interest][:MOST]
