import csv
import random
from pathlib import Path
from typing import Any

import pytest
from upath import UPath

from llm4msr.config import Config, SourceConfig
from llm4msr.data import sources, split
from llm4msr.data.reading import stream
from llm4msr.errors import ConfigError, DataError, InputError, StorageError
from llm4msr.pipeline import prepare
from tests.support.data import prepared_table, write_csv
from tests.support.raw import WholeData, read_raw
from tests.unit.data.sources.test_amazon import refuse_growth

LEVELS = [
    f"{level}_level_category_{part}"
    for level in ("first", "second", "third", "fourth")
    for part in ("id", "name", "name_en")
]
HEADERS = {
    "rec_inter": [
        *("user_id", "item_id", "playing_time", "duration_ms", "time", "timestamp"),
        *("click", "forward", "like", "follow", "search", "search_item_related"),
    ],
    "src_inter": [
        *("user_id", "search_session_id", "search_session_time", "search_session_timestamp"),
        *("keyword", "search_source", "item_id", "click_cnt", "item_type"),
    ],
    "user_features": ["user_id", "search_active_level", "rec_active_level", "onehot_feat1", "onehot_feat2"],
    "item_features": ["item_id", "caption", "author_id", "item_type", "upload_time", "upload_type", *LEVELS],
}
Cells = list[Any]


def recommended(user: Any, item: Any, time: Any, click: Any) -> Cells:
    return [user, item, 60792.0, 45400.0, "2023-05-22 15:53:20", time, click, 0, 0, 0, 0, 0]


def searched(user: Any, item: Any, time: Any, clicks: Any, kind: str = "VIDEO") -> Cells:
    return [user, 1, "2023-05-22 21:58:52", time, "[20, 34, 3]", "USER_INPUT", item, clicks, kind]


def video(item: Any, *path: str, author: Any = 10, upload: str = "LongImport") -> Cells:
    names = (*path, *["empty"] * (4 - len(path)))
    levels = [cell for at, name in enumerate(names) for cell in (at, "搞笑", name)]
    return [item, "[1, 213, 24]", author, "NORMAL", "2023-04-22", upload, *levels]


FILES: dict[str, list[Cells]] = {
    "rec_inter": [recommended(1, 100, 1684742000000, 1), recommended(2, 101, "1.684742001e+12", 0)],
    "src_inter": [
        searched(1, 101, 1684763932919, 2),
        searched(2, 103656000000, 1684763932920, 0),
        searched(2, 7, 1684763932920, 1, "USER"),
    ],
    "user_features": [[1, 3, 4, 0, 7], [2, 1, "", 2, 0]],
    "item_features": [
        video(100, "Funny", "Funny joke"),
        video(101, "UNKNOWN"),
        video(102, "Food", "", " Tea ", author=0),
    ],
}


def write(folder: Path, end: str = "csv", **changed: list[Cells]) -> Path:
    for name, rows in (FILES | changed).items():
        write_csv(folder / f"{name}.{end}", HEADERS[name], rows)
    return folder


def source(folder: Any, **options: Any) -> SourceConfig:
    return SourceConfig.model_validate({"kind": "kuaisar", "path": str(folder), "kuaisar": options})


def rows(raw: WholeData) -> list[tuple[Any, ...]]:
    return list(zip(*raw.interactions.to_pydict().values(), strict=True))


def refusal(config: SourceConfig, kind: type[InputError] = DataError) -> str:
    with pytest.raises(kind) as caught:
        read_raw(config)
    return str(caught.value)


# --- the layout -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["csv", "csv.gz"])
def test_the_layout_of_its_authors_is_read(tmp_path: Path, end: str):
    raw = read_raw(source(write(tmp_path, end)))
    assert rows(raw) == [
        ("1", "100", "recommendation", 1, 1684742000000),
        ("2", "101", "recommendation", 0, 1684742001000),
        ("1", "101", "search", 1, 1684763932919),
        ("2", "103656000000", "search", 0, 1684763932920),
    ]
    assert raw.users.to_pylist() == [
        {
            "user_id": "1",
            "f:search_active_level": "3",
            "f:rec_active_level": "4",
            "f:onehot_feat1": "0",
            "f:onehot_feat2": "7",
        },
        {
            "user_id": "2",
            "f:search_active_level": "1",
            "f:rec_active_level": "",
            "f:onehot_feat1": "2",
            "f:onehot_feat2": "0",
        },
    ]
    kind = {"f:upload_type": "LongImport", "f:item_type": "NORMAL"}
    assert raw.items.to_pylist() == [
        {"item_id": "100", "title": "Funny > Funny joke", "f:category": ["Funny", "Funny joke"], **kind},
        {"item_id": "101", "title": "", "f:category": [], **kind},
        {"item_id": "102", "title": "Food > Tea", "f:category": ["Food", "Tea"], **kind},
    ]
    assert raw.context == ()
    assert raw.user_features == ("search_active_level", "rec_active_level", "onehot_feat1", "onehot_feat2")
    assert raw.item_features == ("category", "upload_type", "item_type")
    assert not raw.implicit


def test_another_uri_is_read_as_a_local_folder(tmp_path: Path):
    write(tmp_path, "csv.gz")
    there = UPath("memory://kuaisar-files")
    for file in tmp_path.iterdir():
        (there / file.name).write_bytes(file.read_bytes())
    here, away = (read_raw(source(place)) for place in (tmp_path, there))
    assert away.interactions.equals(here.interactions)
    assert away.items.equals(here.items)


def test_the_order_of_columns_and_a_byte_order_mark_do_no_harm(tmp_path: Path):
    expected = rows(read_raw(source(write(tmp_path))))
    for name, cells in FILES.items():
        text = [HEADERS[name], *cells]
        write_csv(tmp_path / f"{name}.csv", text[0][::-1], [row[::-1] for row in text[1:]])
        (tmp_path / f"{name}.csv").write_bytes(b"\xef\xbb\xbf" + (tmp_path / f"{name}.csv").read_bytes())
    assert rows(read_raw(source(tmp_path))) == expected


@pytest.mark.parametrize(
    ("types", "items"),
    [
        (("VIDEO",), ["101", "103656000000"]),
        (("USER",), ["USER:7"]),
        (("VIDEO", "USER"), ["101", "103656000000", "USER:7"]),
        ((), ["101", "103656000000", "USER:7"]),
    ],
)
def test_search_results_of_the_wanted_types_are_kept(tmp_path: Path, types: tuple[str, ...], items: list[str]):
    raw = read_raw(source(write(tmp_path), search_item_types=types))
    assert raw.interactions["item_id"].to_pylist()[2:] == items


def test_no_search_result_of_a_wanted_type_is_refused(tmp_path: Path):
    write(tmp_path)
    expected = "no row has item_type LIVE or MUSIC; change source.kuaisar.search_item_types"
    message = refusal(source(tmp_path, search_item_types=["LIVE", "MUSIC"]))
    assert message == f"{tmp_path / 'src_inter.csv'}: {expected}"


def test_the_author_is_a_feature_if_wanted_and_zero_is_none(tmp_path: Path):
    raw = read_raw(source(write(tmp_path), author=True))
    assert raw.items["f:author_id"].to_pylist() == ["10", "10", ""]
    assert raw.item_features == ("category", "upload_type", "item_type", "author_id")


# --- files larger than a block ------------------------------------------------------------------------------------


def test_rows_keep_their_order_and_numbers_across_blocks(tmp_path: Path):
    count = 30_000
    many = [[*recommended(at % 97, at, at, at % 2)[:-1], "0" * 400] for at in range(count)]
    file = write(tmp_path, rec_inter=many) / "rec_inter.csv"
    assert file.stat().st_size > 3 << 22
    raw = read_raw(source(tmp_path))
    assert raw.interactions["order"].to_pylist()[:count] == list(range(count))
    many[count - 5][6] = "yes"
    write_csv(file, HEADERS["rec_inter"], many)
    assert (
        refusal(source(tmp_path))
        == f"{file}: column 'click': 'yes' in row {count - 4}; expected a number, true or false"
    )
    many[count - 5] = [1, 2]
    write_csv(file, HEADERS["rec_inter"], many)
    assert refusal(source(tmp_path)) == f"{file}: row {count - 4}: 2 cells; expected 12"


def test_a_line_break_between_quotes_ends_no_row_wherever_a_block_ends(tmp_path: Path):
    many = [video(at, 'Say "hi"', "a\nb\n\n", upload="x\n" * (at * 7919 % 997)) for at in range(4000)]
    write(tmp_path, item_features=many)
    assert (tmp_path / "item_features.csv").stat().st_size > 1 << 22
    items = read_raw(source(tmp_path)).items
    assert items["item_id"].to_pylist() == [str(at) for at in range(4000)]
    assert items["f:upload_type"].to_pylist() == [cells[5] for cells in many]
    assert set(items["title"].to_pylist()) == {'Say "hi" > a\nb'}


def test_a_quote_left_open_is_named(tmp_path: Path):
    write(tmp_path)
    file = tmp_path / "src_inter.csv"
    line = ",".join(map(str, searched(1, 2, 3, 4))).replace("[20, 34, 3]", '"[20')
    file.write_text(file.read_text() + line + "\n" + "1,2,3,4,[],x,5,6,VIDEO\n" * 800_000)
    expected = f"row 4: no end within {stream.MAX_LINE} bytes; is a quote left open?"
    assert refusal(source(tmp_path)) == f"{file}: {expected}"


# --- bad files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("read", [read_raw, sources.fingerprint])
@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named_with_what_is_there(tmp_path: Path, name: str, read: Any):
    write(tmp_path)
    (tmp_path / f"{name}.csv").unlink()
    there = ", ".join(sorted(f"{other}.csv" for other in FILES if other != name))
    with pytest.raises(StorageError) as caught:
        read(source(tmp_path))
    assert str(caught.value) == f"{tmp_path}: no {name}.csv or {name}.csv.gz; it holds {there}"


@pytest.mark.parametrize(
    ("name", "column"),
    [
        *[("rec_inter", column) for column in ("user_id", "item_id", "timestamp", "click")],
        *[("src_inter", c) for c in ("user_id", "item_id", "search_session_timestamp", "click_cnt", "item_type")],
        *[("user_features", column) for column in HEADERS["user_features"]],
        *[("item_features", c) for c in ("item_id", "item_type", "upload_type", "third_level_category_name_en")],
    ],
)
def test_a_missing_column_is_named_with_those_there_are(tmp_path: Path, name: str, column: str):
    write(tmp_path)
    at = HEADERS[name].index(column)
    file = tmp_path / f"{name}.csv"
    write_csv(file, [n for n in HEADERS[name] if n != column], [row[:at] + row[at + 1 :] for row in FILES[name]])
    others = ", ".join(n for n in HEADERS[name] if n != column)
    assert refusal(source(tmp_path)) == f"{file}: column '{column}' is missing; it has {others}"


def test_a_column_that_stands_twice_is_named(tmp_path: Path):
    write(tmp_path)
    file = write_csv(tmp_path / "user_features.csv", [*HEADERS["user_features"], "user_id"], [[1, 2, 3, 4, 5, 6]])
    assert refusal(source(tmp_path)) == f"{file}: column 'user_id' stands twice in the header"


@pytest.mark.parametrize(
    ("name", "column", "value", "message"),
    [
        ("rec_inter", "user_id", "", "None in row 2; an id cannot be empty"),
        (
            "rec_inter",
            "click",
            2,
            "2.0 in row 2; a label lies between 0 and 1 (source.table.liked_above makes likes of other numbers)",
        ),
        ("rec_inter", "click", "", "None in row 2; expected a number, true or false"),
        ("rec_inter", "timestamp", "2023-05-22", "'2023-05-22' in row 2; expected a number"),
        ("src_inter", "item_id", "", "None in row 2; an id cannot be empty"),
        ("src_inter", "click_cnt", "nan", "'nan' in row 2; expected a number"),
        ("src_inter", "search_session_timestamp", "", "None in row 2; expected a number"),
        ("user_features", "user_id", "", "None in row 2; an id cannot be empty"),
        ("user_features", "user_id", 1, "'1' stands again in row 2; ids must be unique: keep one row of each"),
        ("item_features", "item_id", 100, "'100' stands again in row 2; ids must be unique: keep one row of each"),
    ],
)
def test_a_bad_cell_is_named(tmp_path: Path, name: str, column: str, value: Any, message: str):
    cells = [list(row) for row in FILES[name]]
    cells[1][HEADERS[name].index(column)] = value
    write(tmp_path, **{name: cells})
    assert refusal(source(tmp_path)) == f"{tmp_path / name}.csv: column '{column}': {message}"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"HEADER\n", "no rows below the header"),
        (b"HEADER\n\n\n", "no rows below the header"),
        (b"\xff\n", "the encoding is not UTF-8 (line 1 has the byte 0xff); save it as UTF-8"),
    ],
)
def test_a_file_without_rows_is_named(tmp_path: Path, name: str, data: bytes, message: str):
    write(tmp_path)
    file = tmp_path / f"{name}.csv"
    file.write_bytes(data.replace(b"HEADER", ",".join(HEADERS[name]).encode()))
    assert refusal(source(tmp_path)) == f"{file}: {message}"


def test_bytes_that_are_no_text_are_named(tmp_path: Path):
    write(tmp_path)
    file = tmp_path / "user_features.csv"
    file.write_bytes(file.read_bytes() + b"\xff,1,2,3,4\n")
    assert refusal(source(tmp_path)) == (
        f"{file}: the encoding is not UTF-8 (line 4 has the byte 0xff); save it as UTF-8"
    )


def test_a_damaged_file_is_named(tmp_path: Path):
    write(tmp_path, "csv.gz")
    file = tmp_path / "item_features.csv.gz"
    file.write_bytes(file.read_bytes()[:-9])
    expected = "cannot be read to its end (Truncated compressed stream); fetch it again"
    assert refusal(source(tmp_path)) == f"{file}: {expected}"


def test_fingerprint_follows_files_and_options(tmp_path: Path):
    write(tmp_path)
    prints = [sources.fingerprint(source(tmp_path, **options)) for options in ({}, {"author": True})]
    assert prints[0] == sources.fingerprint(source(tmp_path))
    for name in FILES:
        write_csv(tmp_path / f"{name}.csv", HEADERS[name], FILES[name] * 2)
        prints.append(sources.fingerprint(source(tmp_path)))
    assert len(set(prints)) == len(prints)


# --- prepare ----------------------------------------------------------------------------------------------------


def test_prepare_runs_to_its_end(tmp_path: Path):
    rng = random.Random(0)
    write(
        tmp_path / "data",
        rec_inter=[recommended(rng.randrange(20), rng.randrange(30), at, rng.randrange(2)) for at in range(300)],
        src_inter=[searched(rng.randrange(20), rng.randrange(40), at, rng.randrange(3)) for at in range(300)],
        user_features=[[user, user % 3, 1, 0, 0] for user in range(25)],
        item_features=[video(item, "Funny", f"Kind {item % 4}") for item in range(35)],
    )
    document = {"name": "tiny", "storage": str(tmp_path / "out"), "source": source(tmp_path / "data")}
    config = Config.model_validate(document | {"split": {"by": "user"}})
    output = prepare(config)
    names = (*split.SPLITS, "users", "items", "scenarios")
    read = {name: prepared_table(output, name) for name in names}
    assert sum(read[part].num_rows for part in split.SPLITS) == 600
    assert read["scenarios"]["scenario_id"].to_pylist() == ["", "recommendation", "search"]
    assert read["scenarios"]["categories"][2].as_py()[0] == "Funny"
    titles = dict(zip(read["items"]["item_id"].to_pylist(), read["items"]["title"].to_pylist(), strict=True))
    assert (titles["3"], titles["37"]) == ("Funny > Kind 3", "37")
    assert read["users"].num_rows == 26
    with pytest.raises(
        ConfigError, match=r"split\.negatives is for rows that are all likes, and this source gives labels"
    ):
        prepare(config.model_copy(update={"split": config.split.model_copy(update={"negatives": 2})}))


# --- memory -----------------------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_file(tmp_path: Path):
    for name, count in (("small", 5_000), ("large", 60_000)):
        write(tmp_path / name)
        with (tmp_path / name / "src_inter.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(HEADERS["src_inter"])
            keyword = str(list(range(400)))
            for at in range(count):
                row = searched(at % (count // 8), at, at, at % 2)
                row[4] = keyword
                writer.writerow(row)
    refuse_growth("kuaisar", tmp_path / "small", tmp_path / "large", tmp_path / "large" / "src_inter.csv")
