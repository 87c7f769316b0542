"""Prepared tables with raw ids instead of numbers: the same however users are partitioned."""

from typing import Any, NamedTuple

from llm4msr.data import partitions
from llm4msr.data.split import SPLITS
from llm4msr.storage import StageOutput
from tests.support.data import prepared_table


class ByRawId(NamedTuple):
    users: dict[str, dict[str, Any]]
    """Features by the user's id; the unknown user's is empty."""
    items: list[dict[str, Any]]
    scenarios: list[dict[str, Any]]
    histories: dict[str, tuple[int, list[Any]]]
    seen: dict[str, list[tuple[Any, ...]]]
    """Of each user (item, label, before, scenario, order), oldest first."""
    events: dict[str, list[tuple[Any, ...]]]
    """Of each user (item, scenario, label, split, earlier, before), oldest first; those of unknown users sorted."""
    splits: dict[str, list[tuple[Any, ...]]]
    """Sorted (user, item, scenario, label, context..., place among the user's seen rows or -1, and its event)."""


def read(output: StageOutput) -> ByRawId:
    """Read all partitions, with numbers that count over all of them."""
    fields = output.json("fields.json")
    tables = {name: prepared_table(output, name) for name in (*partitions.PARTITIONED, "items", "scenarios")}
    users, items = (tables[f"{side}s"][f"{side}_id"].to_pylist() for side in ("user", "item"))
    scenarios = tables["scenarios"]["scenario_id"].to_pylist()
    seen: dict[str, list[tuple[Any, ...]]] = {}
    places = []
    for row in tables["seen"].to_pylist():
        own = seen.setdefault(users[row["user"]], [])
        places.append((users[row["user"]], len(own)))
        own.append((items[row["item"]], row["label"], row["before"], scenarios[row["scenario"]], row["order"]))
    events: dict[str, list[tuple[Any, ...]]] = {}
    at_event = []
    for row in tables["events"].to_pylist():
        told = (
            items[row["item"]],
            scenarios[row["scenario"]],
            row["label"],
            row["split"],
            row["earlier"],
            row["before"],
        )
        events.setdefault(users[row["user"]], []).append(told)
        at_event.append((users[row["user"]], told))
    events.get("", []).sort()
    splits = {}
    for name in SPLITS:
        splits[name] = []
        for row in tables[name].to_pylist():
            user, place = users[row["user"]], -1
            if row["seen"]:
                owner, place = places[row["seen"] - 1]
                assert owner == user
            context = [["", *words][row[f"c:{key}"]] for key, words in fields["context"].items()]
            owner, event = at_event[row["event"]]
            assert owner == user
            told = (user, items[row["item"]], scenarios[row["scenario"]], row["label"], *context, place, event)
            splits[name].append(told)
        splits[name].sort()
    return ByRawId(
        {row["user_id"]: _features(row, fields["user"], "user") for row in tables["users"].to_pylist()},
        [_features(row, fields["item"], "item") for row in tables["items"].to_pylist()],
        tables["scenarios"].to_pylist(),
        {row["user_id"]: (row["interactions"], row["history"]) for row in tables["histories"].to_pylist()},
        seen,
        events,
        splits,
    )


def _features(row: dict[str, Any], fields: dict[str, Any], side: str) -> dict[str, Any]:
    """A row's id and title, whether it has an embedding of its own, and its features as words."""
    words = {}
    for name, known in fields.items():
        value = row[f"f:{name}"]
        if name == f"{side}_id":
            words[name] = value > 0
        elif isinstance(value, list):
            words[name] = [known[number - 1] for number in value]
        else:
            words[name] = ["", *known][value]
    return words | {"id": row[f"{side}_id"]} | ({"title": row["title"]} if side == "item" else {})
