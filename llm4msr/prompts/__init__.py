"""Prompts from templates: text files with `$name` places, the shared instruction first and what varies last.

All users' prompts begin with the same instruction, so that the LLM's key-value cache of it is computed once.
After a line of three dashes a template can begin the answer: the LLM reads on from there.
The fingerprint of a prompt and of what reads it identifies a vector: same fingerprint, same vector.
"""

from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

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
    lines = pc.binary_join_element_wise(pc.struct_field(scenarios, "scenario_id"), pc.binary_join(latest, "; "), ": ")
    owner = np.repeat(np.arange(len(history)), pc.list_value_length(history).to_numpy())
    liked = kept > 0
    per_user = np.bincount(owner[liked], minlength=len(history))
    shown = pc.binary_join(_lists(lines.filter(pa.array(liked)), per_user), "\n")
    pieces = instruction.substitute(history="\0").split("\0")
    between = [part for piece in pieces for part in (pa.scalar(piece), shown)][:-1]
    return pc.if_else(pa.array(per_user > 0), pc.binary_join_element_wise(*between, ""), "")


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


def _bounds(lists: pa.ListArray) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Where each list begins and ends in `lists.values`."""
    offsets = lists.offsets.to_numpy().astype(np.int64)
    return offsets[:-1], offsets[1:]


def _lists(values: pa.Array, lengths: npt.NDArray[np.int64]) -> pa.ListArray:
    """Consecutive values as lists of these lengths."""
    return pa.ListArray.from_arrays(pa.array(np.r_[0, np.cumsum(lengths)], pa.int32()), values)


def _cleaned(titles: pa.Array) -> pa.Array:
    """Clipped, and every run of white space one blank."""
    words = pc.utf8_split_whitespace(pc.utf8_trim_whitespace(titles))
    return pc.utf8_slice_codeunits(pc.binary_join(words, " "), 0, MAX_TITLE)


def cleaned(titles: list[str]) -> list[str]:
    """Titles as a prompt has them: clipped, and every run of white space one blank."""
    return [" ".join(title.split())[:MAX_TITLE] for title in titles]


def _join(titles: list[str]) -> str:
    return "; ".join(cleaned(titles))


def _places(kind: str) -> str:
    return ", ".join(f"${name}" for name in sorted(_FIELDS[kind]))
