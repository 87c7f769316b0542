"""What data says of an item or a scenario, without any instruction: one line, for who reads the text alone."""

from collections.abc import Mapping, Sequence

import pyarrow as pa

from llm4msr.arrays import strings, typed_rows
from llm4msr.knowledge.prompts.templates import clean, most_tokens
from llm4msr.schema import FEATURE, ScenarioStatistics

MAX_OWN_TITLE = 200
"""Characters kept of an item's title: more than in a prompt, since nothing else stands beside it."""

MAX_SCENARIO_TOKENS = 250
"""A scenario's text names no more titles and categories than this allows: small encoders read 256 tokens."""


def item_texts(items: pa.Table, fields: Mapping[str, Sequence[str]]) -> list[str]:
    """Title and features of each item in a table of `schema.ITEMS`; `fields` are the vocabularies of its features."""
    values: list[list[str]] = [[] for _ in range(len(items))]
    for name, words in fields.items():
        column = items[FEATURE + name].to_pylist() if words else []
        for row, numbers in zip(values, column, strict=False):
            row += [words[number - 1] for number in (numbers if isinstance(numbers, list) else [numbers]) if number]
    titles = clean(strings(items["title"]), MAX_OWN_TITLE)
    return [_join(title, clean(row)) for title, row in zip(titles, values, strict=True)]


def scenario_texts(scenarios: pa.Table) -> list[str]:
    """Name, categories and most liked titles of each scenario in a table of `schema.SCENARIOS`, as many as fit."""
    return [_scenario_text(row) for row in typed_rows(scenarios, ScenarioStatistics)]


def _scenario_text(row: ScenarioStatistics) -> str:
    name, more = clean([row["scenario_id"]])[0], [*clean(row["categories"]), *clean(row["titles"])]
    while more and most_tokens(_join(name, more)) > MAX_SCENARIO_TOKENS:
        more.pop()
    return _join(name, more)


def _join(title: str, more: Sequence[str]) -> str:
    return ". ".join(part for part in (title, ", ".join(more)) if part)
