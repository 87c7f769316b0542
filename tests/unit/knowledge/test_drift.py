"""Statistics of scenarios that moved little stay as an earlier version's prompts have them."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from llm4msr import schema, storage
from llm4msr.knowledge import drift
from llm4msr.knowledge.prompts.render import scenario_prompts
from tests.support.data import config_of, flip_a_bit, published

NAMES = ("home", "search", "feed")


def row(number: int, **changes: Any) -> dict[str, Any]:
    name = NAMES[number - 1]
    return {
        "scenario": number,
        "scenario_id": name,
        "interactions": 1000,
        "users": 100,
        "items": 50,
        "positive_rate": 0.5,
        "shared_users": [{"scenario_id": other, "fraction": 0.5} for other in NAMES if other != name],
        "categories": ["a", "b", "c"],
        "titles": [f"t{at}" for at in range(10)],
    } | changes


def table(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema.SCENARIOS)


@pytest.mark.parametrize(
    ("change", "alike"),
    [
        ({"interactions": 1100}, True),
        ({"interactions": 1101}, False),
        ({"users": 90}, True),
        ({"users": 89}, False),
        ({"items": 56}, False),
        ({"positive_rate": 0.6}, True),
        ({"positive_rate": 0.38}, False),
        (
            {"shared_users": [{"scenario_id": "search", "fraction": 0.59}, {"scenario_id": "feed", "fraction": 0.41}]},
            True,
        ),
        ({"shared_users": [{"scenario_id": "search", "fraction": 0.5}]}, False),
        ({"titles": [f"t{at}" for at in range(9, 4, -1)] + [f"u{at}" for at in range(5)]}, True),
        ({"titles": [f"t{at}" for at in range(4)] + [f"u{at}" for at in range(6)]}, False),
        ({"categories": ["b", "d", "e"]}, False),
        ({"categories": []}, False),
    ],
)
def test_a_row_is_kept_within_the_tolerance(change: dict[str, Any], alike: bool):
    old = table(row(1), row(2), row(3))
    changed = row(1, **change)
    new = table(changed, row(2), row(3))
    found, kept = drift.keep_steady(new, [old], 0.1)
    assert kept == int(alike)
    assert found.to_pylist() == [row(1) if alike else changed, row(2), row(3)]


def test_small_moves_do_not_add_up():
    versions = [table(row(1))]
    asked = []
    for day in range(1, 8):
        effective, _ = drift.keep_steady(table(row(1, users=100 + 4 * day)), versions, 0.1)
        versions.insert(0, effective)
        asked.append(effective["users"][0].as_py())
    assert asked == [100, 100, 112, 112, 112, 124, 124]


def test_numbers_are_those_of_the_new_data_and_others_are_untouched():
    old = table(row(2), row(3))
    new = table(row(1), row(2, users=104, scenario=3), row(3, users=500, scenario=2))
    found, kept = drift.keep_steady(new, [old], 0.1)
    assert kept == 1
    assert [(r["scenario"], r["scenario_id"], r["users"]) for r in found.to_pylist()] == [
        (1, "home", 100),
        (3, "search", 100),
        (2, "feed", 500),
    ]
    assert found.schema == new.schema


def test_the_first_version_that_is_near_answers():
    """Two experiments can share a storage, and one of them has other statistics."""
    far, near = table(row(1, users=900)), table(row(1, users=98))
    found, kept = drift.keep_steady(table(row(1)), [far, near], 0.1)
    assert (kept, found["users"].to_pylist()) == (1, [98])


def test_without_tolerance_or_earlier_version_the_new_ones_stand():
    old, new = table(row(1)), table(row(1, interactions=1001))
    assert drift.keep_steady(new, [old], 0) == (new, 0)
    assert drift.keep_steady(new, [], 0.1) == (new, 0)
    assert drift.keep_steady(table(row(1)), [old], 0.1) == (table(row(1)), 0)


def test_the_same_statistics_are_the_same_prompt(tmp_path: Path):
    old = table(row(1), row(2), row(3))
    moved = [row(at, interactions=1003, users=101, titles=[f"t{at}" for at in range(1, 11)]) for at in (1, 2, 3)]
    found, kept = drift.keep_steady(table(*moved), [old], 0.1)
    config = config_of(tmp_path)
    assert kept == 3
    assert scenario_prompts(found, config).equals(scenario_prompts(table(row(1), row(2), row(3)), config))


def test_a_new_scenario_of_few_users_changes_no_other_prompt(tmp_path: Path):
    old, config = [row(1), row(2), row(3)], config_of(tmp_path)
    tiny = row(3, scenario=4, scenario_id="brand new", users=1)
    more = [{"scenario_id": "brand new", "fraction": 0.01}]
    new = [one | {"shared_users": one["shared_users"] + more} for one in old] + [tiny]
    before = scenario_prompts(table(*old), config)
    found, kept = drift.keep_steady(table(*new), [table(*old)], 0.1)
    assert kept == 3
    assert scenario_prompts(found, config)["prompt"][:3].equals(before["prompt"])
    more[0]["fraction"] = 0.2
    large, _ = drift.keep_steady(table(*new), [table(*old)], 0.1)
    assert "brand new 20%" in scenario_prompts(large, config)["prompt"][0].as_py()


def test_earlier_statistics_are_those_of_finished_versions_and_ones_own(tmp_path: Path):
    root = storage.path(tmp_path)
    for name, users in (("a", 1), ("b", 2), ("bare", 3), ("damaged", 4)):
        storage.write_table(root / name / drift.FILE, table(row(1, users=users)))
        published(root / name, {} if name == "bare" else {drift.FILE: 1}, "extract")
    flip_a_bit(tmp_path / "damaged" / drift.FILE, 0.4)
    storage.write_table(root / "own" / drift.FILE, table(row(1, users=9)))
    found = list(drift.read_earlier(root / "own", ["damaged", "b", "bare", "a", "gone"]))
    assert [one["users"][0].as_py() for one in found] == [9, 2, 1]
    assert [one["users"][0].as_py() for one in drift.read_earlier(root / "new", ["a"])] == [1]
