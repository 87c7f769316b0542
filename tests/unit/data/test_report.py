"""What `prepare` says about data: figures that a plain count confirms, and a warning for each likely mistake."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm4msr import storage
from llm4msr.cli.main import app
from llm4msr.config import Config
from llm4msr.data import split
from llm4msr.data.interactions import Ids
from llm4msr.data.prepare import prompt_data
from llm4msr.data.report import DataReport, report_lines
from llm4msr.data.report_counts import count_repeats
from llm4msr.errors import ConfigError, DataError
from llm4msr.knowledge.prompts import render
from llm4msr.knowledge.prompts.sample import sampler
from llm4msr.pipeline import prepare
from llm4msr.text import quote
from tests.support.data import HEADER, config_of, write_csv
from tests.support.splits import assign

Row = list[Any]
ITEMS, USERS = 40, 30


def healthy(seed: int = 0, rows: int = 900) -> list[Row]:
    """Rows without anything to warn of: each user and item met once, in one of two scenarios, oldest first."""
    rng = random.Random(seed)
    pairs = rng.sample([(u, i) for u in range(USERS) for i in range(ITEMS)], rows)
    times = sorted(rng.sample(range(1_600_000_000, 1_600_900_000), rows))
    return [
        [f"u{user}", f"i{item}", rng.choice(("home", "search")), int(rng.random() < 0.4), time, "tv"]
        for (user, item), time in zip(pairs, times, strict=True)
    ]


def described() -> list[Row]:
    return [[f"i{i}", f"Thing number {i}", f"All > c{i % 5}", f"b{i % 3}"] for i in range(ITEMS)]


def write(
    folder: Path, rows: list[Row], items: list[Row] | None = None, users: list[str] | None = None, **sections: Any
) -> Config:
    write_csv(folder / "interactions.csv", HEADER, rows)
    header = ["item_id", "title", "category_path", "brand"]
    write_csv(folder / "items.csv", header, described() if items is None else items)
    users = [f"u{u}" for u in range(USERS)] if users is None else users
    write_csv(folder / "users.csv", ["user_id", "country"], [[user, "de"] for user in users])
    return config_of(folder, **sections)


def report_of(config: Config) -> tuple[DataReport, list[str]]:
    info = prepare(config).manifest.info
    return DataReport.model_validate(info["report"]), info["warnings"]


def only_warning(config: Config, *parts: str) -> str:
    """The one warning there is; it has all these parts."""
    _, warnings = report_of(config)
    assert len(warnings) == 1, warnings
    for part in parts:
        assert part in warnings[0]
    return warnings[0]


# --- the figures ------------------------------------------------------------------------------------------------------


def test_nothing_is_warned_of_where_nothing_is_wrong(tmp_path: Path):
    for kind in ({"kind": "time"}, {"kind": "time", "by": "user"}, {"kind": "random"}, {"kind": "leave_last_out"}):
        assert report_of(write(tmp_path, healthy(), split=kind))[1] == []


@pytest.mark.parametrize("latest", [0, 500])
def test_figures_are_those_of_a_plain_count(tmp_path: Path, latest: int):
    rows = healthy()
    rows += [[f"late{i}", f"i{i}", "search", i % 2, 1_600_900_000 + i, "tv"] for i in range(20)]
    config = write(tmp_path, rows, split={"latest": latest}, table={"users": "", "user_features": []})
    report, _ = report_of(config)
    used = rows[-latest:]
    frame = pd.DataFrame({"user_id": [r[0] for r in used], "order": [float(r[4]) for r in used]})
    parts = assign(frame, config.split, config.seed)
    of = {name: [r for r, p in zip(used, parts, strict=True) if p == code] for name, code in split.SPLITS.items()}
    known = {row[0] for row in of["train"]}
    for name, part in report.parts.items():
        here = of[name]
        assert part.rows == len(here)
        assert part.positives == sum(row[3] for row in here)
        assert part.users == len({row[0] for row in here})
        assert part.users_with_past == len({row[0] for row in here} & known)
        assert part.rows_with_past == sum(row[0] in known for row in here)
    assert (report.rows, report.users) == (len(used), len({row[0] for row in used}))
    assert (report.items, report.scenarios) == (len({row[1] for row in used}), 2)
    counts = pd.Series([row[0] for row in used]).value_counts()
    assert report.users_with_one_row == (counts == 1).sum() > 0
    homes = pd.Series([row[2] for row in used]).value_counts()
    assert report.by_scenario.largest == {quote(name): count for name, count in homes.items()}


def test_the_past_is_what_prompts_may_hold(tmp_path: Path):
    rows = healthy(rows=600) + [[f"new{i % 9}", f"i{i}", "home", 1, 1_600_950_000 + i, "tv"] for i in range(30)]
    rows = [row if at % 7 else [*row[:4], row[4], "phone"] for at, row in enumerate(sorted(rows, key=lambda r: r[4]))]
    config = write(tmp_path, rows, split={"history_share": 0.5}, table={"users": "", "user_features": []})
    report, _ = report_of(config)
    reached = set(storage.read_table(prepare(config).folder / "histories/p=00000.parquet")["user_id"].to_pylist())
    assert report.parts["train"].users_with_past == len(reached)
    assert report.parts["test"].users_with_past == len(reached & {row[0] for row in rows[-63:]})


def test_drawn_negatives_are_counted_apart(tmp_path: Path):
    rows = [[*row[:3], 1, *row[4:]] for row in healthy()]
    config = write(tmp_path, rows, table={"label": ""}, split={"negatives": 2})
    report, warnings = report_of(config)
    output = prepare(config)
    for name, part in report.parts.items():
        labels = storage.read_table(output.folder / f"{name}/p=00000.parquet")["label"].to_numpy()
        assert (part.rows, part.positives, part.drawn) == (len(labels), labels.sum(), (labels == 0).sum())
    assert warnings == []
    assert any("drawn as negatives" in line for line in report_lines(report))


@pytest.mark.parametrize(
    ("items", "lacking", "told"),
    [(1, 0, "no negative could be drawn"), (40, 1, ": 40 of 476 for test rows. Lower split.negatives")],
)
def test_negatives_that_cannot_be_drawn_are_told(tmp_path: Path, items: int, lacking: int, told: str):
    """Every user takes every item, but for some who lack a few."""
    pairs = [(u, i) for u in range(USERS) for i in range(items - lacking * (u % 3 == 0))]
    rows = [
        [f"u{u}", f"i{i}", "home", 1, 1_600_000_000 + (7 * at) % len(pairs), "tv"] for at, (u, i) in enumerate(pairs)
    ]
    config = write(tmp_path, rows, table={"label": ""}, split={"negatives": 4, "kind": "random"})
    _, warnings = report_of(config)
    assert len([line for line in warnings if told in line]) == 1
    assert not any("split.implicit" in line for line in warnings)


def test_the_sampled_prompt_is_the_one_that_extraction_asks_and_holds_training_rows_alone(tmp_path: Path):
    items = [row if row[0] != "i7" else ["i7", "A secret", "All > c2", "b"] for row in described()]
    rows = healthy()
    rows = [row if at < 720 or row[1] != "i8" else [row[0], "i7", *row[2:]] for at, row in enumerate(rows)]
    rows = [row for at, row in enumerate(rows) if at >= 720 or row[1] != "i7"]
    config = write(tmp_path, rows, items, split={"kind": "time"})
    report, _ = report_of(config)
    histories = storage.read_table(prepare(config).folder / "histories/p=00000.parquet")
    prompts = {quote(p["raw_id"]): p["prompt"] for p in render.user_prompts(histories, config).to_pylist()}
    assert report.prompt == prompts[report.prompt_of]
    assert "Thing number" in report.prompt
    assert not any("secret" in prompt for prompt in prompts.values())


def test_where_items_are_read_an_items_prompt_is_shown(tmp_path: Path):
    report, _ = report_of(write(tmp_path, healthy(), extract={"reads": "items"}))
    number = report.prompt_of.strip("'").removeprefix("i")
    assert f"Thing number {number}\n" in report.prompt


def test_a_template_that_cannot_be_used_is_told_before_the_source_is_read(tmp_path: Path):
    (tmp_path / "mine.txt").write_text("no place")
    bad = [[*row[:3], "maybe", *row[4:]] for row in healthy()]
    config = write(tmp_path, bad, extract={"user_template": str(tmp_path / "mine.txt")})
    with pytest.raises(ConfigError, match=r"mine\.txt"):
        prepare(config)


# --- ids that do not meet -------------------------------------------------------------------------------------------

WRITTEN = {
    "as a decimal": lambda i: f"{i}.0",
    "with leading zeros": lambda i: f"{i:05d}",
    "with a trailing blank": lambda i: f"{i} ",
    "with a NUL": lambda i: f"{i}\0",
    "with a byte order mark": lambda i: f"\ufeff{i}",
    "in full width": lambda i: "".join(chr(ord(c) + 0xFEE0) for c in str(i)),
}


def numbered(change: Callable[[int], str], side: int) -> list[Row]:
    rows = healthy()
    for row in rows:
        row[side] = change(int(row[side][1:]))
    return rows


@pytest.mark.parametrize("side", ["user", "item"])
@pytest.mark.parametrize("written", WRITTEN)
def test_ids_written_otherwise_in_the_two_files_are_an_error_with_examples_of_both(
    tmp_path: Path, written: str, side: str
):
    rows = numbered(str, 0 if side == "user" else 1)
    items = [[f"{WRITTEN[written](i)}" if side == "item" else f"i{i}", *row[1:]] for i, row in enumerate(described())]
    users = [WRITTEN[written](i) if side == "user" else f"u{i}" for i in range(USERS)]
    config = write(tmp_path, rows, items, users)
    first = int(rows[0][0 if side == "user" else 1])
    with pytest.raises(DataError) as error:
        prepare(config)
    message = str(error.value)
    assert f"{side}s.csv: none of the" in message
    assert f"{str(first)!r}," in message
    assert repr(WRITTEN[written](first)) in message
    with pytest.raises(DataError, match="none of the"):
        prompt_data(config, sampler)
    assert not list(tmp_path.rglob("manifest.json"))


@pytest.mark.parametrize("written", WRITTEN)
def test_some_ids_written_otherwise_are_told_in_pairs(tmp_path: Path, written: str):
    change = WRITTEN[written]
    rows = numbered(lambda i: change(i) if i < 4 else str(i), 1)
    items = [[str(i), *row[1:]] for i, row in enumerate(described())]
    config = write(tmp_path, rows, items)
    warning = only_warning(config, "4 of 40 item ids", "4 of them differ", "exactly as given")
    first = next(row[1] for row in rows if row[1] in {change(i) for i in range(4)})
    assert repr(first) in warning
    report, _ = report_of(config)
    found = report.described["item"]
    assert (found.ids, found.missing, found.alike, found.in_file) == (40, 4, 4, 40)
    assert found.missing_rows == sum(row[1] in {change(i) for i in range(4)} for row in rows)
    assert len(found.examples) == len(found.theirs) == 3


def test_large_numbers_that_went_through_decimals_are_told(tmp_path: Path):
    large = 9_007_199_254_740_993
    rows = numbered(lambda i: str(large + 8 * i), 1)
    ids = pa.array([float(large + 8 * i) for i in range(ITEMS)], pa.float64())
    write(tmp_path, rows)
    columns = {"item_id": ids, "title": [f"Thing {i}" for i in range(ITEMS)]}
    pq.write_table(pa.table(columns), tmp_path / "items.parquet")
    config = config_of(tmp_path, table={"items": "items.parquet", "category": "", "item_features": []})
    with pytest.raises(DataError, match=r"items\.parquet: column 'item_id': .* too large to be exact as double"):
        prepare(config)


def test_ids_that_are_quite_other_are_an_error_if_all_are_and_a_warning_if_most(tmp_path: Path):
    other = [[f"product {i}", *row[1:]] for i, row in enumerate(described())]
    with pytest.raises(DataError, match=r"they have 'i\d+', 'i\d+', 'i\d+', this file has 'product 0', 'product 1'"):
        prepare(write(tmp_path / "a", healthy(), other))
    _, warnings = report_of(write(tmp_path / "b", healthy(), [*other, *described()[:10]]))
    assert "30 of 40 item ids" in warnings[0]
    assert "the file has 'product 0'" in warnings[0]
    assert "30 of 40 items have no title" in warnings[1]


def test_a_few_items_without_a_description_are_counted_without_a_warning(tmp_path: Path):
    report, warnings = report_of(write(tmp_path, healthy(), described()[:-2]))
    assert report.described["item"].missing == 2
    assert warnings == []
    assert any("38 of 40 are described" in line and "'i38'" in line for line in report_lines(report))


# --- one warning for each likely mistake ------------------------------------------------------------------------------


def in_user(rows: list[Row], first: int = 1) -> list[Row]:
    """The same with the row's place in its user's time line for a time."""
    seen: dict[str, int] = {}
    for row in rows:
        row[4] = seen[row[0]] = seen.get(row[0], first - 1) + 1
    return rows


@pytest.mark.parametrize("first", [0, 1])
def test_a_position_within_the_user_is_no_global_time(tmp_path: Path, first: int):
    rows = in_user(healthy(), first)
    _, warnings = report_of(write(tmp_path, rows))
    assert any(
        "'ts' looks like a position within the user" in text and "split.by = 'user'" in text for text in warnings
    )
    assert report_of(write(tmp_path, rows, split={"by": "user"}))[1] == []
    assert report_of(write(tmp_path, rows, split={"kind": "leave_last_out"}))[1] == []
    latest = report_of(write(tmp_path, rows, split={"by": "user", "latest": 800}))[1]
    assert any("position within the user" in text for text in latest)


def test_days_that_count_from_one_are_no_position(tmp_path: Path):
    rows = healthy()
    for at, row in enumerate(rows):
        row[4] = 1 + at // 9
    assert report_of(write(tmp_path, rows))[1] == []


def test_rows_without_an_order_are_no_silent_time_line(tmp_path: Path):
    for kind in ("time", "leave_last_out"):
        only_warning(write(tmp_path, healthy(), table={"order": ""}, split={"kind": kind}), "there is no", "'random'")
    assert report_of(write(tmp_path, healthy(), table={"order": ""}, split={"kind": "random"}))[1] == []


def test_parts_of_another_size_than_set_are_told(tmp_path: Path):
    rows = healthy()
    for at, row in enumerate(rows):
        row[4] = 2020 + at // 250
    only_warning(write(tmp_path, rows), "4 times", "valid 27.8% for 10.0%, test 16.7% for 10.0%")
    for row in rows:
        row[4] = 2020
    with pytest.raises(DataError, match=r"1 different times.*split.by = 'user'"):
        prepare(write(tmp_path, rows))


def test_rows_that_are_left_out_are_told(tmp_path: Path):
    every, _ = report_of(write(tmp_path / "all", healthy()))
    few, _ = report_of(write(tmp_path / "few", healthy(), split={"by": "user", "first_events": 10}))
    assert (every.left_out, few.rows + few.left_out) == (0, every.rows)
    line = f"left out (split.first_events, split.latest): {few.left_out:,} of {every.rows:,} rows"
    assert any(line in told for told in report_lines(few))
    assert not any("left out" in told for told in report_lines(every))


def test_users_with_too_few_rows_to_divide_are_told(tmp_path: Path):
    rows = [[*row[:4], at, *row[5:]] for at, row in enumerate(healthy())]
    few = [[f"u{at // 10 if at < 30 else 3 + (at - 30) // 9}", *row[1:]] for at, row in enumerate(rows)]
    _, warnings = report_of(write(tmp_path / "few", few, split={"by": "user"}))
    (told,) = (text for text in warnings if "users have too few rows to divide" in text)
    assert "test 0.3% for 10.0%. Set split.kind = 'leave_last_out'" in told
    fewer = [[f"u{at // 8}", *row[1:]] for at, row in enumerate(rows[:800])]
    with pytest.raises(DataError, match=r"each user's rows 0.1 test, so users need 10: set split.kind = 'leave_last"):
        prepare(write(tmp_path / "fewer", fewer, split={"by": "user"}))


def test_no_item_with_enough_rows_is_told_and_the_run_goes_on(tmp_path: Path):
    only_warning(write(tmp_path, healthy(), split={"min_item_rows": 5000}), "split.min_item_rows = 5000", "lower it")


def test_all_labels_of_one_class_are_told_and_the_run_goes_on(tmp_path: Path):
    likes = [[*row[:3], 1, *row[4:]] for row in healthy()]
    only_warning(write(tmp_path / "1", likes), "all labels are 1", "set split.implicit = true, and split.negatives")
    none = [[*row[:3], 0, *row[4:]] for row in healthy()]
    report, warnings = report_of(write(tmp_path / "0", none))
    assert "no label is above 0.5" in warnings[0]
    assert report.prompt == ""
    assert any("no user has liked anything" in line for line in report_lines(report))


@pytest.mark.parametrize(("label", "part", "first"), [(1, "validation", 720), (0, "test", 810)])
def test_a_part_of_one_class_is_told(tmp_path: Path, label: int, part: str, first: int):
    rows = [[*r[:3], label if first <= at < first + 90 else r[3], *r[4:]] for at, r in enumerate(healthy())]
    only_warning(write(tmp_path, rows), f"all 90 {part} rows have label {label}", "AUC is n/a")


def test_a_handful_of_positives_is_told(tmp_path: Path):
    rng = random.Random(1)
    rows = [[f"u{at % 30}", f"i{rng.randrange(40)}", f"s{at % 2}", 0, 1_600_000_000 + at, "tv"] for at in range(4000)]
    for at in (10, 3300, 3900):
        rows[at][3] = 1
    _, warnings = report_of(write(tmp_path, rows))
    assert any("3 of 4,000 labels are 1 (< 0.1%)" in text for text in warnings)


def test_many_scenarios_are_told_and_those_with_few_rows_or_only_later_ones(tmp_path: Path):
    rows = [[*r[:2], f"s{at % 250}", *r[3:]] for at, r in enumerate(healthy())]
    _, warnings = report_of(write(tmp_path / "many", rows))
    assert any("there are 250 scenarios" in text for text in warnings)
    rare = [[*r[:2], "rare" if at in (3, 4) else r[2], *r[3:]] for at, r in enumerate(healthy())]
    only_warning(write(tmp_path / "rare", rare), "fewer than 30 training rows", "'rare' (2)")
    late = [[*r[:2], "late" if at >= 850 else r[2], *r[3:]] for at, r in enumerate(healthy())]
    only_warning(write(tmp_path / "late", late), "no training row has the scenario 'late' (50)")


@pytest.mark.parametrize(("path", "remedy"), [("All|c{}", "= '|'"), ("c{}", "if they are paths")])
def test_a_category_that_never_splits_is_told(tmp_path: Path, path: str, remedy: str):
    items = [[*row[:2], path.format(i % 5), row[3]] for i, row in enumerate(described())]
    only_warning(write(tmp_path, healthy(), items), "no category has ' > ' inside", remedy)


def test_a_scenario_whose_items_have_no_titles_is_named_and_the_prompt_shown_is_of_one_that_has(tmp_path: Path):
    rows = [[user, item, "home" if int(item[1:]) < 15 else "search", *rest] for user, item, _, *rest in healthy()]
    items = [row if int(row[0][1:]) >= 15 else [row[0], "", *row[2:]] for row in described()]
    config = write(tmp_path, rows, items)
    only_warning(config, "15 of 40 items have no title", "In 'home' most have none, so expect little of texts there.")
    for half in (0, ITEMS // 2):  # the middle item has no title in one of the two orders
        bare = [
            [row[0], "" if half <= int(row[0][1:]) < half + ITEMS // 2 else row[1], *row[2:]] for row in described()
        ]
        shown = prompt_data(write(tmp_path / str(half), healthy(), bare, extract={"reads": "items"}), sampler).report
        assert "Thing number" in shown.prompt


def test_titles_that_are_ids_or_codes_are_told(tmp_path: Path):
    blank = [[row[0], row[1] if i % 3 else "", *row[2:]] for i, row in enumerate(described())]
    only_warning(write(tmp_path / "blank", healthy(), blank), "14 of 40 items have no title", "fill its column 'title'")
    codes = [[row[0], f"SKU-{1000 + i}", *row[2:]] for i, row in enumerate(described())]
    only_warning(write(tmp_path / "codes", healthy(), codes), "40 of 40 titles look like codes", "'SKU-10")
    same = [[row[0], "Thing" if i % 3 else row[1], *row[2:]] for i, row in enumerate(described())]
    only_warning(write(tmp_path / "same", healthy(), same), "26 of 40 items have the title 'Thing'")
    unnamed = write(tmp_path / "unnamed", healthy(), table={"title": ""})
    only_warning(unnamed, "40 of 40 items have no title", "Name source.table.title")
    bare = {"items": "", "title": "", "category": "", "item_features": []}
    only_warning(write(tmp_path / "bare", healthy(), table=bare), "40 of 40 items have no title", "items (a table)")


def test_users_who_come_after_the_cut_are_told(tmp_path: Path):
    rows = healthy()
    for at, row in enumerate(rows[720:]):
        row[0] = f"v{at % 15}"
    users = [f"{letter}{i}" for letter in "uv" for i in range(30)]
    only_warning(write(tmp_path, rows, users=users), "most validation and test users have no past", "split.by = 'user'")
    assert report_of(write(tmp_path, rows, users=users, split={"by": "user"}))[1] == []


def test_users_with_one_row_are_told(tmp_path: Path):
    rows = [[f"w{at}" if at % 4 == 0 else row[0], *row[1:]] for at, row in enumerate(healthy())]
    _, warnings = report_of(write(tmp_path, rows, table={"users": "", "user_features": []}))
    assert any("225 of 255 users have a single row" in text for text in warnings)


def test_rows_that_repeat_are_told(tmp_path: Path):
    rows = healthy()
    rows = sorted(rows + rows[::5], key=lambda row: row[4])
    only_warning(write(tmp_path, rows), "180 of 1,080 rows have the user, item and scenario of an earlier row")


# --- how it is told ---------------------------------------------------------------------------------------------------


def test_the_report_is_told_once_and_its_warnings_each_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = write(tmp_path, [[*row[:3], 1, *row[4:]] for row in healthy()])
    report, (warning,) = report_of(config)
    told = capsys.readouterr().err
    assert all(line in told for line in report_lines(report))
    assert f"warning: {warning}" in told
    prepare(config)
    again = capsys.readouterr().err
    assert again == f"warning: {warning}\n"


def test_the_last_line_of_the_command_has_the_warnings(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write(tmp_path, [[*row[:3], 1, *row[4:]] for row in healthy()])
    file = tmp_path / "c.toml"
    file.write_text(
        f'name = "told"\nstorage = "{tmp_path}/out"\n[source]\nkind = "table"\npath = "{tmp_path}"\n'
        '[source.table]\ninteractions = "interactions.csv"\nitems = "items.csv"\ntitle = "title"\n'
        'label = "label"\norder = "ts"\n'
    )
    for arguments in (["prepare", str(file), "--dry-run"], ["prepare", str(file)], ["prepare", str(file)]):
        app(arguments, standalone_mode=False)
        line = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert len(line["warnings"]) == 1
        assert line["warnings"][0].startswith("all labels are 1")


def test_hostile_and_long_texts_are_shown_harmlessly_and_bounded(tmp_path: Path):
    bad = "\x1b[31m\u202e\r\n" + "x" * 3000
    rows = healthy()
    rows = [[f"{bad}{r[0]}", f"{bad}{r[1]} ", f"{bad}{r[2]}", *r[3:]] for r in rows]
    items = [[bad + row[0], bad + row[1], *row[2:]] for row in described()] + [[f"{bad}i0 ", bad, "All > c", "b"]]
    config = write(tmp_path, rows, items, [bad + f"u{u}" for u in range(USERS)])
    info = prepare(config).manifest.info
    report = DataReport.model_validate_json(json.dumps(info["report"]))
    for text in (*report_lines(report), *info["warnings"]):
        assert text.isprintable(), text
        assert len(text) < 1000
    assert len(json.dumps(info)) < 20_000
    assert len(report_lines(report)) <= 20


def test_no_id_is_taken_for_another_that_is_cut_alike():
    one, two = "x" * 100 + " ", "x" * 100 + "y"
    assert quote(one) != quote(two)
    assert len(quote(one)) <= 42
    assert quote("7 ") == "'7 '"


def test_repeats_are_counted_where_the_numbers_of_ids_multiply_beyond_64_bits():
    big = pa.array(["x"], pa.large_string())
    sides = [Ids(np.array([0, 1, 0, 1]), big), Ids(np.array([5, 5, 5, 6]), big), Ids(np.array([1, 1, 1, 1]), big)]
    assert count_repeats(*sides) == 1
    assert count_repeats(*(Ids(side.number_R << 40, side.distinct) for side in sides)) == 1
