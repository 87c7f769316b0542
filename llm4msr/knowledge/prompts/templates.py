"""Prompts from templates: text files with placeholders `$name`, the shared instruction first and what varies last.

All users' prompts begin with the same instruction, so that the LLM's key-value cache of it is computed once.
After a line of three dashes a template can begin the answer, which the LLM then goes on with.
What replaces a placeholder comes from data: one line each, without control characters, and of bounded length.
The fingerprint of a prompt and of its reader identifies a vector: same fingerprint, same vector.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm4msr import storage
from llm4msr.arrays import Column, Ints
from llm4msr.errors import ConfigError
from llm4msr.schema import ScenarioStatistics

MAX_TITLE = 80
"""Characters kept of a title, a category or a scenario's name; shop titles can run to hundreds."""
ALL_NAMED, NEAREST = 20, 8
"""A scenario's prompt names all scenarios, if there are at most so many; else those that share the most users with it,
and counts the rest."""
MAX_TITLES, MAX_CATEGORIES = 10, 5
"""In a scenario's prompt."""
CHARACTERS_PER_TOKEN = 3
"""At least so many in ASCII; elsewhere each byte can be a token, as in Chinese for a tokenizer made for English."""

ANSWER_BEGINS = "\n---\n"
"""Between a prompt and the beginning of its answer; what comes from data holds no such line."""
_CONTROLS = r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff]"
"""Control characters, line breaks among them, and those that turn the direction of text: blanks in a prompt."""
_CONTROLS_RE2 = re.sub(r"\\u(....)", r"\\x{\1}", _CONTROLS)

_FOLDER = Path(__file__).parent
_PLACEHOLDERS = {
    "user": {"history"},
    "item": {"title", "categories"},
    "scenario": {
        "scenario", "scenarios", "interactions", "users", "items", "positive_rate", "categories", "titles",
        "shared_users",
    },
}  # fmt: skip


def read(kind: str, uri: str = "") -> Template:
    """The `user`, `item` or `scenario` template: the file at `uri`, or the one shipped here.

    Raises:
        ConfigError: it has an unknown placeholder, or one in the answer's beginning, or lacks `$history` (of a user),
            `$title` (of an item) or any placeholder that tells one scenario from another.
        StorageError: the file cannot be read, or is not UTF-8.
    """
    name = uri or f"{kind}.txt"
    text = storage.read_text(storage.path(uri or _FOLDER / f"{kind}.txt"))
    if "\0" in text:
        raise ConfigError(f"{name}: holds a NUL character; save it as plain text in UTF-8")
    template = Template("\n".join(line.rstrip() for line in text.split("\n")).rstrip("\n"))
    if not template.is_valid():
        raise ConfigError(f"{name}: a lone '$'; write '$$' for a dollar sign, or one of {_known_placeholders(kind)}")
    placeholders = set(template.get_identifiers())
    if unknown := placeholders - _PLACEHOLDERS[kind]:
        raise ConfigError(f"{name}: unknown place '${min(unknown)}'; known: {_known_placeholders(kind)}")
    in_answer = Template(template.template.partition(ANSWER_BEGINS)[2]).get_identifiers()
    if in_answer:
        raise ConfigError(
            f"{name}: '${in_answer[0]}' stands after the line '---'; the answer's beginning holds no data"
        )
    needed = {"user": "history", "item": "title", "scenario": "scenario"}[kind]
    distinct = placeholders - {"scenarios"} if kind == "scenario" else placeholders & {needed}
    if not distinct:
        raise ConfigError(f"{name}: '${needed}' is missing, so all {kind}s would get one prompt")
    return template


def user_prompts(template: Template, history: Column, titles_per_scenario: int) -> pa.StringArray:
    """Prompts of N users from their rows of the column `history` of `schema.HISTORIES`: string [N].

    A line per scenario with the latest liked titles, oldest first; empty for a user without any. All of it in Arrow:
    there may be a billion users. Shape suffixes: S scenarios of all users, T titles that are shown, N users.
    """
    scenarios = pc.list_flatten(history)
    titles = pc.struct_field(scenarios, "titles")
    start_S, end_S = _bounds(titles)
    count_S = np.minimum(end_S - start_S, titles_per_scenario)
    index_T = np.repeat(end_S - np.cumsum(count_S), count_S) + np.arange(count_S.sum())
    latest = _lists(_clean_column(titles.values.take(pa.array(index_T))), count_S)
    names = _clean_column(pc.struct_field(scenarios, "scenario_id"))
    lines = _concatenate(names, ": ", pc.binary_join(latest, "; "))
    user_S = np.repeat(np.arange(len(history)), pc.list_value_length(history).to_numpy())
    liked_S = count_S > 0
    lines_N = np.bincount(user_S[liked_S], minlength=len(history))
    text = pc.binary_join(_lists(lines.filter(pa.array(liked_S)), lines_N), "\n")
    pieces = template.substitute(history="\0").split("\0")
    prompts = _concatenate(*[part for piece in pieces for part in (piece, text)][:-1])
    return cast("pa.StringArray", pc.if_else(pa.array(lines_N > 0), prompts, ""))


def item_prompt(template: Template, title: str, categories: Sequence[str]) -> str:
    """One item's prompt."""
    words = ", ".join(clean(categories))
    return _fill(template, title=clean([title])[0], categories=words or "not known")


def scenario_prompt(
    template: Template, scenario: ScenarioStatistics, names: Sequence[str], max_tokens: int = 1024
) -> str:
    """One scenario's prompt from its row of statistics; `names` are all scenarios, however many.

    Where the prompt could have more than `max_tokens`, it names fewer other scenarios, titles and categories.
    """
    share, text = 1.0, ""
    while not text or (most_tokens(text) > max_tokens and share > 0.1):
        text, share = _scenario_prompt(template, scenario, names, share), share / 2
    return text


def most_tokens(text: str) -> float:
    """More tokens than a tokenizer should make of the text."""
    ascii_ = sum(map(str.isascii, text))
    return ascii_ / CHARACTERS_PER_TOKEN + len(text.encode()) - ascii_


def _scenario_prompt(template: Template, scenario: ScenarioStatistics, names: Sequence[str], share: float) -> str:
    """The prompt with this share of the usual number of other scenarios, titles and categories."""
    name, shared = scenario["scenario_id"], {s["scenario_id"]: s["fraction"] for s in scenario["shared_users"]}
    others, rest, listed = [other for other in names if other != name], list[str](), names
    if len(names) > ALL_NAMED or share < 1:
        nearest = sorted(others, key=lambda other: (-shared.get(other, 0.0), other))
        others, rest = nearest[: round(NEAREST * share)], nearest[round(NEAREST * share) :]
        listed = [name, *others]
    overlaps = [f"{clean([other])[0]} {100 * shared[other]:.0f}%" for other in others if other in shared]
    if rest and shared:
        most = max(shared.get(other, 0.0) for other in rest)
        overlaps.append(f"{len(rest)} more, each at most {100 * most:.0f}%")
    return _fill(
        template,
        scenario=clean([name])[0],
        scenarios=", ".join([*clean(listed), *([f"{len(rest)} more"] if rest else [])]),
        interactions=str(scenario["interactions"]),
        users=str(scenario["users"]),
        items=str(scenario["items"]),
        positive_rate=f"{100 * scenario['positive_rate']:.0f}",
        categories=", ".join(clean(scenario["categories"][: round(MAX_CATEGORIES * share) or 1])) or "not known",
        titles="; ".join(clean(scenario["titles"][: round(MAX_TITLES * share) or 1])) or "not known",
        shared_users=", ".join(overlaps) or "none",
    )


def fingerprint(prompt: str, reads: str) -> str:
    """Identity of a vector: the prompt as it is sent, and `Reader.reads` of who reads it."""
    return storage.digest(prompt, reads)


def _bounds(lists: "pa.ListArray[Any]") -> tuple[Ints, Ints]:
    """Where each of N lists begins and ends in `lists.values`: [N] and [N]."""
    offsets = lists.offsets.to_numpy().astype(np.int64)
    return offsets[:-1], offsets[1:]


def _lists(values: pa.StringArray, length_N: Ints) -> "pa.ListArray[Any]":
    """Consecutive values as N lists of these lengths."""
    return pa.ListArray.from_arrays(pa.array(np.r_[0, np.cumsum(length_N)], pa.int32()), values)


def _concatenate(*parts: Any) -> pa.StringArray:
    """Row by row the text of all parts, each a string column or the same text for all rows."""
    return cast("pa.StringArray", pc.binary_join_element_wise(*parts, ""))


def _clean_column(titles: pa.StringArray) -> pa.StringArray:
    """`clean` of a whole column in Arrow."""
    plain = pc.replace_substring_regex(titles, _CONTROLS_RE2, " ")
    words = pc.utf8_split_whitespace(pc.utf8_trim_whitespace(plain))
    joined = cast("pa.StringArray", pc.binary_join(words, " "))  # which would be a scalar only of a scalar
    return pc.utf8_slice_codeunits(joined, 0, MAX_TITLE)


def clean(titles: Sequence[str], most: int = MAX_TITLE) -> list[str]:
    """Titles as a prompt shows them: cut, without control characters, and every run of white space one blank."""
    return [" ".join(re.sub(_CONTROLS, " ", title).split())[:most] for title in titles]


def _fill(template: Template, **values: str) -> str:
    """The text with these values for its placeholders; no value makes a line of three dashes."""
    text = template.substitute(values)
    if text.split("\n").count("---") > template.template.split("\n").count("---"):
        text = template.substitute({name: value.replace("-", "\u2010") for name, value in values.items()})
    return text


def _known_placeholders(kind: str) -> str:
    return ", ".join(f"${name}" for name in sorted(_PLACEHOLDERS[kind]))
