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
_KNOWLEDGE = """
[extract]
# the LLM reads each item once; a user is what the items are that they took (docs/choosing.md)
reads = "items"
# over an item's title and categories alone, which is fast
pooling = "mean"
# each row sees what its user took before it, as when serving
point_in_time = true
# For a first look within minutes, do without the LLM: take the sign off, and words are counted instead.
# item_vectors = "words"
"""
_PROJECTION = """\
# what the same users liked lies together, which a match profits from (docs/knowledge.md)
projection = "contrastive"
"""
_MATCH = """
[model]
# the candidate beside what its user took before: worth most where the question is what a user takes next, less where it
# is how they rate it; training takes two to three times as long
match = ["candidate", "cosines", "attention", "ids"]
"""
_FEW = """
# What its user took before can also be compared with each candidate. That is worth most where the question is what a
# user takes next and rows are many, some 100,000. To try it, take the signs off (docs/matching.md).
# [model]
# match = ["candidate", "cosines", "attention", "ids"]
"""


def write(draft: Draft, name: str, file: str) -> str:
    """The text of the file."""
    lines = [_HEAD.format(seen=_one_line(draft.seen), file=_one_line(shlex.quote(file)))]
    if draft.decisions:
        lines += ["# TO DECIDE before it runs:", *(f"# - {_one_line(text)}" for text in draft.decisions), ""]
    lines += [
        f"name = {as_toml(name)}",
        f'# all results lie in runs/{_one_line(name)}; storage = "s3://bucket/folder", say, puts them elsewhere',
        "",
        "[source]",
        f"kind = {as_toml(draft.kind)}",
        f"path = {as_toml(draft.path)}",
    ]
    if draft.kind == "table":
        lines += ["", "[source.table]"]
    lines += [line for entry in draft.table for line in _entry(entry)]
    if draft.split:
        lines += ["", "[split]", *(line for entry in draft.split for line in _entry(entry))]
        lines += [_KNOWLEDGE + _PROJECTION, _MATCH] if draft.matches else [_KNOWLEDGE, _FEW]
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
