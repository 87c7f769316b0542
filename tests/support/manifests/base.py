"""What every check speaks in: problems at paths, and YAML that is read without a blind eye."""

import difflib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import yaml

At = tuple[str | int, ...]


class Problem(NamedTuple):
    """What is wrong, and where."""

    at: At
    what: str

    def __str__(self) -> str:
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in self.at).lstrip(".")
        return f"{path}: {self.what}"


class UniqueKeys(yaml.CSafeLoader):  # type: ignore[misc]
    """YAML in which a key stands once: of two, a parser takes the last and says nothing."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        if twice := {key for key in keys if keys.count(key) > 1}:
            raise yaml.constructor.ConstructorError(None, None, f"{min(twice)} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def parsed(text: str) -> Any:
    return yaml.load(text, UniqueKeys)


def documents(text: str) -> list[dict[str, Any]]:
    return [document for document in yaml.load_all(text, UniqueKeys) if document]


def nodes(value: Any, at: At) -> Iterator[tuple[At, dict[str, Any]]]:
    """Every mapping below a value, with its path."""
    if isinstance(value, dict):
        yield at, value
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        yield from nodes(inner, (*at, key))


def unknown(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return "unknown field" + (f" (did you mean '{near[0]}'?)" if near else "")
