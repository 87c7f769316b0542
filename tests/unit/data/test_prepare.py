import json
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm4msr import schema, storage
from llm4msr.config import Config
from llm4msr.data import partitions, sources, split
from llm4msr.data import prepare as prepare_stage
from llm4msr.data.catalogue import MAX_VALUES
from llm4msr.data.histories import MAX_TITLES
from llm4msr.data.prepare import prompt_data
from llm4msr.data.reading.raw_data import RawData
from llm4msr.data.reading.raw_tables import HeldTable
from llm4msr.data.scenarios import MAX_SHARED
from llm4msr.errors import ConfigError, DataError, StorageError
from llm4msr.knowledge.prompts.render import scenario_prompts, user_prompts
from llm4msr.knowledge.prompts.sample import sampler
from llm4msr.pipeline import prepare, prepared
from llm4msr.storage import StageOutput
from tests.support.data import HEADER, config_of, interactions, prepared_table, write_csv, write_data
from tests.support.splits import assign

SPLITS = [
    {"kind": "time"},
    {"kind": "time", "history_share": 0.5},
    {"kind": "time", "by": "user"},
    {"kind": "leave_last_out"},
    {"kind": "random"},
]


def table(output: StageOutput, name: str) -> pa.Table:
    return prepared_table(output, name)


def fields(output: StageOutput) -> dict[str, dict[str, list[str]]]:
    return json.loads(storage.read_bytes(output.folder / "fields.json"))


def rendered(config: Config, output: StageOutput) -> list[dict[str, Any]]:
    users = user_prompts(table(output, "histories"), config).to_pylist()
    return users + scenario_prompts(table(output, "scenarios"), config).to_pylist()


# --- no leakage ---------------------------------------------------------------------------------------------------


def parts_of(rows: list[list[Any]], config: Config) -> np.ndarray:
    frame = pd.DataFrame({"user_id": [r[0] for r in rows], "order": [float(r[4]) for r in rows]})
    return assign(frame, config.split, config.seed)


@pytest.mark.parametrize("wanted", SPLITS, ids=lambda s: "-".join(map(str, s.values())))
def test_nothing_of_validation_and_test_rows_reaches_a_prompt_a_vocabulary_or_a_statistic(
    tmp_path: Path, wanted: dict[str, Any]
):
    rows = interactions(users=20, items=12, rows_per_user=20)
    before = config_of(write_data(tmp_path / "before", rows, items=12, users=20), split=wanted)
    later = parts_of(rows, before) != split.TRAIN
    assert 0 < later.sum() < len(rows)

    changed = []
    for at, (row, is_later) in enumerate(zip(rows, later, strict=True)):
        user, item, _, label, ts, _ = row
        keep_user = wanted.get("by") == "user" or wanted["kind"] == "leave_last_out"
        secret = [
            user if keep_user else f"secret-user{at}",
            f"secret{at % 7}",
            "secret-scenario",
            1 - label,
            ts,
            "secret",
        ]
        changed.append((secret if at % 3 else [user, item, "home", 1 - label, ts, "tv"]) if is_later else row)
    folder = write_data(tmp_path / "after", changed, items=12, users=20)
    with (folder / "items.csv").open("a") as file:
        file.writelines(f"secret{i},Secret film {i},All > secret > deep,secret-brand\n" for i in range(7))
    with (folder / "users.csv").open("a") as file:
        file.writelines(f"secret-user{i},secret-land\n" for i in range(len(rows)))
    after = config_of(folder, split=wanted)

    one, two = prepare(before), prepare(after)
    np.testing.assert_array_equal(parts_of(changed, after) != split.TRAIN, later)
    for name in ("fields.json", "scenarios.parquet", "histories/p=00000.parquet"):
        first, second = (storage.read_bytes(output.folder / name) for output in (one, two))
        assert first == second, name
    events = [table(output, "events") for output in (one, two)]
    for trained, timed in zip(trains := [table(output, "train") for output in (one, two)], events, strict=True):
        assert set(timed["split"].take(trained["event"]).to_pylist()) == {split.TRAIN}
    assert trains[0].drop_columns("event").equals(trains[1].drop_columns("event"))
    assert rendered(before, one) == rendered(after, two)
    assert "secret" not in json.dumps(rendered(after, two)).lower()
    test_of_one, test_of_two = (storage.read_bytes(output.folder / "test/p=00000.parquet") for output in (one, two))
    assert test_of_one != test_of_two


def test_a_change_of_a_training_row_does_reach_prompts_and_statistics(tmp_path: Path):
    rows = interactions(users=20, items=12, rows_per_user=20)
    one = prepare(config_of(write_data(tmp_path / "one", rows, items=12)))
    rows[0] = [*rows[0][:3], 1 - rows[0][3], *rows[0][4:]]
    two = prepare(config_of(write_data(tmp_path / "two", rows, items=12)))
    for name in ("scenarios", "histories", "train"):
        assert not table(one, name).equals(table(two, name))


@pytest.mark.parametrize("by", ["global", "user"])
def test_rows_that_feed_prompts_are_told_apart(tmp_path: Path, by: str):
    rows = [[u, f"i{i}", "home", 1, i, "tv"] for i in range(20) for u in ("a", "b")]
    config = config_of(write_data(tmp_path, rows), split={"by": by, "history_share": 0.5})
    output = prepare(config)
    titles = {user["user_id"]: user["history"][0]["titles"] for user in table(output, "histories").to_pylist()}
    assert titles == {user: [f"Title {i}" for i in range(8)] for user in ("a", "b")}
    ids = table(output, "items")["item_id"].to_pylist()
    train = table(output, "train")
    rest = {ids[i] for i, seen in zip(train["item"].to_pylist(), train["seen"].to_pylist(), strict=True) if not seen}
    assert rest == {f"i{i}" for i in range(8, 16)}
    assert not any(table(output, "valid")["seen"].to_pylist() + table(output, "test")["seen"].to_pylist())
    assert output.manifest.rows == 40


def test_only_the_latest_interactions_are_used(tmp_path: Path):
    rows = [[f"u{at % 4}", f"i{at % 9}", "home", 1, 1000 - at, "tv"] for at in range(200)]
    config = config_of(write_data(tmp_path, rows), split={"latest": 60})
    tables = {name: storage.read_table(prepare(config).folder / f"{name}/p=00000.parquet") for name in split.SPLITS}
    assert sum(table.num_rows for table in tables.values()) == 60
    everything = prepare(config_of(write_data(tmp_path / "b", rows[:60]))).folder  # the later the earlier in the file
    for name, table in tables.items():
        assert table.equals(storage.read_table(everything / f"{name}/p=00000.parquet"))


def test_history_that_holds_all_training_rows_is_refused(tmp_path: Path):
    rows = [["a", f"i{i}", "home", i % 2, max(i - 15, 0), "tv"] for i in range(20)]  # all training rows at one time
    config = config_of(write_data(tmp_path, rows), split={"history_share": 0.5})
    with pytest.raises(DataError, match="train"):
        prepare(config)


# --- vocabularies -------------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path) -> Config:
    """Ten rows: eight train, one validates, one tests; the last two know ids and values that training never saw."""
    rows: list[list[Any]] = [[f"u{i % 2}", f"i{i % 4}", "home", i % 2, i, "tv"] for i in range(8)]
    rows += [["u9", "i8", "home", 1, 8, "watch"], ["u0", "nowhere", "search", 0, 9, "tv"]]
    write_csv(tmp_path / "interactions.csv", HEADER, rows)
    described = [[f"i{i}", f"Title {i}", f"c{i}", "b0"] for i in range(3)] + [["i8", "New film", "c8", "b0"]]
    write_csv(tmp_path / "items.csv", ["item_id", "title", "category_path", "brand"], described)
    write_csv(tmp_path / "users.csv", ["user_id", "country"], [["u0", "de"], ["u1", ""], ["u9", "it"]])
    return config_of(tmp_path)


def test_vocabularies_hold_training_values_alone(small: Config):
    found = fields(prepare(small))
    assert found["user"] == {"user_id": 2, "country": ["de"]}
    assert found["item"] == {"item_id": 4, "brand": ["b0"], "category": ["c0", "c1", "c2"]}
    assert found["context"] == {"device": ["tv"]}


def test_described_items_are_kept_and_others_of_test_rows_are_not(small: Config):
    items = table(prepare(small), "items").to_pydict()
    assert items["item_id"] == ["", "i0", "i1", "i2", "i3", "i8"]
    assert items["title"] == ["", "Title 0", "Title 1", "Title 2", "i3", "New film"]
    assert items["f:item_id"] == [0, 1, 2, 3, 4, 0]
    assert items["f:brand"] == [0, 1, 1, 1, 0, 1]
    assert items["f:category"] == [[], [1], [2], [3], [], []]


def test_row_zero_is_unknown_and_row_i_is_number_i(small: Config):
    output = prepare(small)
    for side, expected in (("user", schema.USERS), ("item", schema.ITEMS)):
        rows = schema.check(table(output, f"{side}s"), expected, side)
        assert rows[side].to_pylist() == list(range(rows.num_rows))
        assert rows[f"{side}_id"][0].as_py() == ""
        assert rows[f"f:{side}_id"][0].as_py() == 0
    users = table(output, "users").to_pydict()
    assert users["user_id"] == ["", "u0", "u1", "u9"]
    assert users["f:user_id"] == [0, 1, 2, 0]
    assert users["f:country"] == [0, 1, 0, 0]


def test_unknown_ids_of_later_rows_are_zero(small: Config):
    output = prepare(small)
    assert sorted(table(output, "train")["user"].to_pylist()) == [1] * 4 + [2] * 4
    assert table(output, "valid").to_pydict() == {
        "user": [3],
        "item": [5],
        "scenario": [1],
        "label": [1],
        "seen": [0],
        "event": [9],
        "c:device": [0],
    }
    assert table(output, "test").to_pydict() == {
        "user": [1],
        "item": [0],
        "scenario": [0],
        "label": [0],
        "seen": [0],
        "event": [4],
        "c:device": [1],
    }


def test_many_values_of_a_feature_are_cut(tmp_path: Path):
    rows = [["u", "i0", "home", 1, i, "tv"] for i in range(10)]
    write_data(tmp_path, rows)
    path = " > ".join(f"c{i}" for i in range(20))
    write_csv(tmp_path / "items.csv", ["item_id", "title", "category_path", "brand"], [["i0", "T", path, ""]])
    output = prepare(config_of(tmp_path))
    assert len(fields(output)["item"]["category"]) == 20
    assert len(table(output, "items")["f:category"][1].as_py()) == MAX_VALUES


def test_items_need_no_file(tmp_path: Path):
    bare = {
        "items": "",
        "users": "",
        "title": "",
        "category": "",
        "user_features": [],
        "item_features": [],
        "context": [],
    }
    output = prepare(config_of(write_data(tmp_path), table=bare))
    assert fields(output)["context"] == {}
    items = table(output, "items").to_pydict()
    assert items["title"] == items["item_id"]
    assert table(output, "train").column_names == schema.INTERACTIONS.names
    assert table(output, "scenarios")["categories"].to_pylist() == [[], [], []]


# --- ids ------------------------------------------------------------------------------------------------------------


def write_ids(folder: Path, ids: list[str], rows: int) -> Config:
    """Parquet with these item ids in turn, all of them described."""
    folder.mkdir(parents=True, exist_ok=True)
    at = np.arange(rows)
    columns = {"user_id": [f"u{i % 50}" for i in at], "item_id": [ids[i % len(ids)] for i in at]}
    columns |= {"scenario": ["home"] * rows, "label": (at % 2).astype(np.float32), "ts": at, "device": ["tv"] * rows}
    pq.write_table(pa.table(columns), folder / "interactions.parquet")
    items = {"item_id": ids, "title": [f"Title {i}" for i in range(len(ids))]}
    items |= {"category_path": ["All > some"] * len(ids), "brand": ["b"] * len(ids)}
    pq.write_table(pa.table(items), folder / "items.parquet")
    write_csv(folder / "users.csv", ["user_id", "country"], [[f"u{i}", "de"] for i in range(50)])
    return config_of(folder, table={"interactions": "interactions.parquet", "items": "items.parquet"})


def test_ids_that_differ_only_at_their_end_stay_apart(tmp_path: Path):
    ids = ["a", "a\0", "a ", "a\0\0", "a\u00a0", "b"]
    output = prepare(write_ids(tmp_path, ids, 600))
    items = table(output, "items").to_pydict()
    assert items["item_id"][1:] == sorted(ids)
    assert dict(zip(items["item_id"], items["title"], strict=True)) | {"": ""} == {"": ""} | {
        raw: f"Title {i}" for i, raw in enumerate(ids)
    }
    numbers = table(output, "train")["item"].to_pylist()
    assert sorted(items["item_id"][number] for number in numbers) == sorted(ids[at % 6] for at in range(480))
    assert table(output, "scenarios")["items"].to_pylist() == [0, 6]


def test_a_long_id_costs_its_own_bytes_and_not_those_of_all(tmp_path: Path):
    ids = [f"i{i}" for i in range(200)]
    tracemalloc.start()
    try:
        peaks = []
        for name, first in (("short", "i"), ("long", "x" * 8000)):
            config = write_ids(tmp_path / name, [first, *ids], 10_000)
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            prepare(config)
            peaks.append(tracemalloc.get_traced_memory()[1] - before)
    finally:
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 20e6  # text of one width would take 320 MB


# --- statistics and histories ---------------------------------------------------------------------------------------


def test_statistics_of_scenarios(tmp_path: Path):
    train: list[list[Any]] = [
        ["a", "i1", "home", 1], ["a", "i2", "home", 0], ["b", "i1", "home", 1], ["c", "i3", "home", 1],
        ["a", "i2", "search", 1], ["a", "i2", "search", 0], ["d", "i4", "search", 0], ["d", "i4", "search", 0],
    ]  # fmt: skip
    rows = [[*row, at, "tv"] for at, row in enumerate([*train, ["a", "i1", "home", 1], ["a", "i1", "home", 1]])]
    output = prepare(config_of(write_data(tmp_path, rows)))
    nobody, home, search = table(output, "scenarios").to_pylist()
    assert (nobody["scenario"], nobody["scenario_id"], nobody["interactions"]) == (0, "", 0)
    assert (home["scenario_id"], home["interactions"], home["users"], home["items"]) == ("home", 4, 3, 3)
    assert home["positive_rate"] == 0.75
    assert home["shared_users"] == [{"scenario_id": "search", "fraction": pytest.approx(1 / 3)}]
    assert home["titles"] == ["Title 1", "Title 3"]
    assert home["categories"] == ["All", "odd", "c1", "c2", "c3"]
    assert (search["interactions"], search["users"], search["items"]) == (4, 2, 2)
    assert search["positive_rate"] == 0.25
    assert search["shared_users"] == [{"scenario_id": "home", "fraction": 0.5}]


def test_of_many_scenarios_each_names_those_that_share_the_most_users(tmp_path: Path):
    rng = np.random.default_rng(0)
    rows = [[f"u{rng.integers(60)}", f"i{rng.integers(20)}", f"s{rng.integers(50)}", 1, at, "tv"] for at in range(1500)]
    output = prepare(config_of(write_data(tmp_path, rows, users=60)))
    members: dict[str, set[str]] = {}
    for user, _, scenario, *_ in rows[:1200]:
        members.setdefault(scenario, set()).add(user)
    for row in table(output, "scenarios").to_pylist()[1:]:
        own = members[row["scenario_id"]]
        share = {o: len(own & users) / len(own) for o, users in members.items() if o != row["scenario_id"]}
        told = {other["scenario_id"]: other["fraction"] for other in row["shared_users"]}
        assert list(told) == sorted(told)
        assert len(told) == MAX_SHARED
        assert told == {other: share[other] for other in told}
        assert min(told.values()) >= max(part for other, part in share.items() if other not in told)


def test_histories_hold_liked_titles_oldest_first_and_the_most_active_first(tmp_path: Path):
    train: list[list[Any]] = [
        ["b", "i5", "home", 1, 7], ["a", "i1", "search", 1, 2], ["a", "i2", "home", 0, 3],
        ["a", "i3", "search", 1, 1], ["c", "i4", "home", 0, 4], ["a", "i6", "home", 1, 5],
        ["b", "i7", "home", 1, 6], ["d", "i8", "home", 1, 0],
    ]  # fmt: skip
    rows = [[*row, "tv"] for row in [*train, ["a", "i1", "home", 1, 8], ["a", "i1", "home", 1, 9]]]
    output = prepare(config_of(write_data(tmp_path, rows)))
    found = table(output, "histories").to_pylist()
    assert [(user["user_id"], user["interactions"]) for user in found] == [("a", 4), ("b", 2), ("c", 1), ("d", 1)]
    assert found[0]["history"] == [
        {"scenario_id": "home", "titles": ["Title 6"]},
        {"scenario_id": "search", "titles": ["Title 3", "Title 1"]},
    ]
    assert found[1]["history"] == [{"scenario_id": "home", "titles": ["Title 7", "Title 5"]}]
    assert found[2]["history"] == []
    ids = table(output, "users")["user_id"].to_pylist()
    assert [ids[user["user"]] for user in found] == ["a", "b", "c", "d"]


def test_histories_keep_the_latest_titles(tmp_path: Path):
    rows = [["a", f"i{i}", "home", 1, i, "tv"] for i in range(100)]
    found = table(prepare(config_of(write_data(tmp_path, rows, items=100))), "histories").to_pylist()
    assert found[0]["history"][0]["titles"] == [f"Title {i}" for i in range(80 - MAX_TITLES, 80)]


def test_data_that_nobody_liked_is_prepared_with_empty_histories(tmp_path: Path):
    rows = [[f"u{i % 3}", f"i{i % 5}", "home", 0, i, "tv"] for i in range(30)]
    output = prepare(config_of(write_data(tmp_path, rows)))
    assert table(output, "histories")["history"].to_pylist() == [[], [], []]


# --- implicit data --------------------------------------------------------------------------------------------------


def test_implicit_data_needs_negatives(tmp_path: Path):
    write_data(tmp_path)
    with pytest.raises(ConfigError, match=r"set split\.negatives"):
        prepare(config_of(tmp_path, table={"label": ""}))


def test_labelled_data_refuses_negatives(tmp_path: Path):
    write_data(tmp_path)
    with pytest.raises(ConfigError, match=r"this source gives labels; set split\.implicit = true"):
        prepare(config_of(tmp_path, split={"negatives": 2}))
    with pytest.raises(ConfigError, match=r"split\.implicit makes a like of every row; set split\.negatives"):
        prepare(config_of(tmp_path, split={"implicit": True}))


def test_labels_that_do_not_count_are_as_no_labels(tmp_path: Path):
    write_data(tmp_path)
    without = prepare(config_of(tmp_path, table={"label": ""}, split={"negatives": 2}))
    ignored = prepare(config_of(tmp_path, split={"negatives": 2, "implicit": True}))
    for name in (*split.SPLITS, "histories", "events"):
        assert table(ignored, name).equals(table(without, name)), name


def test_implicit_data_gets_negatives_in_every_part(tmp_path: Path):
    config = config_of(write_data(tmp_path), table={"label": ""}, split={"negatives": 2})
    output = prepare(config)
    for part in split.SPLITS:
        labels = table(output, part)["label"].to_numpy()
        assert set(labels) == {0, 1}
        assert 0.25 < labels.mean() < 0.5
    other = prepare(config.model_copy(update={"seed": 2}))
    assert other.folder != output.folder
    assert not table(other, "train").equals(table(output, "train"))


def test_what_a_user_took_before_is_no_negative_even_if_only_the_prompt_holds_it(tmp_path: Path):
    rng = np.random.default_rng(0)
    rows = [[f"u{rng.integers(6)}", f"i{rng.integers(20)}", "home", 1, at, "tv"] for at in range(150)]
    config = config_of(write_data(tmp_path, rows), table={"label": ""}, split={"negatives": 3, "history_share": 0.5})
    output = prepare(config)
    later = parts_of(rows, config)
    taken = {(row[0], row[1]) for row, part in zip(rows, later, strict=True) if part == split.TRAIN}
    users, items = (table(output, f"{side}s")[f"{side}_id"].to_pylist() for side in ("user", "item"))
    rows_of_train = table(output, "train").to_pylist()
    train = [row for row in rows_of_train if row["label"] == 0]
    assert 0 < len(train) <= 3 * (len(rows_of_train) - len(train))
    assert not {(users[row["user"]], items[row["item"]]) for row in train} & taken


# --- the stage ------------------------------------------------------------------------------------------------------


def test_a_finished_output_is_found_again(small: Config):
    first = prepare(small)
    assert not first.reused
    again = prepare(small)
    assert again.reused
    assert again.folder == first.folder
    assert prepared(small).manifest.model_dump_json() == first.manifest.model_dump_json()


def test_counts_are_in_the_manifest(small: Config):
    m = prepare(small).manifest
    assert m.stage == "prepare"
    assert m.rows == 10
    counts = {name: count for name, count in m.info.items() if name not in ("report", "warnings")}
    assert counts == {
        "users": 4,
        "items": 6,
        "scenarios": 2,
        "histories": 2,
        "seen": 8,
        "events": 10,
        "train": 8,
        "valid": 1,
        "test": 1,
    }
    assert {name: part.rows for name, part in m.files.items()} == {
        **{partitions.file_name(name, 0): counts[name] for name in partitions.PARTITIONED},
        **{f"{name}.parquet": counts[name] for name in ("items", "scenarios")},
        "fields.json": 1,
    }


def test_an_interrupted_output_is_built_again(small: Config):
    first = prepare(small)
    train = storage.read_bytes(first.folder / "train/p=00000.parquet")
    (first.folder / "manifest.json").unlink()
    storage.write_bytes(first.folder / "train/p=00000.parquet", train[:50])
    storage.write_bytes(first.folder / "leftover", b"x")
    again = prepare(small)
    assert not again.reused
    assert storage.read_bytes(again.folder / "train/p=00000.parquet") == train
    assert not (again.folder / "leftover").exists()


def test_preparing_twice_gives_the_same_bytes(small: Config, tmp_path: Path):
    one, two = prepare(small), prepare(small.model_copy(update={"storage": str(tmp_path / "elsewhere")}))
    assert one.folder != two.folder
    assert {n: p.digest for n, p in one.manifest.files.items()} == {n: p.digest for n, p in two.manifest.files.items()}


def test_changed_data_gets_an_output_of_its_own(tmp_path: Path):
    config = config_of(write_data(tmp_path))
    first = prepare(config)
    write_data(tmp_path, interactions(seed=1)[:900])
    second = prepare(config)
    assert not second.reused
    assert second.folder != first.folder


def test_seeds_share_an_output_unless_the_split_draws(tmp_path: Path):
    write_data(tmp_path)
    by_time, at_random = (config_of(tmp_path, split={"kind": kind}) for kind in ("time", "random"))
    other = {"seed": 2}
    assert prepare(by_time).folder == prepare(by_time.model_copy(update=other)).folder
    assert prepare(at_random).folder != prepare(at_random.model_copy(update=other)).folder


def test_a_bad_source_publishes_nothing(tmp_path: Path):
    rows = interactions()
    rows[500][3] = "maybe"
    config = config_of(write_data(tmp_path, rows))
    with pytest.raises(DataError, match=r"interactions\.csv: column 'label': 'maybe' in row 501"):
        prepare(config)
    assert not list(Path(config.root).rglob("manifest.json"))
    with pytest.raises(ConfigError, match="nothing prepared for this config; run `llm4msr prepare` first"):
        prepared(config)


def test_prepare_refuses_a_source_that_is_not_there(tmp_path: Path):
    with pytest.raises(StorageError, match=r"interactions\.csv"):
        prepare(config_of(tmp_path))


def test_what_prompts_are_made_of_is_the_same_before_and_after_preparing(small: Config):
    before = prompt_data(small, sampler)
    assert not Path(small.root).exists()
    published = prepare(small)
    after = prompt_data(small, sampler)
    assert before.users == after.users == 2
    tables = {name: table.to_pylist() for name, table in after.tables.items()}
    assert {name: before.tables[name].to_pylist() for name in tables} == tables
    assert before.item_fields == after.item_fields
    assert before.report == after.report
    assert before.warnings == after.warnings == published.manifest.info["warnings"] != []


def test_seen_rows_are_the_histories_rows_in_their_order(tmp_path: Path):
    output = prepare(config_of(write_data(tmp_path)))
    seen, train = table(output, "seen"), table(output, "train")
    lists = table(output, "histories")
    owners = np.repeat(lists["user"].to_numpy(), lists["interactions"].to_numpy())
    np.testing.assert_array_equal(seen["user"].to_numpy(), owners)
    rows = [sorted(zip(*(t[c].to_pylist() for c in ("user", "item", "label")), strict=True)) for t in (seen, train)]
    assert rows[0] == rows[1]
    titles = dict(zip(*(table(output, "items")[c].to_pylist() for c in ("item", "title")), strict=True))
    first = lists["user"][0].as_py()
    liked = [titles[r["item"]] for r in seen.to_pylist() if r["user"] == first and r["label"] > 0.5]
    for shelf in lists["history"][0].as_py():
        rest = iter(liked)
        assert all(title in rest for title in shelf["titles"])  # each one after the one before


def test_training_rows_point_at_themselves_among_seen_rows_and_say_what_was_before(tmp_path: Path):
    rows = interactions(users=8, items=9)
    rows = [[*row[:4], row[4] // 6, *row[5:]] for row in rows]  # several rows of a user at one moment
    output = prepare(config_of(write_data(tmp_path, rows, items=9)))
    train, seen = table(output, "train"), table(output, "seen")
    assert sorted(train["seen"].to_pylist()) == list(range(1, len(seen) + 1))
    there = seen.take([place - 1 for place in train["seen"].to_pylist()])
    for column in ("user", "item", "label"):
        assert there[column].to_pylist() == train[column].to_pylist()
    config = config_of(tmp_path)
    kept = [row for row, part in zip(rows, parts_of(rows, config), strict=True) if part == split.TRAIN]
    older = [sum(other[0] == row[0] and float(other[4]) < float(row[4]) for other in kept) for row in kept]
    users, items = (table(output, f"{side}s")[f"{side}_id"].to_pylist() for side in ("user", "item"))
    told = [(users[r["user"]], items[r["item"]], r["label"], r["before"]) for r in there.to_pylist()]
    assert sorted(told) == sorted((row[0], row[1], row[3], count) for row, count in zip(kept, older, strict=True))
    assert len(set(older)) > 3


def test_training_rows_lie_in_a_random_order_in_small_row_groups(tmp_path: Path):
    """Negatives are drawn after all positives, and users come one after the other."""
    raw = [[f"u{at // 10}", f"i{at % 20}", "home", 1, at, "tv"] for at in range(11_000)]
    config = config_of(write_data(tmp_path, raw), table={"label": ""}, split={"kind": "random", "negatives": 1})
    output = prepare(config)
    label = table(output, "train")["label"].to_numpy()
    shares = [label[start : start + 200].mean() for start in range(0, len(label) - 200, 200)]
    assert np.std(shares) == pytest.approx((0.5 * 0.5 / 200) ** 0.5, rel=0.4)
    with storage.open_parquet(output.folder / "train/p=00000.parquet") as parquet:
        assert parquet.metadata.row_group(0).num_rows == schema.TRAIN_GROUP_ROWS < len(label)


def test_a_negative_has_seen_what_its_positive_has(tmp_path: Path):
    config = config_of(write_data(tmp_path), table={"label": ""}, split={"negatives": 2})
    output = prepare(config)
    train, users = table(output, "train").to_pylist(), table(output, "seen")["user"].to_pylist()
    drawn = [row for row in train if row["label"] == 0]
    assert drawn
    assert all(users[row["seen"] - 1] == row["user"] for row in drawn)


# --- rare values, negatives by popularity, larger data ---------------------------------------------------------------


def test_rare_items_have_no_embedding_and_only_described_ones_a_number(tmp_path: Path):
    items = ["i0"] * 6 + ["i1"] * 6 + ["i2"] * 2 + ["nobody"] * 2 + ["i0"] * 4
    rows = [[f"u{at % 3}", item, "home", 1, at, "watch" if at < 3 else "tv"] for at, item in enumerate(items)]
    config = config_of(write_data(tmp_path, rows), split={"min_item_rows": 3, "min_value_count": 4})
    output = prepare(config)
    ids = table(output, "items").to_pydict()
    own = dict(zip(ids["item_id"], ids["f:item_id"], strict=True))
    assert {own["i0"], own["i1"]} == {1, 2}
    assert own["i2"] == 0
    assert "nobody" not in own
    assert fields(output)["item"]["item_id"] == 2
    assert fields(output)["item"]["brand"] == fields(output)["user"]["country"] == []
    assert fields(output)["context"] == {"device": ["tv"]}
    train = table(output, "train").to_pydict()
    assert train["item"].count(0) == 2
    assert train["c:device"].count(0) == 3
    liked = [title for user in table(output, "histories").to_pylist() for s in user["history"] for title in s["titles"]]
    assert "" not in liked
    assert liked.count("Title 2") == 2


@pytest.mark.parametrize("by", ["uniform", "popularity"])
def test_rare_items_without_a_number_are_drawn_as_other_items_are(tmp_path: Path, by: str):
    """Else an unknown item would be a like in every row that a model learns it from, or is measured on."""
    counts = [40] * 30 + [2] * 70
    items = np.random.default_rng(0).permutation(np.repeat(np.arange(100), counts)).tolist()
    rows = [[f"u{at % 300}", f"i{item}", "home", 1, at, "tv"] for at, item in enumerate(items)]
    plain = {"label": "", "items": "", "title": "", "category": "", "item_features": []}
    split = {"kind": "random", "min_item_rows": 5, "negatives": 4, "negatives_by": by}
    output = prepare(config_of(write_data(tmp_path, rows, users=300), table=plain, split=split))
    for name in ("train", "valid", "test"):
        item, label = (table(output, name)[column].to_numpy() for column in ("item", "label"))
        rare = 140 / sum(counts) if by == "popularity" else 70 / 100
        assert (item[label == 0] == 0).mean() == pytest.approx(rare, abs=0.06)
        assert (item[label == 1] == 0).mean() == pytest.approx(140 / sum(counts), abs=0.06)


@pytest.mark.parametrize("by", ["uniform", "popularity"])
def test_negatives_are_drawn_alike_or_as_often_as_they_were_taken(tmp_path: Path, by: str):
    """Everybody takes an item of their own, so that the others' can be drawn; those of some have many rows."""
    rows = [[f"u{u}", f"i{u % 5}", "home", 1, 0, "tv"] for u in range(3000) if u % 5 < 2 or u % 10 == u % 5]
    rows = [[*row[:4], at, row[5]] for at, row in enumerate(rows)]
    config = config_of(
        write_data(tmp_path, rows), table={"label": "", "users": "", "user_features": []},
        split={"kind": "random", "negatives": 4, "negatives_by": by},
    )  # fmt: skip
    output = prepare(config)
    train = table(output, "train").to_pandas()
    taken = train[train["label"] == 1].set_index("user")["item"]
    drawn = train[train["label"] == 0]
    share = train[train["label"] == 1]["item"].value_counts(normalize=True)
    weight = share if by == "popularity" else share * 0 + 1 / 5
    expected = dict.fromkeys(share.index, 0.0)
    for own, users in taken.value_counts().items():
        for item in expected:
            expected[item] += 4 * users * (item != own) * weight[item] / (1 - weight[own])
    counts = drawn["item"].value_counts()
    for item, count in expected.items():
        assert counts[item] == pytest.approx(count, rel=0.08)
    assert (taken.loc[drawn["user"]].to_numpy() != drawn["item"].to_numpy()).all()


def test_the_split_of_a_row_follows_from_its_number_alone(tmp_path: Path):
    rows = interactions()
    config = config_of(tmp_path, split={"kind": "random"})
    whole, half = parts_of(rows, config), parts_of(rows[:500], config)
    assert (whole[:500] == half).mean() > 0.9  # shares are exact, so that a few rows beside the cuts differ
    assert np.bincount(whole).tolist() == [800, 100, 100]


def test_a_dry_run_of_large_data_looks_at_the_first_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(prepare_stage, "SAMPLE_ROWS", 400)
    config = config_of(write_data(tmp_path), split={"partitions": 4})
    data = prompt_data(config, sampler)
    assert data.warnings[0] == "all of this is estimated from the first 400 of about 1,000 rows"
    assert data.tables["histories"].num_rows == 40
    assert data.users == 100
    assert not Path(config.root).exists()


@pytest.mark.parametrize("wrong", [0, 3, -2, 1 << 17, "all"])
def test_partitions_are_a_power_of_two(tmp_path: Path, wrong: Any):
    with pytest.raises(ValueError, match="partitions"):
        config_of(tmp_path, split={"partitions": wrong})


def test_one_partition_is_prepared_without_loading_ray_or_torch(tmp_path: Path):
    write_ids(tmp_path, ["a", "b"], 100)
    (tmp_path / "c.toml").write_text(
        f'name = "small"\nstorage = "{tmp_path}/out"\n[source]\nkind = "table"\npath = "{tmp_path}"\n'
        '[source.table]\ninteractions = "interactions.parquet"\nlabel = "label"\norder = "ts"\n'
    )
    code = "import sys; from llm4msr import load, pipeline; pipeline.prepare(load(sys.argv[1]))"
    code += "; print({'ray', 'torch', 'scipy', 'polars'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "c.toml")], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "set()", done.stderr


@pytest.mark.parametrize(("rows", "total"), [(1, 1), (5_000_000, 1), (5_000_001, 4), (10**7, 8), (10**8, 64)])
def test_users_get_as_many_partitions_as_hold_two_million_rows_each(tmp_path: Path, rows: int, total: int):
    config = config_of(write_data(tmp_path))
    raw = sources.read(config.source)
    users = raw.users.layout.empty_table()
    table = pa.table({"user_id": pa.nulls(rows)})
    large = RawData(HeldTable(table), HeldTable(users), raw.items, implicit=False)
    assert prepare_stage.partition_count(config, large) == total
