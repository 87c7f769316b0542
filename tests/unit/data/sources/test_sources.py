import gzip
import math
import zipfile
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm4msr.config import SourceConfig
from llm4msr.data import sources
from llm4msr.errors import DataError, InputError, StorageError
from tests.support.data import write_csv
from tests.support.raw import WholeData, read_raw

HEADER = ["user_id", "item_id", "scenario", "label", "ts"]
ROWS: list[list[Any]] = [["u1", "i1", "home", 1, 10], ["u1", "i2", "search", 0, 11], ["u2", "i1", "home", 0.5, 12]]
COLUMNS: dict[str, Any] = {"interactions": "rows.csv", "label": "label", "order": "ts"}


def source(path: Any, **columns: Any) -> SourceConfig:
    return SourceConfig.model_validate({"kind": "table", "path": str(path), "table": COLUMNS | columns})


def changed(row: int, column: str, value: Any) -> list[list[Any]]:
    rows = [list(r) for r in ROWS]
    rows[row][HEADER.index(column)] = value
    return rows


def refusal(config: SourceConfig, kind: type[InputError] = DataError) -> str:
    with pytest.raises(kind) as caught:
        read_raw(config)
    assert caught.value.exit_code == 2
    return str(caught.value)


def damaged_parquet() -> bytes:
    """A file whose footer is whole and whose data is not."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({name: [f"{name} {i}" for i in range(5000)] for name in HEADER}), sink, compression="zstd")
    data = sink.getvalue().to_pybytes()
    return data[:100] + bytes(len(data) // 2) + data[100 + len(data) // 2 :]


# --- tables -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz", "rows.parquet"])
def test_formats_give_the_same_rows(tmp_path: Path, name: str):
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist([dict(zip(HEADER, r, strict=True)) for r in ROWS]), tmp_path / name)
    else:
        write_csv(tmp_path / name, HEADER, ROWS)
    raw = read_raw(source(tmp_path, interactions=name))
    assert raw.interactions.to_pydict() == {
        "user_id": ["u1", "u1", "u2"],
        "item_id": ["i1", "i2", "i1"],
        "scenario_id": ["home", "search", "home"],
        "label": [1, 0, 0.5],
        "order": [10, 11, 12],
    }
    assert not raw.implicit
    assert raw.users.num_rows == 0
    assert raw.items.column_names == ["item_id", "title"]


def test_parquet_keeps_its_own_types_of_ids_labels_and_times(tmp_path: Path):
    frame = pd.DataFrame(
        {
            "user_id": pd.array([7, 7, 8], "int32"),
            "item_id": pd.Categorical(["a", "b", "a"]),
            "scenario": ["home"] * 3,
            "label": [True, False, True],
            "ts": pd.to_datetime(["2024-01-01", "2024-01-02", "2024-01-03"]),
        }
    )
    frame.to_parquet(tmp_path / "rows.parquet")
    rows = read_raw(source(tmp_path, interactions="rows.parquet")).interactions
    assert rows["user_id"].to_pylist() == ["7", "7", "8"]
    assert rows["item_id"].to_pylist() == ["a", "b", "a"]
    assert rows["label"].to_pylist() == [1, 0, 1]
    day = 24 * 3600 * 1e6
    assert rows["order"].to_pylist() == [frame["ts"][0].timestamp() * 1e6 + i * day for i in range(3)]


def test_csv_ids_stay_text(tmp_path: Path):
    write_csv(tmp_path / "rows.csv", HEADER, [["007", "1e3", "home", 1, 1], ["7", "-", "home", " 0 ", "+2.5e1"]])
    raw = read_raw(source(tmp_path))
    assert raw.interactions["user_id"].to_pylist() == ["007", "7"]
    assert raw.interactions["item_id"].to_pylist() == ["1e3", "-"]
    assert raw.interactions["order"].to_pylist() == [1, 25]


@pytest.mark.parametrize("word", ["NA", "null", "nan", "None", "N/A"])
def test_csv_words_that_other_tools_take_for_nothing_are_ids_like_any_other(tmp_path: Path, word: str):
    write_csv(tmp_path / "rows.csv", HEADER, changed(1, "scenario", word))
    raw = read_raw(source(tmp_path))
    assert raw.interactions["scenario_id"].to_pylist() == ["home", word, "home"]


def test_without_label_and_order_rows_are_positives_in_file_order(tmp_path: Path):
    write_csv(tmp_path / "rows.csv", HEADER, ROWS)
    raw = read_raw(source(tmp_path, label="", order=""))
    assert raw.implicit
    assert raw.interactions["label"].to_pylist() == [1, 1, 1]
    assert raw.interactions["order"].to_pylist() == [0, 1, 2]


def test_items_users_and_context_are_read(tmp_path: Path):
    write_csv(
        tmp_path / "rows.csv", [*HEADER, "device"], [[*r, d] for r, d in zip(ROWS, ("tv", "", "tv"), strict=True)]
    )
    write_csv(
        tmp_path / "items.csv",
        ["item_id", "t", "path", "brand"],
        [["i1", "One, two", "A > B", "x"], ["i3", "", "", ""]],
    )
    write_csv(tmp_path / "users.csv.gz", ["user_id", "age"], [["u1", "30"]])
    config = source(
        tmp_path,
        items="items.csv",
        users="users.csv.gz",
        title="t",
        category="path",
        context=["device"],
        item_features=["brand"],
        user_features=["age"],
    )
    raw = read_raw(config)
    assert raw.interactions["c:device"].to_pylist() == ["tv", "", "tv"]
    assert raw.items.to_pylist() == [
        {"item_id": "i1", "title": "One, two", "f:brand": "x", "f:category": ["A", "B"]},
        {"item_id": "i3", "title": "", "f:brand": "", "f:category": [""]},
    ]
    assert raw.users.to_pylist() == [{"user_id": "u1", "f:age": "30"}]
    assert (raw.context, raw.user_features, raw.item_features) == (("device",), ("age",), ("brand", "category"))


@pytest.mark.parametrize("column", HEADER)
def test_missing_column_is_named_with_the_columns_there_are(tmp_path: Path, column: str):
    at = HEADER.index(column)
    file = write_csv(tmp_path / "rows.csv", HEADER[:at] + HEADER[at + 1 :], [r[:at] + r[at + 1 :] for r in ROWS])
    message = refusal(source(tmp_path))
    assert message.startswith(f"{file}: column '{column}' is missing; it has ")
    assert all(name in message for name in HEADER if name != column)


@pytest.mark.parametrize(
    ("column", "value", "rule"),
    [
        ("label", "yes", "expected a number"),
        ("label", "", "expected a number"),
        ("label", "nan", "expected a number"),
        ("label", 5, "between 0 and 1"),
        ("label", -0.1, "between 0 and 1"),
        ("ts", "2024-01-01", "expected a number"),
        ("ts", "", "expected a number"),
        ("ts", "inf", "expected a number"),
        ("user_id", "", "an id cannot be empty"),
        ("item_id", "", "an id cannot be empty"),
        ("scenario", "", "an id cannot be empty"),
    ],
)
@pytest.mark.parametrize("row", [0, 2])
def test_bad_cell_of_a_csv_is_named(tmp_path: Path, column: str, value: Any, rule: str, row: int):
    file = write_csv(tmp_path / "rows.csv", HEADER, changed(row, column, value))
    message = refusal(source(tmp_path))
    assert message.startswith(f"{file}: column '{column}': ")
    assert f" in row {row + 1}; {rule}" in message or (f" in row {row + 1};" in message and rule in message)


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("label", [1.0, math.nan, 0.0]),
        ("label", [1.0, None, 0.0]),
        ("label", [1, 4, 0]),
        ("ts", [1.0, math.inf, 2.0]),
        ("user_id", ["a", None, "b"]),
        ("item_id", ["a", "", "b"]),
    ],
)
def test_bad_cell_of_a_parquet_file_is_named(tmp_path: Path, column: str, values: list[Any]):
    table = pa.Table.from_pylist([dict(zip(HEADER, r, strict=True)) for r in ROWS])
    table = table.set_column(HEADER.index(column), column, pa.array(values))
    pq.write_table(table, tmp_path / "rows.parquet")
    message = refusal(source(tmp_path, interactions="rows.parquet"))
    assert message.startswith(f"{tmp_path / 'rows.parquet'}: column '{column}': ")
    assert "in row 2;" in message


@pytest.mark.parametrize("column", ["user_id", "label", "ts"])
def test_column_of_lists_is_refused(tmp_path: Path, column: str):
    table = pa.Table.from_pylist([dict(zip(HEADER, r, strict=True)) for r in ROWS])
    table = table.set_column(HEADER.index(column), column, pa.array([[1], [2], [3]]))
    pq.write_table(table, tmp_path / "rows.parquet")
    message = refusal(source(tmp_path, interactions="rows.parquet"))
    assert message.startswith(f"{tmp_path / 'rows.parquet'}: column '{column}'")


def test_a_column_name_that_stands_twice_is_refused(tmp_path: Path):
    file = write_csv(tmp_path / "rows.csv", [*HEADER, "label"], [[*r, 1] for r in ROWS])
    message = refusal(source(tmp_path))
    assert message.startswith(str(file))
    assert "'label'" in message


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("rows.csv", b"", "the file is empty"),
        ("rows.csv", b"\n", "the file is empty"),
        ("rows.csv", b"user_id,item_id,scenario,label,ts\n", "no rows below the header"),
        ("rows.csv", b"user_id,item_id,scenario,label,ts\nu,i,s\n", "row 1: 3 cells; expected 5"),
        ("rows.csv", b"user_id,item_id,scenario,label,ts\nu\xff,i,s,1,1\n", "the encoding is not UTF-8 .line 2"),
        ("rows.csv.gz", b"user_id,item_id\n", "cannot be read to its end"),
        ("rows.csv.gz", gzip.compress(b"user_id,item_id\na,b\n" * 99)[:-20], "cannot be read to its end"),
        ("rows.parquet", b"PAR1 nonsense PAR1", "not readable as Parquet"),
        ("rows.parquet", b"user_id,item_id\n", "not readable as Parquet"),
        ("rows.parquet", damaged_parquet(), "not readable as Parquet"),
    ],
)
def test_unreadable_file_is_named(tmp_path: Path, name: str, data: bytes, message: str):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message) as caught:
        read_raw(source(tmp_path, interactions=name))
    assert str(caught.value).startswith(str(tmp_path / name))


def test_empty_parquet_is_refused(tmp_path: Path):
    pq.write_table(pa.table({name: pa.array([], pa.string()) for name in HEADER}), tmp_path / "rows.parquet")
    assert "no rows" in refusal(source(tmp_path, interactions="rows.parquet"))


@pytest.mark.parametrize("side", ["item", "user"])
def test_duplicate_id_names_its_file_column_and_row(tmp_path: Path, side: str):
    write_csv(tmp_path / "rows.csv", HEADER, ROWS)
    write_csv(tmp_path / "side.csv", [f"{side}_id"], [["a"], ["b"], ["a"]])
    message = refusal(source(tmp_path, **{f"{side}s": "side.csv"}))
    assert f"column '{side}_id': 'a' stands again in row 3" in message
    assert "side.csv" in message


def test_all_rows_whose_id_stands_again_are_counted(tmp_path: Path):
    write_csv(tmp_path / "rows.csv", HEADER, ROWS)
    write_csv(tmp_path / "side.csv", ["item_id"], [["a"], ["b"], ["b"], ["a"], ["a"]])
    message = refusal(source(tmp_path, items="side.csv"))
    assert "'b' stands again in row 3, and 2 more rows repeat an id; ids must be unique: keep one row" in message


def test_empty_id_of_an_item_names_the_file_of_items(tmp_path: Path):
    write_csv(tmp_path / "rows.csv", HEADER, ROWS)
    file = write_csv(tmp_path / "items.csv", ["item_id", "title"], [["i1", "t"], ["", "u"]])
    message = refusal(source(tmp_path, items="items.csv", title="title"))
    assert (
        message
        == f"{file}: column 'item_id': {'None' if 'None' in message else repr('')} in row 2; an id cannot be empty"
    )


@pytest.mark.parametrize("wanted", [{"item_features": ["brand"]}, {"user_features": ["age"]}])
def test_features_need_a_file(tmp_path: Path, wanted: dict[str, list[str]]):
    write_csv(tmp_path / "rows.csv", HEADER, ROWS)
    assert f"features {next(iter(wanted.values()))[0]} need a file" in refusal(source(tmp_path, **wanted))


@pytest.mark.parametrize("read", [read_raw, sources.fingerprint])
def test_absent_file_is_named(tmp_path: Path, read: Any):
    with pytest.raises(StorageError, match=r"rows\.csv: cannot be read"):
        read(source(tmp_path))


def test_table_fingerprint_follows_files_and_column_names(tmp_path: Path):
    write_csv(tmp_path / "rows.csv", HEADER, ROWS)
    first = sources.fingerprint(source(tmp_path))
    assert first == sources.fingerprint(source(tmp_path))
    assert first != sources.fingerprint(source(tmp_path, label=""))
    write_csv(tmp_path / "rows.csv", HEADER, [*ROWS, ["u3", "i1", "home", 1, 13]])
    assert first != sources.fingerprint(source(tmp_path))


# --- MovieLens --------------------------------------------------------------------------------------------------

DAT = {
    "ratings.dat": "1::10::5::100\n1::20::3::101\n2::30::4::102\n2::40::1::103\n3::99::4::104\n",
    "movies.dat": (
        "10::Sting, The (1973)::Comedy|Crime\n20::Amélie (2001)::Romance\n"
        "30::Star Wars: Episode IV - A New Hope (1977)::Action|Sci-Fi\n40::No year::\n"
        "50::Misérables, Les (1985)::Animation|Comedy\n"
    ),
    "users.dat": "1::F::1::10::48067\n2::M::25::16::70072\n3::M::56::1::00000\n",
}


def movielens(folder: Path, form: str = "zip", scenario: str = "genre", **files: str | None) -> SourceConfig:
    """The official layout, as a zip or unpacked; `files` replaces members, None leaves one out."""
    wanted = {n: files.get(n.removesuffix(".dat"), text) for n, text in DAT.items()}
    data = {name: text.encode("latin-1") for name, text in wanted.items() if text is not None}
    place = folder / ("ml-1m.zip" if form == "zip" else "ml-1m")
    if form == "zip":
        with zipfile.ZipFile(place, "w") as archive:
            for name, content in data.items():
                archive.writestr(f"ml-1m/{name}", content)
    else:
        place.mkdir()
        for name, content in data.items():
            (place / name).write_bytes(content)
    return SourceConfig(kind="movielens", path=str(place), scenario=scenario)


def by_item(raw: WholeData) -> dict[str, str]:
    return dict(zip(raw.interactions["item_id"].to_pylist(), raw.interactions["scenario_id"].to_pylist(), strict=True))


@pytest.mark.parametrize("form", ["zip", "folder"])
def test_movielens_is_read_from_its_official_layout(tmp_path: Path, form: str):
    raw = read_raw(movielens(tmp_path, form))
    assert raw.interactions["user_id"].to_pylist() == ["1", "1", "2", "2", "3"]
    assert raw.interactions["label"].to_pylist() == [1, 0, 1, 0, 1]
    assert raw.interactions["order"].to_pylist() == [100, 101, 102, 103, 104]
    films = {film["item_id"]: film for film in raw.items.to_pylist()}
    assert films["10"] == {"item_id": "10", "title": "The Sting", "f:genres": ["Comedy", "Crime"], "f:year": "1973"}
    assert films["20"] == {"item_id": "20", "title": "Amélie", "f:genres": ["Romance"], "f:year": "2001"}
    assert films["40"] == {"item_id": "40", "title": "No year", "f:genres": [""], "f:year": ""}
    assert films["50"]["title"] == "Les Misérables"
    assert raw.users.to_pylist()[1] == {"user_id": "2", "f:age": "25", "f:gender": "M", "f:occupation": "16"}
    assert not raw.implicit


@pytest.mark.parametrize(
    ("scenario", "expected"),
    [
        (
            "genre",
            {"10": "Thriller & Crime", "20": "Drama & More", "30": "Sci-Fi & Fantasy", "40": "Drama & More"}
            | {"99": "Drama & More"},
        ),
        ("era", {"10": "1970s", "20": "1990s on", "30": "1970s", "40": "Unknown year", "99": "Unknown year"}),
        ("age", {"10": "under 25", "20": "under 25", "30": "25 to 34", "40": "25 to 34", "99": "35 and over"}),
    ],
)
def test_movielens_scenarios(tmp_path: Path, scenario: str, expected: dict[str, str]):
    assert by_item(read_raw(movielens(tmp_path, scenario=scenario))) == expected


@pytest.mark.parametrize(
    ("year", "era"), [("1969", "Before 1970"), ("1970", "1970s"), ("1989", "1980s"), ("1990", "1990s on")]
)
def test_movielens_eras_begin_with_their_first_year(tmp_path: Path, year: str, era: str):
    config = movielens(tmp_path, scenario="era", movies=f"10::A ({year})::Drama\n", ratings="1::10::5::100\n")
    assert by_item(read_raw(config)) == {"10": era}


@pytest.mark.parametrize("column", [2, 3])
def test_movielens_rating_that_is_no_number_is_named(tmp_path: Path, column: int):
    fields = ["1", "20", "3", "101"]
    fields[column] = "good"
    config = movielens(tmp_path, ratings="1::10::5::100\n" + "::".join(fields) + "\n")
    name = {2: "rating", 3: "order"}[column]
    assert f"{config.path}: ratings.dat: column '{name}': 'good' in row 2" in refusal(config)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("ratings", None, "no ratings.dat inside; this is not the MovieLens 1M zip"),
        ("ratings", "", "ratings.dat: "),
        ("ratings", "1::10::5\n", "ratings.dat: row 1: 3 fields; expected 4 fields separated by '::'"),
        ("ratings", "1::10::5::100\n1::20::5\n", "ratings.dat: row 2: 3 fields; expected 4"),
        ("ratings", "1::10::5::100\n1::10::5::100::7\n", "expected 4 fields separated by '::'"),
        ("ratings", "1::10::5::100::7\n", "ratings.dat"),
        ("movies", "10::A (1990)::Drama\n10::B (1990)::Drama\n", "'10' stands again in row 2"),
        ("users", "1::F::young::10::0\n2::M::25::1::0\n3::M::25::1::0\n", "young"),
    ],
)
def test_movielens_bad_file_is_named(tmp_path: Path, name: str, text: str | None, message: str):
    config = movielens(tmp_path, **{name: text})
    found = refusal(config)
    assert found.startswith(config.path)
    assert message in found


def test_movielens_rating_of_an_undescribed_user_has_no_age_scenario(tmp_path: Path):
    config = movielens(tmp_path, scenario="age", users="1::F::1::10::0\n2::M::25::1::0\n")
    assert f"{config.path}: column 'scenario_id' is empty in row 5" in refusal(config)


def test_movielens_zip_that_is_none_is_refused(tmp_path: Path):
    (tmp_path / "ml-1m.zip").write_bytes(b"no zip at all")
    assert "ml-1m.zip: not a zip file" in refusal(SourceConfig(kind="movielens", path=str(tmp_path / "ml-1m.zip")))


@pytest.mark.parametrize("path", ["absent.zip", "absent"])
def test_movielens_absent_place_is_named(tmp_path: Path, path: str):
    config = SourceConfig(kind="movielens", path=str(tmp_path / path))
    assert path in refusal(config, StorageError)
    with pytest.raises(StorageError, match=path):
        sources.fingerprint(config)


def test_movielens_fingerprint_follows_scenario_and_files(tmp_path: Path):
    config = movielens(tmp_path)
    first = sources.fingerprint(config)
    assert first == sources.fingerprint(config)
    assert first != sources.fingerprint(config.model_copy(update={"scenario": "age"}))
    movielens(tmp_path, ratings=DAT["ratings.dat"] + "3::10::2::105\n")
    assert first != sources.fingerprint(config)


def test_movielens_alias_has_a_fingerprint_without_being_fetched(own_cache: Path):
    config = SourceConfig(kind="movielens", path="ml-100k")
    assert sources.fingerprint(config) != sources.fingerprint(config.model_copy(update={"scenario": "era"}))
    assert not list(own_cache.glob("recbole*"))
