"""Types of columns: each that can be meant is read exactly; any other is refused by file, column and row or type."""

import datetime as dt
import random
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm4msr.config import SourceConfig
from llm4msr.errors import DataError, InputError
from llm4msr.text import MAX_ID, MAX_TEXT
from tests.support.data import write_csv
from tests.support.raw import WholeData, read_raw

PLAIN: dict[str, Any] = {
    "user_id": ["u1", "u2", "u3", "u4"],
    "item_id": ["i1", "i2", "i3", "i4"],
    "scenario": ["a", "b", "a", "b"],
    "label": [1, 0, 1, 0],
    "ts": [1, 2, 3, 4],
}
KEYS = {"interactions": "rows.csv", "label": "label", "order": "ts"}
FILE = {"interactions": "rows.parquet"}
TEXT_TYPES = [
    *(pa.string(), pa.large_string(), pa.string_view()),
    *(pa.dictionary(pa.int32(), pa.string()), pa.dictionary(pa.int8(), pa.large_string())),
]
WHOLE_TYPES = [
    *(pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
    *(pa.float16(), pa.float32(), pa.float64()),
    *(pa.decimal32(5, 2), pa.decimal64(9, 1), pa.decimal128(20, 0), pa.decimal128(9, 3), pa.decimal256(40, 5)),
    pa.dictionary(pa.int32(), pa.int64()),
]


def read(folder: Path, side: str = "rows", **columns: Any) -> WholeData:
    """A Parquet file of interactions (or of items) with these columns in place of plain ones."""
    table = {name: pa.array(values) for name, values in PLAIN.items()}
    pq.write_table(pa.table(table | (columns if side == "rows" else {})), folder / "rows.parquet")
    keys: dict[str, Any] = {"interactions": "rows.parquet", "label": "label", "order": "ts"}
    if side == "rows":
        keys["context"] = [name for name in columns if name not in PLAIN]
    else:
        pq.write_table(pa.table({"item_id": ["i1", "i2", "i3", "i4"]} | columns), folder / "items.parquet")
        keys |= {
            "items": "items.parquet",
            "item_features": [n for n in columns if n not in ("item_id", "title", "path")],
        }
        keys |= {"title": "title" if "title" in columns else "", "category": "path" if "path" in columns else ""}
    return read_raw(SourceConfig.model_validate({"kind": "table", "path": str(folder), "table": keys}))


def read_csv(folder: Path, **columns: list[Any]) -> WholeData:
    table = PLAIN | columns
    write_csv(folder / "rows.csv", list(table), zip(*table.values(), strict=True))
    keys = {
        "interactions": "rows.csv",
        "label": "label",
        "order": "ts",
        "context": [c for c in table if c not in PLAIN],
    }
    return read_raw(SourceConfig.model_validate({"kind": "table", "path": str(folder), "table": keys}))


def order(raw: WholeData) -> list[int]:
    column = raw.interactions["order"]
    assert column.type == pa.int64()
    values: list[int] = column.to_pylist()
    return values


def ranks(values: list[Any]) -> list[int]:
    distinct = sorted(set(values))
    return [distinct.index(value) for value in values]


# --- ids and texts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TEXT_TYPES, ids=str)
def test_text_of_any_type_is_taken_exactly(tmp_path: Path, kind: pa.DataType):
    given = ["a", "a ", "a\0", "7.0"]
    raw = read(tmp_path, user_id=pa.array(given).cast(kind), device=pa.array(["x", None, "", "nan"]).cast(kind))
    assert raw.interactions["user_id"].to_pylist() == given
    assert raw.interactions["c:device"].to_pylist() == ["x", "", "", "nan"]


def test_ids_of_a_csv_are_taken_exactly(tmp_path: Path):
    given = ["a", "a ", "a\0", " 07.0"]
    assert read_csv(tmp_path, item_id=given).interactions["item_id"].to_pylist() == given


@pytest.mark.parametrize("kind", WHOLE_TYPES, ids=str)
def test_whole_numbers_are_their_decimal_text_whatever_holds_them(tmp_path: Path, kind: pa.DataType):
    column = pa.array([7, 0, 120, 7], kind)
    raw = read(tmp_path, item_id=column, device=column)
    assert raw.interactions["item_id"].to_pylist() == ["7", "0", "120", "7"]
    assert raw.interactions["c:device"].to_pylist() == ["7", "0", "120", "7"]


def test_large_whole_numbers_of_int64_and_float64_meet(tmp_path: Path):
    given = [10**15, 2**53 - 1, -(10**15) - 1, 0]
    held = read(tmp_path, item_id=pa.array(given, pa.float64())).interactions["item_id"]
    assert held.to_pylist() == list(map(str, given))
    assert held == read(tmp_path, item_id=pa.array(given, pa.int64())).interactions["item_id"]


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        ([1, 2**53, 2, 3], pa.float64(), "9007199254740992.0 in row 2; too large to be exact as double"),
        ([1, 2, 2**24, 3], pa.float32(), "16777216.0 in row 3; too large to be exact as float"),
        ([1, 2, float("-inf"), 3], pa.float64(), "-inf in row 3; too large to be exact as double"),
        ([1, 2, 3, 1.5], pa.float64(), "1.5 in row 4; an id is text or a whole number"),
        ([Decimal("1.50"), 1, 2, 3], pa.decimal128(9, 2), "Decimal('1.50') in row 1; an id is text or a whole number"),
        ([1, float("nan"), 2, 3], pa.float64(), "None in row 2; an id cannot be empty"),
        ([1, None, 2, 3], pa.int64(), "None in row 2; an id cannot be empty"),
        ([None] * 4, pa.null(), "None in row 1; an id cannot be empty"),
        (["a", "b", "", "c"], pa.large_string(), "'' in row 3; an id cannot be empty"),
    ],
)
@pytest.mark.parametrize("column", ["user_id", "item_id", "scenario"])
def test_an_id_that_is_none_is_named(tmp_path: Path, column: str, values: list[Any], kind: pa.DataType, message: str):
    with pytest.raises(DataError) as caught:
        read(tmp_path, **{column: pa.array(values, kind)})
    assert str(caught.value).startswith(f"{tmp_path / 'rows.parquet'}: column '{column}': {message}")


def test_numbers_with_a_fraction_are_context_as_arrow_writes_them_and_nan_is_none(tmp_path: Path):
    raw = read(tmp_path, price=pa.array([1.5, 2, None, float("nan")]), day=pa.array([dt.date(2024, 1, 2)] * 4))
    assert raw.interactions["c:price"].to_pylist() == ["1.5", "2", "", ""]
    assert raw.interactions["c:day"].to_pylist() == ["2024-01-02"] * 4


@pytest.mark.parametrize(
    "values", [[True, False, True, False], [dt.datetime(2024, 1, 2)] * 4, [dt.date(2024, 1, 2)] * 4]
)
def test_booleans_dates_and_times_may_be_scenarios(tmp_path: Path, values: list[Any]):
    first = read(tmp_path, scenario=pa.array(values)).interactions["scenario_id"][0].as_py()
    assert first in ("true", "2024-01-02 00:00:00.000000", "2024-01-02")


# --- labels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        ["True", "False", "true", "false"],
        ["TRUE", "FALSE", " True ", "fAlSe"],
        ["1", "0", "1", "0"],
        ["1.0", "0.0", " 1", "+0"],
        ["1", "false", "TRUE", "0e0"],
    ],
)
def test_labels_of_a_csv(tmp_path: Path, values: list[str]):
    assert read_csv(tmp_path, label=values).interactions["label"].to_pylist() == [1, 0, 1, 0]
    raw = read(tmp_path, label=pa.array(values, pa.large_string()).dictionary_encode())
    assert raw.interactions["label"].to_pylist() == [1, 0, 1, 0]


@pytest.mark.parametrize("kind", [pa.bool_(), *WHOLE_TYPES], ids=str)
def test_labels_of_any_numbers(tmp_path: Path, kind: pa.DataType):
    values = [True, False, True, False] if kind == pa.bool_() else [1, 0, 1, 0]
    assert read(tmp_path, label=pa.array(values, kind)).interactions["label"].to_pylist() == [1, 0, 1, 0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["yes", "0", "1", "0"], "'yes' in row 1; expected a number, true or false"),
        (["1", "truee", "1", "0"], "'truee' in row 2; expected a number, true or false"),
        (["1", "0x1", "1", "0"], "'0x1' in row 2; expected a number, true or false"),
        ([True, None, True, False], "None in row 2; expected a number, true or false"),
        ([1, 0, 2**62, 0], "4.611686018427388e+18 in row 3; a label lies between 0 and 1"),
        ([1, 0, Decimal("1.01"), 0], "1.01 in row 3; a label lies between 0 and 1"),
    ],
)
def test_a_label_that_is_none_is_named(tmp_path: Path, values: list[Any], message: str):
    with pytest.raises(DataError) as caught:
        read(tmp_path, label=pa.array(values))
    assert str(caught.value).startswith(f"{tmp_path / 'rows.parquet'}: column 'label': {message}")


# --- order ------------------------------------------------------------------------------------------------------

LARGE = 1_700_000_000_000_000_000
"""Nanoseconds of today; a float64 holds every 256th of them."""


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Berlin", "+02:00", "No/Where"])
def test_time_stamps_count_in_their_own_unit(tmp_path: Path, unit: str, zone: str | None):
    given = [5, 3, 5, 4]
    of_the_file = 1000 if unit == "s" else 1  # Parquet has no seconds
    assert order(read(tmp_path, ts=pa.array(given, pa.timestamp(unit, zone)))) == [n * of_the_file for n in given]


@pytest.mark.parametrize(
    "kind", [pa.int64(), pa.uint64(), pa.timestamp("ns"), pa.decimal128(19, 0), pa.decimal128(28, 9)]
)
def test_the_last_nanosecond_decides(tmp_path: Path, kind: pa.DataType):
    given = [LARGE + 2, LARGE + 1, LARGE + 2, LARGE]
    assert order(read(tmp_path, ts=pa.array(given, pa.int64()).cast(kind))) == given


@pytest.mark.parametrize("given", [[2**64 - 1, 2**64 - 2, 0, 2**64 - 2], [2**63, 2**63 + 1, 2**63 + 1, 2**62]])
def test_what_no_int64_holds_keeps_its_order(tmp_path: Path, given: list[int]):
    assert ranks(order(read(tmp_path, ts=pa.array(given, pa.uint64())))) == ranks(given)
    assert ranks(order(read_csv(tmp_path, ts=given))) == ranks(given)


@pytest.mark.parametrize(
    "texts",
    [
        [f"{LARGE + 2}", f"{LARGE + 1}", f"{LARGE + 2}", f"{LARGE}"],
        ["1700000000.000000002", "1700000000.000000001", "1700000000.000000002", "1700000000"],
        ["2.5e-3", "1e-3", ".0025", "-1"],
        ["1.7e9", "+16", "1700000000.0", " 7 "],
        ["1e300", "1e200", "1e300", "-1e300"],
    ],
)
def test_numbers_of_a_csv_keep_their_order_and_ties(tmp_path: Path, texts: list[str]):
    assert ranks(order(read_csv(tmp_path, ts=texts))) == [2, 1, 2, 0]


def test_any_numbers_of_a_csv_keep_their_order(tmp_path: Path):
    rng = random.Random(5)
    for exponent in range(-30, 41, 5):
        digits = [str(rng.randrange(1, 10 ** rng.randint(1, 15))) for _ in range(200)]
        texts = [f"{rng.choice('+- ')}{d}{rng.choice(('', '.5', '.'))}e{rng.randint(-3, 3) + exponent}" for d in digits]
        table = {name: [values[0]] * 200 for name, values in PLAIN.items()} | {"ts": texts}
        write_csv(tmp_path / "rows.csv", list(table), zip(*table.values(), strict=True))
        read_order = order(
            read_raw(SourceConfig.model_validate({"kind": "table", "path": str(tmp_path), "table": KEYS}))
        )
        assert ranks(read_order) == ranks([float(text) for text in texts])


@pytest.mark.parametrize("digits", [17, 18, 19, 20, 21, 22, 38, 39, 76, 77, 300])
def test_long_numbers_of_a_csv_keep_their_order(tmp_path: Path, digits: int):
    texts = [f"{first}{'9' * (digits - 1)}" for first in (2, 1, 2)] + ["-1"]
    assert ranks(order(read_csv(tmp_path, ts=texts))) == [2, 1, 2, 0]


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64(), pa.decimal128(9, 3)])
def test_numbers_with_a_fraction_keep_their_order_and_ties(tmp_path: Path, kind: pa.DataType):
    given = pa.array([2.5, 0.25, 2.5, -7.125], pa.float64()).cast(kind)
    assert ranks(order(read(tmp_path, ts=given))) == [2, 1, 2, 0]


@pytest.mark.parametrize("kind", [pa.date32(), pa.date64()])
def test_dates_are_an_order(tmp_path: Path, kind: pa.DataType):
    days = [dt.date(2024, 1, 2), dt.date(1969, 1, 1), dt.date(2024, 1, 2), dt.date(1900, 1, 1)]
    assert ranks(order(read(tmp_path, ts=pa.array(days, kind)))) == [2, 1, 2, 0]


@pytest.mark.parametrize(
    "texts",
    [
        ["2024-03-01", "2024-02-29", "2024-03-01", "2024-02-28"],
        ["2024-03-01T10:00", "2024-03-01T09:59", "2024-03-01 10:00", "0001-01-01"],
        ["2024-03-01 10:00:00.5", "2024-03-01T10:00:00", "2024-03-01 10:00:00.500000", "2024-02-28T23:59:59"],
        [f"2024-03-01T10:00:00.{ns:09}" for ns in (2, 1, 2, 0)],
        ["2024-03-01T10:00:00Z", "2024-03-01T10:00:00+01:00", "2024-03-01T12:00:00+0200", "2024-02-28T10:00:00-05"],
        ["2024-03-01 10:00:00 UTC", "2024-03-01 10:00:00.25 +01:00", "2024-03-01 10:00:00Z", "2024-03-01T00:00Z"],
        ["9999-12-31T23:59:59", " 2024-01-01 ", "9999-12-31 23:59:59", "1500-01-01"],
    ],
)
def test_iso_8601_is_an_order(tmp_path: Path, texts: list[str]):
    assert ranks(order(read_csv(tmp_path, ts=texts))) == [2, 1, 2, 0]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (
            ["2024-01-01", "2024-13-01", "2024-01-01", "2024-01-01"],
            "'2024-13-01' in row 2; expected a number or a time",
        ),
        (
            ["2024-01-01", "2023-02-29", "2024-01-01", "2024-01-01"],
            "'2023-02-29' in row 2; expected a number or a time",
        ),
        (["01.02.2024"] * 4, "'01.02.2024' in row 1; expected a number or a time"),
        (["2024-01-01"] * 3 + [""], "None in row 4; expected a number or a time"),
        (["2024-01-01"] * 3 + ["17"], "'17' in row 4; expected a number or a time"),
        (["1", "2", "2024-01-01", "3"], "'2024-01-01' in row 3; expected a number or a time"),
        (["1", "inf", "3", "4"], "'inf' in row 2; expected a number or a time"),
        (
            ["2024-01-01T10:00Z"] * 3 + ["2024-01-01T10:00"],
            "'2024-01-01T10:00' in row 4; the first row has a time zone; write all times with one or all without",
        ),
        (
            ["2024-01-01 10:00"] * 3 + ["2024-01-01 10:00 UTC"],
            "'2024-01-01 10:00 UTC' in row 4; the first row has no time zone; write all times with one or all without",
        ),
    ],
)
def test_an_order_that_is_none_is_named(tmp_path: Path, texts: list[str], message: str):
    with pytest.raises(DataError) as caught:
        read_csv(tmp_path, ts=texts)
    assert str(caught.value).startswith(f"{tmp_path / 'rows.csv'}: column 'ts': {message}")


@pytest.mark.parametrize("kind", [pa.timestamp("ns"), pa.date32(), pa.float64(), pa.int64(), pa.string()], ids=str)
def test_a_missing_order_is_named(tmp_path: Path, kind: pa.DataType):
    column = pa.array([1, 2, None, 3], pa.int32() if kind == pa.date32() else pa.int64()).cast(kind)
    with pytest.raises(DataError, match=r"rows.parquet: column 'ts': None in row 3; expected a (number|time)"):
        read(tmp_path, ts=column)


# --- many-valued features ---------------------------------------------------------------------------------------

LISTS = [["x", "y"], None, [], ["z", None]]


@pytest.mark.parametrize(
    "kind",
    [
        *(pa.list_(pa.string()), pa.large_list(pa.large_string()), pa.list_view(pa.string())),
        *(pa.list_(pa.string_view()), pa.list_(pa.dictionary(pa.int32(), pa.string()))),
    ],
    ids=str,
)
def test_lists_are_many_valued_features(tmp_path: Path, kind: pa.DataType):
    items = read(tmp_path, "items", tags=pa.array(LISTS, kind)).items
    assert items["f:tags"].type == pa.list_(pa.string())
    assert items["f:tags"].to_pylist() == [["x", "y"], [], [], ["z", ""]]


@pytest.mark.parametrize("kind", [pa.int64(), pa.float64(), pa.float32(), pa.uint8(), pa.decimal128(9, 2)], ids=str)
@pytest.mark.parametrize("make", [pa.list_, pa.large_list, lambda kind: pa.list_(kind, 2)])
def test_lists_of_numbers_are_many_valued_features(tmp_path: Path, make: Any, kind: pa.DataType):
    column = pa.array([[1, 2], None, [3, None], [1, 1]], make(kind))
    assert read(tmp_path, "items", tags=column).items["f:tags"].to_pylist() == [["1", "2"], [], ["3", ""], ["1", "1"]]


def test_a_list_may_be_the_category_path(tmp_path: Path):
    raw = read(tmp_path, "items", path=pa.array(LISTS), title=pa.array(["A", None, "C", "D"]))
    assert raw.items["f:category"].to_pylist() == [["x", "y"], [], [], ["z", ""]]
    assert raw.items["title"].to_pylist() == ["A", "", "C", "D"]


def test_a_value_of_a_list_is_named_by_the_row_it_stands_in(tmp_path: Path):
    column = pa.array([["x", "y"], None, ["z", "w" * (MAX_TEXT + 1)], []])
    with pytest.raises(
        DataError, match=r"items.parquet: column 'tags': 'www+… in row 3; a cell of this column has at most"
    ):
        read(tmp_path, "items", tags=column)


# --- what cannot be meant ---------------------------------------------------------------------------------------

NO_UTF8 = pa.Array.from_buffers(
    pa.string(), 4, [None, pa.array([0, 1, 2, 3, 4], pa.int32()).buffers()[1], pa.py_buffer(b"ab\xffd")]
)
REFUSED = {
    "binary": pa.array([b"a"] * 4),
    "large_binary": pa.array([b"a"] * 4, pa.large_binary()),
    "fixed_size_binary[2]": pa.array([b"ab"] * 4, pa.binary(2)),
    "duration[us]": pa.array([1] * 4, pa.duration("us")),
    "time32[ms]": pa.array([1] * 4, pa.time32("ms")),
    "time64[us]": pa.array([1] * 4, pa.time64("us")),
    "struct<a: int64>": pa.array([{"a": 1}] * 4),
    "map<string, int64": pa.array([[("a", 1)]] * 4, pa.map_(pa.string(), pa.int64())),
    "list<element: list<element: int64>>": pa.array([[[1]]] * 4),
    "list<element: binary>": pa.array([[b"a"]] * 4),
    "'\\udcff' in row 3; expected text in UTF-8": NO_UTF8,
}


@pytest.mark.parametrize("column", ["user_id", "scenario", "label", "ts", "device"])
@pytest.mark.parametrize("shown", REFUSED)
def test_other_types_are_refused_by_file_column_and_type(tmp_path: Path, shown: str, column: str):
    with pytest.raises(DataError) as caught:
        read(tmp_path, **{column: REFUSED[shown]})
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'rows.parquet'}: column '{column}'")
    assert ("row 3" if "row 3" in shown else f" holds {shown}") in message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("column", ["tags", "title", "path", "item_id"])
@pytest.mark.parametrize("shown", REFUSED)
def test_other_types_of_items_are_refused_by_file_column_and_type(tmp_path: Path, shown: str, column: str):
    with pytest.raises(InputError) as caught:
        read(tmp_path, "items", **{column: REFUSED[shown]})
    assert str(caught.value).startswith(f"{tmp_path / 'items.parquet'}: column '{column}'")


def test_a_time_zone_that_nobody_knows_is_no_text(tmp_path: Path):
    with pytest.raises(
        DataError, match=r"rows\.parquet: column 'user_id': 1 in row 1; timestamp.* that no text can show"
    ):
        read(tmp_path, user_id=pa.array([1, 2, 3, 4], pa.timestamp("us", "No/Where")))


def test_flipped_bits_of_a_file_end_in_no_traceback(tmp_path: Path):
    rng = random.Random(1)
    read(tmp_path)
    whole = (tmp_path / "rows.parquet").read_bytes()
    config = SourceConfig.model_validate({"kind": "table", "path": str(tmp_path), "table": KEYS | FILE})
    refused = 0
    for _ in range(300):
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        (tmp_path / "rows.parquet").write_bytes(data)
        try:
            read_raw(config)
        except InputError as error:
            refused += str(error).startswith(f"{tmp_path / 'rows.parquet'}: ")
    assert refused > 100


@pytest.mark.parametrize("column", ["user_id", "scenario", "label", "ts", "device"])
def test_lists_are_for_features_alone(tmp_path: Path, column: str):
    with pytest.raises(DataError, match=f"rows.parquet: column '{column}' holds list<element: int64>; expected text"):
        read(tmp_path, **{column: pa.array([[1]] * 4)})


# --- limits -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["user_id", "item_id", "scenario", "device"])
@pytest.mark.parametrize("letter", ["a", "ä", "😀"])
def test_ids_and_context_have_the_limit_of_serving(tmp_path: Path, column: str, letter: str):
    fits = ["x", letter * MAX_ID, "y", "z"]
    name = {"scenario": "scenario_id", "device": "c:device"}.get(column, column)
    assert read(tmp_path, **{column: pa.array(fits)}).interactions[name].to_pylist() == fits
    for reader, file in ((read, "rows.parquet"), (read_csv, "rows.csv")):
        long: Any = ["x", "y", letter * (MAX_ID + 1), "z"]
        with pytest.raises(DataError) as caught:
            reader(tmp_path, **{column: pa.array(long) if reader is read else long})
        assert str(caught.value).startswith(f"{tmp_path / file}: column '{column}': '{letter * 9}")
        assert f"in row 3; {'an id' if column != 'device' else 'a cell of this column'} has at most" in str(
            caught.value
        )
        assert f" {MAX_ID} characters" in str(caught.value)
        assert len(str(caught.value)) < 500 + len(str(tmp_path))
