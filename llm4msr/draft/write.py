"""The draft as a TOML file in which a comment above each key says why it has its value."""

import re
import shlex

from llm4msr.config.toml import as_toml
from llm4msr.draft.guess import Draft, Guess, Note
from llm4msr.text import as_json

_HEAD = """\
# Guessed by `llm4msr init` from {seen}.
# The comment above a key says why it has its value; "unsure" marks what to look at first.
# Next: llm4msr check {file}
"""
_QUICK_LOOK = """
# For a first look within minutes, take the signs off: the LLM reads the most active users alone; 0 = all.
# Where rows are many, do without the LLM first: reads = "items" and item_vectors = "words" below [extract] count the
# words of titles (docs/choosing.md).
# [extract]
# max_users = 300"""


def write(draft: Draft, name: str, file: str) -> str:
    """The text of the file."""
    lines = [_HEAD.format(seen=_one_line(draft.seen), file=_one_line(shlex.quote(file)))]
    if draft.decisions:
        lines += ["# TO DECIDE before it runs:", *(f"# - {_one_line(text)}" for text in draft.decisions), ""]
    lines += [
        f"name = {as_toml(name)}",
        "",
        "[source]",
        f"kind = {as_toml(draft.kind)}",
        f"path = {as_toml(draft.path)}",
    ]
    if draft.kind == "table":
        lines += ["", "[source.table]"]
    lines += [line for entry in draft.table for line in _entry(entry)]
    if draft.split:
        lines += ["", "[split]", *(line for entry in draft.split for line in _entry(entry)), _QUICK_LOOK]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip("\n") + "\n"


def _entry(entry: Guess | Note) -> list[str]:
    if isinstance(entry, Note):
        return [f"# {_one_line(entry.text)}", ""]
    unsure = "" if entry.is_sure else "unsure: "
    return [f"# {unsure}{_one_line(entry.why)}", f"{entry.key} = {as_toml(entry.value)}"]


def _one_line(text: str) -> str:
    """The text as a comment may hold it: without line breaks, with other control characters escaped."""
    return " ".join(as_json(text)[1:-1].replace('\\"', '"').replace("\\\\", "\\").split())


def experiment_name(path: str) -> str:
    """A name for the experiment, from the name of its folder."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.rstrip("/").rpartition("/")[2]).strip("-._")
    return name.removesuffix(".zip") or "my-data"
