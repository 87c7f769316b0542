"""From files of many shapes to a config that runs, or that says what is left to decide."""

import re
import tomllib
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm4msr import storage
from llm4msr.arrays import strings
from llm4msr.config import Config
from llm4msr.data.prepare import prompt_data
from llm4msr.draft.draft import draft
from llm4msr.draft.guess import Draft, Guess
from llm4msr.draft.write import experiment_name, write
from llm4msr.errors import DataError, InputError, StorageError
from llm4msr.knowledge.prompts.sample import sampler
from llm4msr.pipeline import prepare
from tests.unit.draft import shapes
from tests.unit.draft.shapes import ACCEPTED, TO_DECIDE, items_that_stand_twice, rows

EXPECTED: dict[str, dict[str, Any]] = {
    "usual": {"user": "user_id", "item": "item_id", "scenario": "scenario", "label": "label", "order": "timestamp"}
    | {"title": "title", "category": "category_path", "items": "items.csv", "users": "users.csv"}
    | {"user_features": ("country",), "kind": "time"},
    "packed_tabs": {"user": "visitorId", "item": "productSku", "scenario": "pageType", "label": "clicked"}
    | {"order": "eventTime", "title": "Product Name", "context": ("deviceType",)},
    "parquet_by_day": {"interactions": "events", "user": "customer_id", "item": "article_id", "scenario": "channel"}
    | {"label": "bought", "order": "event_ts", "title": "prod_name", "category": "categories"},
    "folder_of_parts": {"interactions": "plays", "items": "songs.csv", "user": "MEMBER_ID", "item": "SONG_ID"}
    | {"scenario": "SURFACE", "label": "PLAYED", "title": "TRACK_NAME", "item_features": ("ARTIST",)},
    "orders_without_labels": {"user": "Customer ID", "item": "StockCode", "scenario": "Country", "negatives": 4}
    | {"order": "InvoiceDate"},
    "reviews_with_stars": {"user": "reviewerID", "item": "asin", "scenario": "domain", "negatives": 4}
    | {"order": "unixReviewTime"},
    "names_without_meaning": {"user": "a", "item": "b", "scenario": "c", "label": "d", "order": "e", "title": "n"}
    | {"items": "t2.txt"},
    "positions_within_users": {"user": "uid", "item": "iid", "order": "seq", "kind": "leave_last_out", "negatives": 4},
    "two_marks_in_the_header": {"delimiter": ";", "item": "item_id,code", "scenario": "shelf"},
    "stars_with_semicolons": {"scenario": "", "negatives": 4},
    "ids_under_two_names": {"item": "item_id", "item_in_items": "id", "title": "title"},
    "items_that_stand_twice": {"repeated_items": "first"},
    "no_time_and_no_files_beside": {"user": "customerNumber", "item": "isbn", "scenario": "store", "kind": "random"},
}


def values(found: Draft) -> dict[str, Any]:
    return {guess.key: guess.value for guess in [*found.table, *found.split] if isinstance(guess, Guess)}


def notes(found: Draft) -> str:
    return write(found, "x", "x.toml")


def config_of(found: Draft) -> Config:
    return Config.model_validate(tomllib.loads(write(found, "shop", "shop.toml")))


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_shape_becomes_a_config_that_runs_as_it_is(name: str, tmp_path: Path):
    found = draft(ACCEPTED[name](tmp_path))
    assert found.decisions == []
    guessed = values(found)
    assert {key: guessed.get(key) for key in EXPECTED[name]} == EXPECTED[name]
    data = prompt_data(config_of(found), sampler)
    assert data.users == 30
    pages = {"orders_without_labels": 2, "stars_with_semicolons": 1}.get(name, len({row.page for row in rows()}))
    assert data.tables["scenarios"].num_rows - 1 == pages


def test_of_items_that_stand_twice_the_first_row_counts_and_the_others_are_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    config = config_of(draft(items_that_stand_twice(tmp_path)))
    items = prompt_data(config, sampler).tables["items"]
    assert sorted(strings(items["item_id"])[1:]) == sorted(f"i{i}" for i in range(24))
    assert "items.csv: rows that repeat an item's id, which are not used: 1\n" in capfd.readouterr().err
    table = config.source.table.model_copy(update={"repeated_items": "refuse"})
    refusing = config.model_copy(update={"source": config.source.model_copy(update={"table": table})})
    with pytest.raises(DataError, match=r"stands again in row 25.*source\.table\.repeated_items = 'first'"):
        prompt_data(refusing, sampler)


@pytest.mark.parametrize("name", TO_DECIDE)
def test_what_is_left_to_decide_is_one_thing_and_what_reading_then_asks_for(name: str, tmp_path: Path):
    shape, said, refusal = TO_DECIDE[name]
    found = draft(shape(tmp_path))
    (decision,) = found.decisions
    assert decision.startswith(said)
    assert f"# - {said}" in notes(found)
    with pytest.raises(DataError, match=refusal):
        prompt_data(config_of(found), sampler)


def test_where_no_column_is_a_scenario_all_rows_are_of_one_and_the_items_are_searched(tmp_path: Path):
    found = draft(shapes.stars_with_semicolons(tmp_path))
    assert "copy 'genres' (2 values) of movies.csv" in notes(found)
    assert strings(prompt_data(config_of(found), sampler).tables["scenarios"]["scenario_id"])[1:] == ["all"]


def test_stars_are_explained_with_how_they_become_a_like(tmp_path: Path):
    text = notes(draft(shapes.reviews_with_stars(tmp_path)))
    assert "'overall' holds stars from 1 to 5" in text
    assert 'write label = "overall" and liked_above = 3, and take split.negatives out' in text


def test_what_the_draft_says_about_stars_makes_likes_of_them(tmp_path: Path):
    text = notes(draft(shapes.reviews_with_stars(tmp_path)))
    rated = re.sub(r"(?m)^negatives = .*$", "", text).replace(
        "[source.table]", '[source.table]\nlabel = "overall"\nliked_above = 3'
    )
    report = prompt_data(Config.model_validate(tomllib.loads(rated)), sampler).report
    assert 0 < report.parts["train"].positives < report.parts["train"].rows


def test_kinds_of_events_are_no_scenario_and_are_named(tmp_path: Path):
    cells = [[f"u{r.user}", f"i{r.item}", ("view", "cart", "purchase")[r.item % 3], r.page, r.minute] for r in rows()]
    shapes.write(tmp_path / "e.csv", ["user_id", "product_id", "event_type", "site", "ts"], cells)
    found = draft([str(tmp_path / "e.csv")])
    assert values(found)["scenario"] == "site"
    assert "'event_type' holds kinds of events ('" in notes(found)


def test_a_label_of_one_class_is_left_out(tmp_path: Path):
    cells = [[f"u{r.user}", f"i{r.item}", r.page, 1, r.minute] for r in rows()]
    shapes.write(tmp_path / "e.csv", ["user_id", "item_id", "page", "clicked", "ts"], cells)
    found = draft([str(tmp_path / "e.csv")])
    assert values(found)["negatives"] == 4
    assert "label is left out: 'clicked' is 1 in all rows" in notes(found)


def test_a_label_that_is_not_read_is_named(tmp_path: Path):
    cells = [[f"u{r.user}", f"i{r.item}", r.page, ("no", "yes")[r.liked], r.minute] for r in rows()]
    shapes.write(tmp_path / "e.csv", ["user_id", "item_id", "page", "clicked", "ts"], cells)
    found = draft([str(tmp_path / "e.csv")])
    assert values(found)["label"] == "clicked"
    assert "negatives" not in values(found)
    assert values(found)["scenario"] == "page"
    (decision,) = found.decisions
    assert decision.startswith("label: ")
    assert "column 'clicked': 'yes' in row 1" in decision


def test_a_label_that_misses_in_a_row_is_one_all_the_same(tmp_path: Path):
    cells = [[f"u{r.user}", f"i{r.item}", r.page, "" if at == 7 else r.liked, r.minute] for at, r in enumerate(rows())]
    shapes.write(tmp_path / "e.csv", ["user_id", "item_id", "page", "clicked", "ts"], cells)
    found = draft([str(tmp_path / "e.csv")])
    assert values(found)["label"] == "clicked"
    assert "negatives" not in values(found)
    assert [decision.split(":")[0] for decision in found.decisions] == ["label"]


def test_a_label_is_no_scenario(tmp_path: Path):
    cells = [[f"u{r.user}", f"i{r.item}", ("no", "yes")[r.liked], r.minute] for r in rows()]
    shapes.write(tmp_path / "e.csv", ["user_id", "item_id", "clicked", "ts"], cells)
    assert values(draft([str(tmp_path / "e.csv")]))["scenario"] == ""


def test_days_whose_columns_stand_in_another_order_are_read_and_those_with_more_are_named(tmp_path: Path):
    header = ["user_id", "item_id", "page", "clicked", "ts"]
    cells = [[f"u{r.user}", f"i{r.item}", r.page, r.liked, r.minute] for r in rows()]
    shapes.write(tmp_path / "day1.csv", header, cells[:300])
    shapes.write(tmp_path / "day2.csv", header[::-1], [row[::-1] for row in cells[300:]])
    found = draft([str(tmp_path)])
    assert (values(found)["interactions"], found.decisions) == ("", []), "all files"
    shapes.write(tmp_path / "day2.csv", [*header, "device"], [[*row, "tv"] for row in cells[300:]])
    (decision,) = draft([str(tmp_path)]).decisions
    assert decision.startswith("interactions: day2.csv names users and items as day1.csv does, but has other columns")


def test_dates_are_known_by_their_look_where_no_name_tells(tmp_path: Path):
    cells = [[f"u{r.user}", f"i{r.item}", r.page, r.liked, f"{1 + r.minute // 1440}.03.2026 8:00"] for r in rows()]
    shapes.write(tmp_path / "e.csv", ["Kunde", "Artikel", "Seite", "Gekauft", "Zeit"], cells)
    found = draft([str(tmp_path / "e.csv")])
    assert (values(found)["user"], values(found)["item"], values(found)["order"]) == ("Kunde", "Artikel", "Zeit")
    assert [decision.split(":")[0] for decision in found.decisions] == ["order"]


def test_few_different_times_are_cut_within_each_user(tmp_path: Path):
    cells = [[f"u{r.user}", f"i{r.item}", r.page, r.liked, f"2026-03-0{1 + r.minute // 1440}"] for r in rows()]
    shapes.write(tmp_path / "e.csv", ["user_id", "item_id", "page", "clicked", "day"], cells)
    found = draft([str(tmp_path / "e.csv")])
    assert (values(found)["kind"], values(found)["by"]) == ("time", "user")
    assert prompt_data(config_of(found), sampler).users == 30


def test_files_that_may_be_the_scenarios_are_named_as_such(tmp_path: Path):
    for name in ("Beauty", "Toys"):
        cells = [[f"u{r.user}", f"i{r.item}", r.liked, r.minute] for r in rows()]
        shapes.write(tmp_path / f"{name}.csv", ["user_id", "item_id", "clicked", "ts"], cells)
    text = notes(draft([str(tmp_path)]))
    assert "if each file is a scenario, put each into a folder of its own, such as 'scenario=Beauty'" in text
    for name in ("Beauty", "Toys"):
        (tmp_path / f"scenario={name}").mkdir()
        (tmp_path / f"{name}.csv").rename(tmp_path / f"scenario={name}" / f"{name}.csv")
    found = draft([str(tmp_path)])
    assert found.decisions == []
    assert prompt_data(config_of(found), sampler).tables["scenarios"].num_rows == 1 + 2


def test_described_ids_of_which_none_is_used_are_a_thing_to_mend(tmp_path: Path):
    shapes.usual(tmp_path)
    shapes.write(tmp_path / "items.csv", ["item_id", "title"], [row[:2] for row in shapes.titles("I-")])
    (decision,) = draft([str(tmp_path)]).decisions
    assert decision.startswith("items: none of the interactions' items is in items.csv: the file has 'I-")


def test_a_scenario_in_the_table_of_items_is_no_feature(tmp_path: Path):
    shapes.usual(tmp_path)
    cells = [[*row, shapes.PAGES[at % 3], "ab"[at % 2]] for at, row in enumerate(shapes.titles("i"))]
    shapes.write(tmp_path / "items.csv", ["item_id", "title", "category_path", "scenario", "kind"], cells)
    found = draft([str(tmp_path)])
    assert values(found)["item_features"] == ("kind",)
    assert "not used: scenario" in notes(found)


def test_columns_of_every_type_are_looked_at(tmp_path: Path):
    count = len(rows())
    columns: dict[str, pa.Array[Any]] = {
        "user_id": pa.array([2**62 + r.user for r in rows()]),
        "item_id": pa.array([2**64 - 1 - r.item for r in rows()], pa.uint64()),
        "page": pa.array([r.page for r in rows()], pa.string_view()),
        "clicked": pa.array([Decimal(r.liked) for r in rows()]),
        "ts": pa.array([r.minute for r in rows()], pa.timestamp("ns", "Europe/Berlin")),
        "far": pa.array([2**62 + r.minute for r in rows()], pa.timestamp("us")),
        "nothing": pa.nulls(count),
        "half": pa.array(np.zeros(count, np.float16)),
        "not numbers": pa.array([float("nan")] * count),
        "bytes": pa.array([b"\xff"] * count),
        "vector": pa.array([[0.5]] * count, pa.list_(pa.float32())),
        "struct": pa.array([{"a": 1}] * count),
        "lasting": pa.array([1] * count, pa.duration("s")),
        "at": pa.array([1] * count, pa.time64("us")),
        "tags": pa.array([["a", None]] * count),
    }
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    found = draft([str(tmp_path / "rows.parquet")])
    expected = {"user": "user_id", "item": "item_id", "scenario": "page", "label": "clicked", "order": "ts"}
    assert {key: values(found)[key] for key in expected} == expected
    assert found.decisions == []
    assert prompt_data(config_of(found), sampler).users == 30


def test_items_are_read_and_words_are_counted_instead_by_taking_a_sign_off(tmp_path: Path):
    text = notes(draft(shapes.usual(tmp_path)))
    uncommented = text.replace("# item_vectors", "item_vectors")
    read = [Config.model_validate(tomllib.loads(one)).extract for one in (text, uncommented)]
    assert [(one.reads, one.pooling, one.point_in_time, one.item_vectors) for one in read] == [
        ("items", "mean", True, "llm"),
        ("items", "mean", True, "words"),
    ]


def test_the_past_is_matched_where_rows_are_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    few = notes(draft(shapes.reviews_with_stars(tmp_path / "few")))
    uncommented = few.replace("# [model]", "[model]").replace("# match", "match")
    monkeypatch.setattr("llm4msr.draft.draft.MANY_ROWS", 10)
    many = notes(draft(shapes.reviews_with_stars(tmp_path / "many")))
    labelled = notes(draft(shapes.usual(tmp_path / "labelled")))
    matches = [len(Config.model_validate(tomllib.loads(t)).model.match) for t in (few, uncommented, many, labelled)]
    assert matches == [0, 4, 4, 4]


def test_files_with_different_marks_of_which_one_must_be_named_are_to_be_mended(tmp_path: Path):
    given = shapes.two_marks_in_the_header(tmp_path)
    items = [[f"i{i}", f"Blue cup {i}"] for i in range(24)]
    shapes.write(tmp_path / "items.csv", ["item_id,code", "title"], items, ";")
    assert draft([*given, str(tmp_path / "items.csv")]).decisions == []
    shapes.write(tmp_path / "items.csv", ["item_id,code", "title"], items, "\t")
    (decision,) = draft([*given, str(tmp_path / "items.csv")]).decisions
    assert re.match(r"delimiter: cells are separated by '.*' in one file, and otherwise in \w+\.csv; write", decision)


def test_of_two_ids_the_one_that_another_table_describes_is_taken(tmp_path: Path):
    cells = [[f"u{r.user}", f"v{r.item}-{r.user % 2}", f"i{r.item}", r.page, r.liked, r.minute] for r in rows()]
    header = ["user_id", "item_id", "product_id", "page", "clicked", "ts"]
    shapes.write(tmp_path / "e.csv", header, cells)
    assert values(draft([str(tmp_path / "e.csv")]))["item"] == "item_id"
    shapes.write(tmp_path / "p.csv", ["product_id", "title"], [row[:2] for row in shapes.titles("i")])
    assert values(draft([str(tmp_path)]))["item"] == "product_id"


def test_outputs_of_a_run_beside_the_data_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    shapes.usual(tmp_path / "data")
    first = draft(["."])
    assert first.path == "."
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "x.csv").write_text("user_id,item_id\n")
    prepare(config_of(first))
    assert [*(tmp_path / "runs").rglob("*.parquet")]
    assert values(draft(["."])) == values(first)


def test_a_file_that_is_spelled_out_is_taken_whatever_its_name(tmp_path: Path):
    shapes.usual(tmp_path)
    (tmp_path / "interactions.csv").rename(tmp_path / "_log")
    found = draft([str(tmp_path / "_log")])
    assert values(found)["interactions"] == "_log"
    assert prompt_data(config_of(found), sampler).users == 30


def test_users_and_items_in_tables_apart_are_to_be_joined(tmp_path: Path):
    lines = [[at // 4, f"p{r.item}", r.liked] for at, r in enumerate(rows())]
    shapes.write(tmp_path / "order_lines.csv", ["order_id", "product_id", "reordered"], lines)
    shapes.write(
        tmp_path / "orders.csv", ["order_id", "user_id", "weekday"], [[o, f"u{o % 30}", o % 7] for o in range(150)]
    )
    with pytest.raises(
        DataError, match=r"users stand in orders\.csv and items in order_lines\.csv: join .* 'order_id'"
    ):
        draft([str(tmp_path)])


def test_files_of_an_object_store_are_looked_at_too(tmp_path: Path):
    shapes.usual(tmp_path)
    remote = storage.path("memory://bucket/shop")
    for file in tmp_path.iterdir():
        storage.write_bytes(remote / file.name, file.read_bytes())
    found = draft(["memory://bucket/shop"])
    assert found.path == "memory://bucket/shop"
    assert {key: values(found).get(key) for key in EXPECTED["usual"]} == EXPECTED["usual"]
    assert prompt_data(config_of(found), sampler).users == 30


def test_scenarios_that_share_no_user_are_said_to(tmp_path: Path):
    cells = [[f"u{r.user}", f"i{r.item}", f"country {r.user % 3}", r.liked, r.minute] for r in rows()]
    shapes.write(tmp_path / "e.csv", ["user_id", "item_id", "country", "clicked", "ts"], cells)
    (scenario,) = [g for g in draft([str(tmp_path)]).table if isinstance(g, Guess) and g.key == "scenario"]
    assert not scenario.is_sure
    assert "No user is in two of them" in scenario.why


def test_no_more_than_the_first_block_of_a_file_is_read(tmp_path: Path):
    line = "u{0},i{1},home,{2},{3}\n"
    text = "".join(line.format(at % 5000, at % 700, at % 2, at) for at in range(400_000)).encode()
    (tmp_path / "big.csv").write_bytes(b"user_id,item_id,page,clicked,ts\n" + text + b"\xff,broken\n")
    found = draft([str(tmp_path / "big.csv")])
    assert "100,000 rows of big.csv" in found.seen
    (interactions,) = [g for g in found.table if isinstance(g, Guess) and g.key == "interactions"]
    about = int(interactions.why.rpartition("about ")[2].split()[0].replace(",", ""))
    assert about == pytest.approx(400_000, rel=0.1)


@pytest.mark.parametrize(
    "evil", ['a"\n[train]\nepochs = 1\n#', "back\\slash\t", "\u202eevil\u2066", "x\x7f\x85\u2028y", "'''"]
)
def test_what_files_say_stays_text_in_the_config(evil: str, tmp_path: Path):
    cells = [[f"u{r.user}", f"i{r.item}", f"{evil}{r.page}", r.liked, r.minute] for r in rows()]
    header = ["user_id", "item_id", "page", "clicked", "ts"]
    shapes.write(tmp_path / "e.csv", header, cells)
    shapes.write(
        tmp_path / "i.csv",
        ["item_id", f"title {evil}", "colour" + evil],
        [[f"i{i}", f"A {evil} cup {i}", f"{evil}{i % 2}"] for i in range(24)],
    )
    if "\n" in evil:  # a header is one line
        evil = evil.replace("\n", " ")
        shapes.write(
            tmp_path / "i.csv",
            ["item_id", f"title {evil}", "colour" + evil],
            [[f"i{i}", f"A {evil} cup {i}", f"{evil}{i % 2}"] for i in range(24)],
        )
    found = draft([str(tmp_path)])
    text = write(found, "shop", "e.toml")
    document = tomllib.loads(text)
    assert list(document) == ["name", "source", "split", "extract"]
    assert document["source"]["table"]["title"] == f"title {evil}"
    assert document["source"]["table"]["item_features"] == ["colour" + evil]
    assert all(character.isprintable() or character in "\n\t" for character in text)
    assert prompt_data(config_of(found), sampler).users == 30


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("u.data", b"196\t242\t3\t881250949\n186\t302\t3\t891717742\n", "the first line looks like data"),
        ("rows.jsonl", b"{}\n", ".jsonl files are not read; write it as CSV or Parquet"),
        ("sheet.xlsx", b"PK\x03\x04", "save its sheet as CSV"),
        ("shop.sqlite", b"SQLite", 'set source.kind = "sql"'),
        ("latin.csv", "user_id,item_id\nü,1\n".encode("latin-1"), "save it as UTF-8"),
        ("empty.csv", b"", "the file is empty"),
        ("weather.csv", b"city,degrees\nRome,30.5\nOslo,12.1\nRome,31.5\n", "no column looks like ids of"),
    ],
)
def test_what_cannot_be_drafted_says_what_to_do(name: str, content: bytes, message: str, tmp_path: Path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        draft([str(tmp_path / name)])
    assert message in str(caught.value)
    assert name in str(caught.value)


def test_a_folder_without_tables_and_a_missing_file_are_named(tmp_path: Path):
    (tmp_path / "notes.md").write_text("hello")
    with pytest.raises(DataError, match=r"no CSV and no Parquet file; it holds notes\.md"):
        draft([str(tmp_path)])
    with pytest.raises(StorageError, match="absent"):
        draft([str(tmp_path / "absent.csv")])


def test_files_of_one_folder_with_the_same_columns_are_one_table(tmp_path: Path):
    for month in ("january", "february"):
        cells = [[f"u{r.user}", f"i{r.item}", r.page, r.liked, r.minute] for r in rows()]
        shapes.write(tmp_path / "log" / f"{month}.csv", ["user_id", "item_id", "page", "clicked", "ts"], cells)
    shapes.write(tmp_path / "items.csv", ["item_id", "title"], [row[:2] for row in shapes.titles("i")])
    assert values(draft([str(tmp_path)]))["interactions"] == "log"
    assert values(draft([str(tmp_path / "log")]))["interactions"] == ""


def test_numbered_files_beside_others_are_named_by_a_pattern(tmp_path: Path):
    for day in range(1, 13):
        cells = [[f"u{r.user}", f"i{r.item}", r.page, r.liked, r.minute] for r in rows(50, seed=day)]
        shapes.write(
            tmp_path / f"clicks_2026-05-{day:02}.csv.gz", ["user_id", "item_id", "page", "clicked", "ts"], cells
        )
    shapes.write(tmp_path / "items.csv", ["item_id", "title"], [row[:2] for row in shapes.titles("i")])
    (tmp_path / "README.md").write_text("hello")
    found = draft([str(tmp_path)])
    assert values(found)["interactions"] == "clicks_*.csv.gz"
    assert prompt_data(config_of(found), sampler).users == 30
    assert "files that are not used: README.md" in notes(found)


def test_numbered_files_of_other_columns_are_other_tables(tmp_path: Path):
    shapes.usual(tmp_path)
    for old, new in (("interactions", "table1"), ("items", "table2"), ("users", "table3")):
        (tmp_path / f"{old}.csv").rename(tmp_path / f"{new}.csv")
    guessed = values(draft([str(tmp_path)]))
    assert (guessed["interactions"], guessed["items"], guessed["users"]) == ("table1.csv", "table2.csv", "table3.csv")


def test_public_data_is_known_by_its_files(tmp_path: Path):
    for name in ("ratings.dat", "movies.dat", "users.dat"):
        (tmp_path / name).write_text("1::2\n")
    assert config_of(draft([str(tmp_path)])).source.kind == "movielens"
    (tmp_path / "amazon").mkdir()
    (tmp_path / "amazon" / "reviews_Books_5.json.gz").write_bytes(b"")
    assert config_of(draft([str(tmp_path / "amazon")])).source.kind == "amazon"


def test_paths_are_written_as_they_were_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shapes.usual(tmp_path / "data" / "shop")
    monkeypatch.chdir(tmp_path)
    assert draft(["data/shop"]).path == "data/shop"
    assert draft(["data/shop/interactions.csv", "data/shop/items.csv"]).path == "data/shop"
    assert draft([str(tmp_path / "data" / "shop")]).path == str(tmp_path / "data" / "shop")
    monkeypatch.chdir(tmp_path / "data" / "shop")
    assert draft(["interactions.csv"]).path == "."


@pytest.mark.parametrize(
    ("path", "name"),
    [("data/My shop/", "My-shop"), (".", "my-data"), ("s3://bucket/a_b.c", "a_b.c"), ("ml-1m.zip", "ml-1m")],
)
def test_the_experiment_is_named_after_the_folder(path: str, name: str):
    assert experiment_name(path) == name
    Config.model_validate({"name": name, "source": {"kind": "table", "path": "x"}})
