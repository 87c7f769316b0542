"""Windows of the prepared tables, and the prompts of their rows."""

from pathlib import Path

import pyarrow as pa
import pytest

from llm4msr import storage
from llm4msr.knowledge.prompts.render import (
    Window,
    item_prompts,
    items_to_read,
    render,
    slice_rows,
    user_prompts,
    windows,
)
from tests.support.data import config_of, published
from tests.support.versions import READER
from tests.unit.conftest import World

NO_FILE = storage.path("/no/scenarios/here")


@pytest.mark.parametrize(
    ("users", "per_shard", "ranges"),
    [
        ([10], 4, [(0, 4), (4, 8), (8, 10)]),
        ([3], 4, [(0, 3)]),
        ([0], 4, []),
        ([5, 0, 2], 4, [(0, 4), (4, 5), (0, 2, 2)]),
    ],
)
def test_windows_are_the_scenarios_and_ranges_of_each_partitions_users(
    users: list[int], per_shard: int, ranges: list[tuple[int, ...]]
):
    found = windows(users, {}, per_shard)
    assert found == [Window("scenarios"), *(Window("users", *rows) for rows in ranges)]


def test_snapshots_are_rendered_of_fewer_users_at_once_as_each_has_several():
    found = windows([10, 3], {}, 4, histories=2)
    users = [window for window in windows([10, 3], {}, 4) if window.kind == "users"]
    assert [window for window in found if window.kind == "users"] == users
    ranges = [(0, 2), (2, 4), (4, 6), (6, 8), (8, 10), (0, 2, 1), (2, 3, 1)]
    assert [window for window in found if window.kind == "snapshots"] == [Window("snapshots", *at) for at in ranges]


def test_windows_are_ranges_of_the_items_of_each_kind():
    found = windows([], {"items": 9, "items_by_words": 5}, 4)
    ranges = [("items", 0, 4), ("items", 4, 8), ("items", 8, 9), ("items_by_words", 0, 4), ("items_by_words", 4, 5)]
    assert found == [Window("scenarios"), *(Window(*window) for window in ranges)]


def test_a_window_of_items_begins_after_the_unknown_item(world: World):
    table = render(Window("items", 2, 5), world.config, world.data, NO_FILE, READER)
    items = storage.read_table(world.data.folder / "items.parquet")
    assert table["id"].to_pylist() == [3, 4, 5]
    assert table["raw_id"].to_pylist() == items["item_id"].to_pylist()[3:6]
    for prompt, title in zip(table["prompt"].to_pylist(), items["title"].to_pylist()[3:6], strict=True):
        assert f"Title: {title}\n" in prompt
        assert prompt.endswith('\n---\nThe one word is: "')


def test_an_item_shows_its_own_categories(world: World):
    items = storage.read_table(world.data.folder / "items.parquet")
    words = ["Tea", "Cake", "Bread"]
    numbers = pa.array([[], [1, 3], *[[2]] * (len(items) - 2)], pa.list_(pa.int64()))
    shown = items.append_column("f:kinds", numbers)
    found = item_prompts(shown.slice(1, 2), {"item_id": [], "kinds": words}, world.config)
    assert [prompt.splitlines()[2] for prompt in found["prompt"].to_pylist()] == [
        "Categories: Tea, Bread",
        "Categories: Cake",
    ]


@pytest.mark.parametrize(("items", "count"), [("all", 5), ("trained", 3)])
def test_items_to_read_are_all_or_those_of_training_rows(tmp_path: Path, items: str, count: int):
    config = config_of(tmp_path, extract={"reads": "items", "items": items})
    assert items_to_read(config, pa.table({"f:item_id": [0, 1, 2, 3, 0, 0]})) == count


def test_windows_of_users_are_slices_of_the_whole(world: World):
    whole = user_prompts(storage.read_table(world.data.folder / "histories/p=00000.parquet"), world.config)
    ranges = [(0, 6), (6, 40)]
    found = [render(Window("users", a, b), world.config, world.data, NO_FILE, READER) for a, b in ranges]
    assert [len(table) for table in found] == [6, 34]
    assert pa.concat_tables(found).equals(whole)


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (0, 10), (3, 4), (2, 7), (9, 10), (4, 8)])
@pytest.mark.parametrize("group", [1, 3, 100])
def test_slice_reads_its_rows_alone(tmp_path: Path, start: int, stop: int, group: int):
    storage.write_table(storage.path(tmp_path / "items.parquet"), pa.table({"a": list(range(10))}), group)
    data = published(tmp_path, {"items.parquet": 10})
    assert slice_rows(data, "items.parquet", start, stop)["a"].to_pylist() == list(range(start, stop))
