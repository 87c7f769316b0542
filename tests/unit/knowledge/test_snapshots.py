"""Snapshots of histories: which there are, what they hold, and which rows are shown them."""

import csv
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm4msr import pipeline, storage
from llm4msr.config import Config
from llm4msr.data import partitions
from llm4msr.knowledge import snapshots
from llm4msr.knowledge.prompts import templates
from llm4msr.knowledge.prompts.render import user_prompts
from llm4msr.knowledge.prune import prune
from llm4msr.knowledge.snapshots import CUT, NOTHING, Snapshots
from llm4msr.schema import HISTORIES
from llm4msr.storage import StageOutput
from llm4msr.training.dataset import Dataset
from tests.support.data import config_of, interactions, prepared_table, write_data
from tests.support.partitioned import in_partitions
from tests.support.versions import READER, fake_vectors, make_version, with_extract

USERS, ROWS = 20, 500
SPLITS = [
    {"kind": "time", "by": "user"},
    {"kind": "time"},
    {"kind": "random"},
    {"kind": "leave_last_out"},
]


def rows_of_own_items() -> list[list[Any]]:
    """Each row has an item of its own, by which its time is found; a user's rows often share a moment."""
    rows = interactions(USERS, items=1, rows_per_user=ROWS // USERS)
    return [
        [user, f"i{at}", shelf, int(at % 3 > 0), at // 60, device]
        for at, (user, _, shelf, *_, device) in enumerate(rows)
    ]


def prepared(folder: Path, split: dict[str, Any], rows: list[list[Any]] | None = None) -> StageOutput:
    write_data(folder, rows_of_own_items() if rows is None else rows, items=ROWS)
    return pipeline.prepare(config_of(folder, split=split))


def found_in(data: StageOutput, most: int) -> tuple[pa.Table, Snapshots]:
    events = prepared_table(data, "events")
    return events, snapshots.find(events, partitions.rows(data, "histories"), most)


def places_held(events: pa.Table, found: Snapshots, number: int) -> list[int]:
    level = 1 if found.is_late_M[number] else 0
    rows = range(found.first_M[number], found.stop_M[number])
    return [row for row in rows if events["split"][row].as_py() <= level]


@pytest.mark.parametrize("most", [2, 4, 32])
@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_a_row_is_shown_the_last_snapshot_older_than_it(tmp_path: Path, split: dict[str, Any], most: int):
    """Never itself, a later row or one of the same moment; by the times in the source."""
    data = prepared(tmp_path, split)
    events, found = found_in(data, most)
    items = prepared_table(data, "items")["item_id"].to_pylist()
    time = [int(items[item][1:]) // 60 for item in events["item"].to_pylist()]
    user, parts = events["user"].to_pylist(), events["split"].to_pylist()
    own, trained = defaultdict[int, list[int]](list), defaultdict[int, list[int]](list)
    for number, first in enumerate(found.first_M.tolist()):
        own[user[first]].append(number)
    for row, part in enumerate(parts):
        trained[user[row]] += [row] if part == 0 else []
    for row, shown in enumerate(found.shown_E.tolist()):
        if not user[row]:
            assert shown == NOTHING
            continue

        def is_older(rows: list[int], row: int = row) -> bool:
            return all(time[other] < time[row] for other in rows)

        usable = [
            (len(held), number)
            for number in own[user[row]]
            if is_older(held := places_held(events, found, number)) and (parts[row] == 2 or not found.is_late_M[number])
        ]
        usable += [(len(trained[user[row]]), CUT)] if is_older(trained[user[row]]) else []
        assert shown == max(usable, default=(0, NOTHING))[1]
    assert {NOTHING, CUT} < {*found.shown_E.tolist()}


@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_snapshots_hold_the_first_rows_by_powers_of_two_and_one_the_rows_of_validation(
    tmp_path: Path, split: dict[str, Any]
):
    data = prepared(tmp_path, split)
    events, found = found_in(data, 4)
    user, parts, label = (events[name].to_pylist() for name in ("user", "split", "label"))
    late = 0
    for line, owner in enumerate(prepared_table(data, "histories")["user"].to_pylist()):
        trained = [row for row, part in enumerate(parts) if user[row] == owner and part == 0]
        both = [row for row, part in enumerate(parts) if user[row] == owner and part <= 1]
        sizes = [size for size in (1 << power for power in range(20)) if size < len(trained)][-3:]
        expected = [trained[:size] for size in sizes]
        expected += [both] if any(parts[row] == 1 and label[row] for row in both) else []
        late += len(expected) > len(sizes)
        assert [places_held(events, found, number) for number in np.flatnonzero(found.line_M == line)] == expected
    assert late
    assert found.is_late_M.sum() == late


@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_a_snapshot_is_rendered_from_the_titles_that_were_liked_till_then(tmp_path: Path, split: dict[str, Any]):
    data = prepared(tmp_path, split)
    events, found = found_in(data, 4)
    items, names = prepared_table(data, "items"), prepared_table(data, "scenarios")["scenario_id"].to_pylist()
    ids = prepared_table(data, "histories")["user_id"].to_pylist()
    pieces = [snapshots.read_histories(data, 0, start, min(start + 7, len(ids)), 4) for start in range(0, len(ids), 7)]
    table = pa.concat_tables(pieces)
    assert table["user"].to_pylist() == list(range(len(found.line_M)))
    for row in table.to_pylist():
        expected = defaultdict[str, list[str]](list)
        held = places_held(events, found, row["user"])
        for place in held:
            event = events.slice(place, 1).to_pylist()[0]
            if event["label"]:
                expected[names[event["scenario"]]].append(items["title"][event["item"]].as_py())
        assert {shelf["scenario_id"]: shelf["titles"] for shelf in row["history"]} == expected
        assert (row["user_id"], row["interactions"]) == (ids[found.line_M[row["user"]]], len(held))


def test_new_rows_leave_the_histories_that_were_read_as_they_are(tmp_path: Path):
    """So that the LLM is not asked about them again."""
    rows, later = rows_of_own_items(), 10**6

    def read(folder: Path, more: list[list[Any]]) -> dict[str, list[str]]:
        table = snapshots.read_histories(prepared(folder, {"kind": "leave_last_out"}, rows + more), 0, 0, USERS, 4)
        texts = defaultdict[str, list[str]](list)
        for row in table.filter(pa.array(np.isin(table["interactions"].to_numpy(), 1 << np.arange(9)))).to_pylist():
            texts[row["user_id"]].append(str(row["history"]))
        return texts

    before = read(tmp_path / "before", [])
    after = read(tmp_path / "after", [["u3", f"i{at}", "home", 1, later + at, "tv"] for at in range(8)])
    grown = read(tmp_path / "grown", [["u3", f"i{at}", "home", 1, later + at, "tv"] for at in range(40)])
    assert after == before
    assert {user for user in before if grown[user] != before[user]} == {"u3"}
    assert len({*grown["u3"]} - {*before["u3"]}) == 1


# --- as they are stored and looked up -----------------------------------------------------------------------------


class Told(NamedTuple):
    """A row of the source, its user's rows with it, and the vector that it is shown with."""

    row: dict[str, Any]
    line: list[dict[str, Any]]
    vector: bytes | None


def rows_of_source(config: Config, data: StageOutput) -> dict[str, dict[str, Any]]:
    """Each row by its item, with its place in the source and its split."""
    items = data.table("items.parquet", ["item_id"])["item_id"].to_pylist()
    split_of = {
        items[item]: part
        for part, name in enumerate(("train", "valid", "test"))
        for item in prepared_table(data, name)["item"].to_pylist()
    }
    with (Path(config.source.path) / "interactions.csv").open() as stream:
        rows = [*csv.DictReader(stream)]
    return {row["item_id"]: row | {"at": at, "split": split_of[row["item_id"]]} for at, row in enumerate(rows)}


def told(config: Config, data: StageOutput, version: StageOutput) -> list[Told]:
    """What every row of all splits is shown."""
    source, items = rows_of_source(config, data), data.table("items.parquet", ["item_id"])["item_id"].to_pylist()
    lines = defaultdict[str, list[dict[str, Any]]](list)
    for row in sorted(source.values(), key=lambda row: (int(row["ts"]), row["at"])):
        lines[row["user_id"]].append(row)
    dataset, found = Dataset.open(config, data, version), []
    assert dataset.knowledge is not None
    for name in ("train", "valid", "test"):
        for rows in dataset.rows(name).in_file_order(64):
            numbers = dataset.knowledge.vector_numbers(rows.user_B, rows.seen_B, rows.event_B)
            vectors, known = (tensor.numpy() for tensor in dataset.knowledge.lookup(numbers))
            for at, item in enumerate(rows.item_B.tolist()):
                row = source[items[item]]
                found.append(Told(row, lines[row["user_id"]], vectors[at].tobytes() if known[at] else None))
    return found


def vector_of(config: Config, rows: list[dict[str, Any]]) -> bytes | None:
    """What the LLM of the tests says of a history; None where there is nothing to ask."""
    shelves = {
        name: [f"Title {row['item_id'][1:]}" for row in rows if row["scenario"] == name and row["label"] == "1"]
        for name in sorted({row["scenario"] for row in rows})
    }
    history = [{"scenario_id": name, "titles": titles} for name, titles in shelves.items() if titles]
    table = pa.Table.from_pylist([{"user": 1, "user_id": "", "interactions": 1, "history": history}], HISTORIES)
    prompt = user_prompts(table, config)["prompt"][0].as_py()
    return fake_vectors([templates.fingerprint(prompt, READER.reads)])[0].tobytes() if prompt else None


def older_history(
    row: dict[str, Any], line: list[dict[str, Any]], most: int, fresh: bool = True
) -> list[dict[str, Any]]:
    """The rows that a row sees of its user's, by hand: never one that is not older."""
    trained = [other for other in line if other["split"] == 0]
    late = [other for other in line if other["split"] < 2]

    def is_older(rows: list[dict[str, Any]]) -> bool:
        return all(int(other["ts"]) < int(row["ts"]) for other in rows)

    if row["split"] and not fresh:
        return trained
    if fresh and is_older(late) and any(other["split"] and other["label"] == "1" for other in late):
        return late
    sizes = [1 << power for power in range(9) if 1 << power < len(trained)][1 - most :]
    return next((trained[:n] for n in (len(trained), *reversed(sizes)) if is_older(trained[:n])), [])


@pytest.mark.parametrize("past", ["fresh", "stale"])
@pytest.mark.parametrize("total", [1, 4])
@pytest.mark.parametrize("split", SPLITS[1:], ids=str)
def test_each_row_is_shown_the_vector_of_a_history_older_than_it(
    tmp_path: Path, split: dict[str, Any], total: int, past: str
):
    one = prepared(tmp_path, split)
    config = with_extract(config_of(tmp_path, split=split, model={"past": past}), snapshots=3)
    config, data = in_partitions(config, one, total, tmp_path / "parts")
    version = make_version((config, data, data), tmp_path, "version", total)
    found, users = told(config, data, version), {*prepared_table(data, "histories")["user_id"].to_pylist()}
    for row, line, vector in found:
        rows = older_history(row, line, 3, past == "fresh") if row["user_id"] in users else []
        assert vector == vector_of(config, rows)
    assert {1, 2} <= {row["split"] for row, _, vector in found if vector}
    assert sum(vector is None for *_, vector in found) > USERS


def test_data_with_the_same_histories_and_other_times_are_shown_by_their_own(tmp_path: Path):
    """Of both nothing is asked again, so that their versions have the same files."""
    split, rows = SPLITS[-1], rows_of_own_items()
    before = prepared(tmp_path / "before", split)
    after = prepared(tmp_path / "after", split, [[*row[:4], at, row[5]] for at, row in enumerate(rows)])
    versions, seen = [], []
    for name, data in (("first", before), ("before", before), ("after", after)):
        config = with_extract(config_of(tmp_path / name.replace("first", "before"), split=split), snapshots=3)
        versions.append(make_version((config, data, data), tmp_path / "versions", name, 1))
        seen.append([*told(config, data, versions[-1])])
    assert [version.manifest.info["asked"] > 0 for version in versions] == [True, False, False]
    assert versions[1].manifest.files == versions[2].manifest.files
    for row, line, vector in seen[-1]:
        assert vector == vector_of(config, older_history(row, line, 3))


def test_who_is_forgotten_has_no_snapshot_and_none_is_left_after_a_prune(tmp_path: Path):
    data = prepared(tmp_path, SPLITS[0])
    config = with_extract(config_of(tmp_path, split=SPLITS[0]), snapshots=3)
    root = storage.path(config.root) / "extract"
    first = make_version((config, data, data), root, "one", 1)
    (tmp_path / "forget.txt").write_text("u3\nu7\n")
    forgetting = with_extract(config, forget=str(tmp_path / "forget.txt"))
    second = make_version((forgetting, data, data), root, "two", 1, forget=str(tmp_path / "forget.txt"))
    assert second.manifest.info["asked"] == 0
    assert 0 < second.manifest.info["kept"] < first.manifest.rows
    before = {row["item_id"]: vector for row, _, vector in told(config, data, first)}
    for row, _, vector in told(forgetting, data, second):
        assert vector == (None if row["user_id"] in ("u3", "u7") else before[row["item_id"]])

    def stored() -> set[tuple[str, str]]:
        files = [*Path(str(root)).glob("*/vectors/*.parquet")]
        return {(file.name.split("-")[0], id_) for file in files for id_ in pq.read_table(file)["raw_id"].to_pylist()}

    gone = {(kind, user) for kind in ("users", "snapshots") for user in ("u3", "u7")}
    assert gone < stored()
    prune(forgetting, second)
    assert not gone & stored()
    assert ("snapshots", "u4") in stored()
