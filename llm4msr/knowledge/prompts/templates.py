"""Prompts from templates: text files with `$name` places, the shared instruction first and what varies last.

All users' prompts begin with the same instruction, so that the LLM's key-value cache of it is computed once.
After a line of three dashes a template can begin the answer: the LLM reads on from there.
What stands at the places comes from data: one line each, without control characters, and of bounded length.
The fingerprint of a prompt and of what reads it identifies a vector: same fingerprint, same vector.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm4msr import storage
from llm4msr.arrays import Ints
from llm4msr.errors import ConfigError

MAX_TITLE = 80
"""Characters kept of a title, a category or a scenario's name; shop titles can run to hundreds."""
ALL_NAMED, NEAREST = 20, 8
"""Up to so many scenarios a scenario's prompt names all; of more, those with the most users in common, and the rest is
counted."""
MAX_TITLES, MAX_CATEGORIES = 10, 5
"""Of a scenario's prompt."""
CHARACTERS_PER_TOKEN = 3
"""At least, of ASCII; of other text a byte can be a token, as Chinese nearly is to a tokenizer made for English."""

ANSWER_BEGINS = "\n---\n"
"""Between a prompt and the beginning of its answer; what comes from data holds no such line."""
_CONTROLS = r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff]"
"""Control characters, line breaks among them, and those that turn the direction of text: blanks in a prompt."""
_CONTROLS_RE2 = re.sub(r"\\u(....)", r"\\x{\1}", _CONTROLS)

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
        ConfigError: it names an unknown place, has one in the answer's beginning, or lacks `$history` (of a user),
            `$title` (of an item) or any place that tells one scenario from another.
        StorageError: the file cannot be read, or is not UTF-8.
    """
    where = uri or f"{kind}.txt"
    text = storage.read_text(storage.path(uri or _FOLDER / f"{kind}.txt"))
    if "\0" in text:
        raise ConfigError(f"{where}: holds a NUL character; save it as plain text in UTF-8")
    found = Template("\n".join(line.rstrip() for line in text.split("\n")).rstrip("\n"))
    if not found.is_valid():
        raise ConfigError(f"{where}: a lone '$'; write '$$' for a dollar sign, or one of {_places(kind)}")
    names = set(found.get_identifiers())
    if names - _FIELDS[kind]:
        raise ConfigError(f"{where}: unknown place '${min(names - _FIELDS[kind])}'; known: {_places(kind)}")
    begun = Template(found.template.partition(ANSWER_BEGINS)[2]).get_identifiers()
    if begun:
        raise ConfigError(f"{where}: '${begun[0]}' stands after the line '---'; the answer's beginning holds no data")
    needed = {"user": "history", "item": "title", "scenario": "scenario"}[kind]
    telling = names - {"scenarios"} if kind == "scenario" else names & {needed}
    if not telling:
        raise ConfigError(f"{where}: '${needed}' is missing, so all {kind}s would get one prompt")
    return found


def user_prompts(instruction: Template, history: pa.Array, titles_per_scenario: int) -> pa.Array:
    """Prompts of users from the column `history` of `schema.HISTORIES`: string [N].

    A line per scenario with the latest liked titles, oldest first; empty for a user without any. All of it in Arrow:
    there may be a billion users.
    """
    scenarios = history.flatten()
    titles = pc.struct_field(scenarios, "titles")
    starts, ends = _bounds(titles)
    kept = np.minimum(ends - starts, titles_per_scenario)
    places = np.repeat(ends - np.cumsum(kept), kept) + np.arange(kept.sum())
    latest = _lists(_cleaned(titles.values.take(pa.array(places))), kept)
    names = _cleaned(pc.struct_field(scenarios, "scenario_id"))
    lines = pc.binary_join_element_wise(names, pc.binary_join(latest, "; "), ": ")
    owner = np.repeat(np.arange(len(history)), pc.list_value_length(history).to_numpy())
    liked = kept > 0
    per_user = np.bincount(owner[liked], minlength=len(history))
    shown = pc.binary_join(_lists(lines.filter(pa.array(liked)), per_user), "\n")
    pieces = instruction.substitute(history="\0").split("\0")
    between = [part for piece in pieces for part in (pa.scalar(piece), shown)][:-1]
    return pc.if_else(pa.array(per_user > 0), pc.binary_join_element_wise(*between, ""), "")


def item_prompt(instruction: Template, title: str, categories: Sequence[str]) -> str:
    """One item's prompt."""
    words = ", ".join(cleaned(categories))
    return _filled(instruction, title="; ".join(cleaned([title])), categories=words or "not known")


def scenario_prompt(
    instruction: Template, scenario: Mapping[str, Any], names: Sequence[str], max_tokens: int = 1024
) -> str:
    """One scenario's prompt from its row of `schema.SCENARIOS`; `names` are all scenarios, however many.

    Where the prompt could have more than `max_tokens`, fewer others, titles and categories are named.
    """
    part, text = 1.0, ""
    while not text or (_most_tokens(text) > max_tokens and part > 0.1):
        text, part = _scenario_prompt(instruction, scenario, names, part), part / 2
    return text


def _most_tokens(text: str) -> float:
    ascii_ = sum(map(str.isascii, text))
    return ascii_ / CHARACTERS_PER_TOKEN + len(text.encode()) - ascii_


def _scenario_prompt(instruction: Template, scenario: Mapping[str, Any], names: Sequence[str], part: float) -> str:
    own, shared = scenario["scenario_id"], {s["scenario_id"]: s["fraction"] for s in scenario["shared_users"]}
    named, rest, told = [name for name in names if name != own], list[str](), names
    if len(names) > ALL_NAMED or part < 1:
        nearest = sorted(named, key=lambda name: (-shared.get(name, 0.0), name))
        named, rest = nearest[: round(NEAREST * part)], nearest[round(NEAREST * part) :]
        told = [own, *named]
    shares = [f"{cleaned([name])[0]} {100 * shared[name]:.0f}%" for name in named if name in shared]
    if rest and shared:
        most = max(shared.get(name, 0.0) for name in rest)
        shares.append(f"{len(rest)} more, each at most {100 * most:.0f}%")
    return _filled(
        instruction,
        scenario=cleaned([own])[0],
        scenarios=", ".join([*cleaned(told), *([f"{len(rest)} more"] if rest else [])]),
        interactions=str(scenario["interactions"]),
        users=str(scenario["users"]),
        items=str(scenario["items"]),
        positive_rate=f"{100 * scenario['positive_rate']:.0f}",
        categories=", ".join(cleaned(scenario["categories"][: round(MAX_CATEGORIES * part) or 1])) or "not known",
        titles="; ".join(cleaned(scenario["titles"][: round(MAX_TITLES * part) or 1])) or "not known",
        shared_users=", ".join(shares) or "none",
    )


def fingerprint(prompt: str, reads: str) -> str:
    """Identity of a vector: the prompt as sent, and `Reader.reads` of who reads it."""
    return storage.digest(prompt, reads)


def _bounds(lists: pa.ListArray) -> tuple[Ints, Ints]:
    """Where each list begins and ends in `lists.values`."""
    offsets = lists.offsets.to_numpy().astype(np.int64)
    return offsets[:-1], offsets[1:]


def _lists(values: pa.Array, lengths: Ints) -> pa.ListArray:
    """Consecutive values as lists of these lengths."""
    return pa.ListArray.from_arrays(pa.array(np.r_[0, np.cumsum(lengths)], pa.int32()), values)


def _cleaned(titles: pa.Array) -> pa.Array:
    """Clipped, without control characters, and every run of white space one blank."""
    plain = pc.replace_substring_regex(titles, _CONTROLS_RE2, " ")
    words = pc.utf8_split_whitespace(pc.utf8_trim_whitespace(plain))
    return pc.utf8_slice_codeunits(pc.binary_join(words, " "), 0, MAX_TITLE)


def cleaned(titles: Sequence[str]) -> list[str]:
    """Titles as a prompt has them: clipped, without control characters, and every run of white space one blank."""
    return [" ".join(re.sub(_CONTROLS, " ", title).split())[:MAX_TITLE] for title in titles]


def _filled(instruction: Template, **values: str) -> str:
    """The text with these values at its places; no value makes a line of three dashes."""
    text = instruction.substitute(values)
    if text.split("\n").count("---") > instruction.template.split("\n").count("---"):
        text = instruction.substitute({name: value.replace("-", "\u2010") for name, value in values.items()})
    return text


def _places(kind: str) -> str:
    return ", ".join(f"${name}" for name in sorted(_FIELDS[kind]))
