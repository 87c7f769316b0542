"""Tables in many files: folders, patterns, hive partitions, pieces of large files; and what is said of a wrong one."""

import functools
import os
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from upath import UPath

from llm4msr.config import SourceConfig
from llm4msr.data import sources
from llm4msr.data.reading import pieces
from llm4msr.data.reading.raw_data import whole
from llm4msr.data.reading.raw_tables import PieceTable
from llm4msr.errors import DataError, StorageError
from tests.support.data import write_csv
from tests.support.raw import read_raw

HEADER = ["user_id", "item_id", "scenario", "label", "ts"]


def source(folder: Any, interactions: str = "events", **columns: Any) -> SourceConfig:
    table = {"interactions": interactions, "label": "label", "order": "ts"} | columns
    return SourceConfig.model_validate({"kind": "table", "path": str(folder), "table": table})


def rows(start: int, count: int = 4) -> list[list[Any]]:
    return [[f"u{at % 5}", f"i{at}", "ab"[at % 2], at % 2, at] for at in range(start, start + count)]


def write(file: Path, start: int, count: int = 4, **options: Any) -> Path:
    if file.suffix != ".parquet":
        return write_csv(file, HEADER, rows(start, count))
    file.parent.mkdir(parents=True, exist_ok=True)
    columns = zip(*rows(start, count), strict=True) if count else [pa.array([], pa.string())] * 3 + [[], []]
    pq.write_table(pa.table({n: pa.array(c) for n, c in zip(HEADER, columns, strict=True)}), file, **options)
    return file


def items_of(config: SourceConfig) -> list[str]:
    items: list[str] = read_raw(config).interactions["item_id"].to_pylist()
    return items


def refusal(config: SourceConfig) -> str:
    with pytest.raises((DataError, StorageError)) as caught:
        read_raw(config)
    return str(caught.value)


# --- which files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["csv", "csv.gz", "parquet"])
def test_a_folder_gives_the_rows_of_its_files_in_the_order_of_their_names(tmp_path: Path, end: str):
    for start in (8, 0, 4):
        write(tmp_path / "events" / f"{'abc'[start // 4]}.{end}", start)
    write(tmp_path / "events" / "d" / f"e.{end}", 12)
    raw = sources.read(source(tmp_path))
    table = whole(raw.interactions)
    assert table["item_id"].to_pylist() == [f"i{at}" for at in range(16)]
    assert table["row"].to_pylist() == [(at // 4 << 40) + at % 4 for at in range(16)]
    assert table["order"].to_pylist() == list(range(16))
    assert raw.interactions.rows == pytest.approx(16, abs=2)


def test_the_path_itself_may_be_the_folder_or_the_file(tmp_path: Path):
    write(tmp_path / "events" / "a.csv", 0)
    assert items_of(source(tmp_path / "events", "")) == items_of(source(tmp_path / "events" / "a.csv", ""))


NAMES = ["{}/data/day=1/a.csv", "{}/data", "{}/data/*/*.csv", "../data", "../data/day=1/a.csv"]


@pytest.mark.parametrize("name", NAMES)
def test_a_table_may_lie_beside_the_path(tmp_path: Path, name: str):
    write(tmp_path / "data" / "day=1" / "a.csv", 0)
    (tmp_path / "here").mkdir()
    read = read_raw(source(tmp_path / "here", name.format(tmp_path), context=["day"])).interactions
    assert read["item_id"].to_pylist() == ["i0", "i1", "i2", "i3"]
    assert read["c:day"].to_pylist() == ["1"] * 4


@pytest.mark.parametrize(
    ("pattern", "starts"),
    [
        ("events/*.csv", [0]),
        ("events/**/*.csv", [0, 4, 8]),
        ("events/day=*", [4, 8]),
        ("events/day=[2]", [8]),
        ("events/day=?/*", [4, 8]),
        ("events/**", [0, 4, 8]),
        ("**", [0, 4, 8, 16]),
        ("other", [16]),
        ("*", [0, 4, 8, 16]),
    ],
)
def test_a_pattern_gives_the_files_that_match(tmp_path: Path, pattern: str, starts: list[int]):
    folder = tmp_path / "with [1] * mark"
    write(folder / "events" / "a.csv", 0)
    write(folder / "events" / "day=1" / "a.csv", 4)
    write(folder / "events" / "day=2" / "a.csv", 8)
    write(folder / "other" / "x.csv", 16)
    expected = [f"i{start + at}" for start in starts for at in range(4)]
    assert items_of(source(folder, pattern)) == expected


def test_a_name_that_looks_like_a_pattern_is_a_name_where_there_is_such_a_file(tmp_path: Path):
    write(tmp_path / "events[1].csv", 0)
    write(tmp_path / "events1.csv", 4)
    assert items_of(source(tmp_path, "events[1].csv")) == ["i0", "i1", "i2", "i3"]
    assert items_of(source(tmp_path, "events[12].csv")) == ["i4", "i5", "i6", "i7"]


def test_what_other_tools_leave_beside_the_data_does_not_count(tmp_path: Path):
    write(tmp_path / "events" / "a.parquet", 0)
    (tmp_path / "events" / "_SUCCESS").touch()
    (tmp_path / "events" / ".a.parquet.crc").write_text("x")
    write(tmp_path / "events" / "_temporary" / "b.parquet", 4)
    for name in ("events", "events/*", "**", "**/*.parquet", ""):
        assert items_of(source(tmp_path, name)) == ["i0", "i1", "i2", "i3"]
    for name in ("events/_temporary", "events/_temporary/*", "events/_temporary/b.parquet"):
        assert items_of(source(tmp_path, name)) == ["i4", "i5", "i6", "i7"]
    assert items_of(source(tmp_path / "events" / "_temporary", "")) == ["i4", "i5", "i6", "i7"]


@pytest.mark.parametrize("end", ["csv", "parquet"])
def test_files_without_rows_are_passed_over_unless_all_are_empty(tmp_path: Path, end: str):
    write(tmp_path / "events" / f"a.{end}", 0, count=0)
    message = refusal(source(tmp_path))
    assert message.startswith(f"{tmp_path / 'events' / f'a.{end}'}: no rows")
    write(tmp_path / "events" / f"c.{end}", 0, count=0)
    assert refusal(source(tmp_path)) == f"{tmp_path / 'events'}: no rows in any of its 2 files"
    write(tmp_path / "events" / f"b.{end}", 8)
    assert items_of(source(tmp_path)) == ["i8", "i9", "i10", "i11"]


@pytest.mark.parametrize("name", ["events", "none/*.csv", "events/*.parquet"])
def test_no_files_is_said_by_place(tmp_path: Path, name: str):
    (tmp_path / "events").mkdir()
    message = refusal(source(tmp_path, name))
    assert message.startswith(f"{tmp_path / name}: no files")


def test_an_absent_folder_is_said_by_place(tmp_path: Path):
    assert refusal(source(tmp_path)).startswith(f"{tmp_path / 'events'}: cannot be read (FileNotFoundError)")


def test_two_formats_in_a_folder_are_refused_by_name(tmp_path: Path):
    write(tmp_path / "events" / "a.parquet", 0)
    write(tmp_path / "events" / "README.md", 0)
    message = refusal(source(tmp_path))
    assert "Parquet and other files: events/a.parquet, events/README.md; name those of one kind" in message
    assert items_of(source(tmp_path, "events/*.parquet"))


@pytest.mark.parametrize(
    ("kind", "mark"), [("delta", "_delta_log/00000.json"), ("iceberg", "metadata/v1.metadata.json")]
)
def test_a_table_of_another_kind_is_not_read_as_its_files(tmp_path: Path, kind: str, mark: str):
    write(tmp_path / "events" / "a.parquet", 0)
    (tmp_path / "events" / mark).parent.mkdir()
    (tmp_path / "events" / mark).touch()
    assert f"a table of source.kind = '{kind}'" in refusal(source(tmp_path))


def test_users_and_items_may_be_many_files_too(tmp_path: Path):
    write(tmp_path / "events.csv", 0)
    for at, name in enumerate(("a", "b")):
        write_csv(tmp_path / "users" / f"{name}.csv", ["user_id", "age"], [[f"u{at}", at]])
        write_csv(tmp_path / "items" / f"{name}.csv", ["item_id", "t"], [[f"i{at}", name]])
    config = source(tmp_path, "events.csv", users="users", items="items/*.csv", title="t", user_features=["age"])
    raw = read_raw(config)
    assert raw.users.to_pydict() == {"user_id": ["u0", "u1"], "f:age": ["0", "1"]}
    assert raw.items.to_pydict() == {"item_id": ["i0", "i1"], "title": ["a", "b"]}
    write_csv(tmp_path / "users" / "c.csv", ["user_id", "age"], [["u3", 3], ["u0", 3]])
    assert refusal(config).startswith(f"{tmp_path / 'users'}: column 'user_id': 'u0' stands again in row 4")


# --- hive partitions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["csv", "parquet"])
def test_folders_of_key_and_value_are_columns(tmp_path: Path, end: str):
    for day, shop in (("2024-01-02", "a%2Fb%3D c"), ("2024-01-01", "__HIVE_DEFAULT_PARTITION__")):
        write(tmp_path / "events" / f"day={day}" / f"shop={shop}" / f"x.{end}", int(day[-1]))
    config = source(tmp_path, order="day", context=["shop", "day"])
    read = read_raw(config).interactions
    assert read["c:shop"].to_pylist() == [""] * 4 + ["a/b= c"] * 4
    assert read["c:day"].to_pylist() == ["2024-01-01"] * 4 + ["2024-01-02"] * 4
    day = 24 * 3600 * 10**6
    assert read["order"].to_pylist()[4] - read["order"].to_pylist()[3] == day


def test_a_scenario_may_be_a_folder_and_a_column_of_the_file_comes_first(tmp_path: Path):
    write(tmp_path / "scenario=x" / "page=7" / "a.csv", 0)
    assert set(read_raw(source(tmp_path, "", scenario="page")).interactions["scenario_id"].to_pylist()) == {"7"}
    assert set(read_raw(source(tmp_path, "")).interactions["scenario_id"].to_pylist()) == {"a", "b"}
    at_the_end = source(tmp_path, "scenario=x/page=7/a.csv", scenario="page")
    assert set(read_raw(at_the_end).interactions["scenario_id"].to_pylist()) == {"7"}


def test_an_empty_id_in_a_folder_is_named(tmp_path: Path):
    write(tmp_path / "page=__HIVE_DEFAULT_PARTITION__" / "a.csv", 0)
    message = refusal(source(tmp_path, "", scenario="page"))
    assert message.endswith("a.csv: column 'page': None in row 1; an id cannot be empty")


# --- all files must be alike ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["csv", "parquet"])
def test_a_bad_cell_is_named_by_its_own_file_and_row(tmp_path: Path, end: str):
    write(tmp_path / "events" / f"a.{end}", 0)
    file = tmp_path / "events" / f"b.{end}"
    if end == "csv":
        write_csv(file, HEADER, [*rows(4), ["u", "i", "a", "7", "1"]])
    else:
        pq.write_table(
            pa.table(
                {n: [*c, b] for n, c, b in zip(HEADER, zip(*rows(4), strict=True), ["u", "i", "a", 7, 1], strict=True)}
            ),
            file,
        )
    raw = sources.read(source(tmp_path))
    with pytest.raises(DataError) as caught:
        whole(raw.interactions)
    assert str(caught.value).startswith(f"{file}: column 'label': 7.0 in row 5; a label lies between 0 and 1")


@pytest.mark.parametrize("end", ["csv", "parquet"])
def test_a_file_without_a_column_is_named(tmp_path: Path, end: str):
    write(tmp_path / "events" / f"a.{end}", 0)
    file = tmp_path / "events" / f"b.{end}"
    if end == "csv":
        write_csv(file, HEADER[:-1], [row[:-1] for row in rows(4)])
    else:
        pq.write_table(pq.read_table(tmp_path / "events" / "a.parquet").drop_columns("ts"), file)
    message = refusal(source(tmp_path))
    assert message == f"{file}: column 'ts' is missing; it has user_id, item_id, scenario, label"


def test_a_feature_of_lists_in_one_file_and_of_texts_in_another_is_refused(tmp_path: Path):
    write(tmp_path / "events.csv", 0)
    (tmp_path / "items").mkdir()
    pq.write_table(pa.table({"item_id": ["i1"], "tags": [["a"]]}), tmp_path / "items" / "a.parquet")
    pq.write_table(pa.table({"item_id": ["i2"], "tags": ["a"]}), tmp_path / "items" / "b.parquet")
    config = source(tmp_path, "events.csv", items="items", item_features=["tags"])
    expected = "column 'tags' holds single values, and in the first file lists; write all files alike"
    assert refusal(config) == f"{tmp_path / 'items' / 'b.parquet'}: {expected}"


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("3", "2024-01-01", "'2024-01-01' in row 1; expected a whole number, as in the first rows"),
        ("3", "1.5", "'1.5' in row 1; expected a whole number, as in the first rows"),
        ("1.5", "2024-01-01", "'2024-01-01' in row 1; expected a number"),
        ("2024-01-01", "17", "'17' in row 1; expected a number or a time"),
        ("2024-01-01T00:00Z", "2024-01-01T00:00", "the first row has a time zone; write all times with one"),
        ("2024-01-01T00:00", "2024-01-01T00:00Z", "the first row has no time zone; write all times with one"),
        ("2024-01-01T00:00:00.5", "2024-01-01T00:00:00.000000001", "in row 1; expected a number or a time"),
    ],
)
def test_an_order_that_is_unlike_the_first_files_is_refused(tmp_path: Path, first: str, second: str, message: str):
    write_csv(tmp_path / "events" / "a.csv", HEADER, [[*rows(0)[0][:-1], first]])
    file = write_csv(tmp_path / "events" / "b.csv", HEADER, [[*rows(0)[0][:-1], second]])
    told = refusal(source(tmp_path))
    assert told.startswith(f"{file}: column 'ts': ")
    assert message in told


@pytest.mark.parametrize(
    ("texts", "smaller_first"),
    [
        (["0.5", "-0.5", "3", "1e300", "-1e300", "0", "-0.0", "1e-300", "-1e-300"], True),
        (["2024-01-01", "2023-12-31T23:59:59.999999", "1500-01-01", "9999-12-31"], True),
        (["18446744073709551615", "0", "9223372036854775808", "17"], True),
        (["1700000000.000000001", "1700000000.000000002", "-3.5", "0"], True),
    ],
)
def test_one_order_holds_across_files(tmp_path: Path, texts: list[str], smaller_first: bool):
    for at, text in enumerate(texts):  # the first file decides, and has them all
        these = texts if at == 0 else [text]
        write_csv(tmp_path / "events" / f"{at}.csv", HEADER, [[*rows(0)[0][:-1], one] for one in these])
    order = read_raw(source(tmp_path)).interactions["order"].to_pylist()
    assert order[len(texts) :] == order[1 : len(texts)]
    key = (lambda text: pa.scalar(text).cast(pa.timestamp("us")).value) if "-01-" in texts[0] else _exact
    for one, a in zip(texts, order, strict=False):
        for two, b in zip(texts, order, strict=False):
            assert (key(one) < key(two)) == (a < b)


def _exact(text: str) -> Any:
    from fractions import Fraction

    return Fraction(text)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (pa.timestamp("us"), pa.timestamp("ms"), ""),
        (pa.timestamp("us", "UTC"), pa.timestamp("us", "Europe/Berlin"), ""),
        (pa.int64(), pa.uint8(), ""),
        (pa.int32(), pa.float64(), ""),
        (pa.timestamp("us"), pa.timestamp("us", "UTC"), "and in the first file timestamp[us]; write all files alike"),
        (pa.timestamp("us"), pa.int64(), "holds int64, and in the first file timestamp[us]; write all files alike"),
        (pa.date32(), pa.timestamp("us"), "holds timestamp[us], and in the first file date32[day]"),
        (pa.int64(), pa.timestamp("us"), "holds timestamp[us]; expected numbers"),
    ],
    ids=str,
)
def test_types_of_an_order_must_agree(tmp_path: Path, first: pa.DataType, second: pa.DataType, message: str):
    (tmp_path / "events").mkdir()
    for name, kind in (("a", first), ("b", second)):
        table = {n: pa.array([c]) for n, c in zip(HEADER, rows(0)[0], strict=True)}
        whole_days = 86_400 * 10**3 * (1 if kind == pa.timestamp("ms") else 10**3)
        given = [7] if pa.types.is_date(kind) or not pa.types.is_timestamp(kind) else [7 * whole_days]
        table["ts"] = pa.array(given, pa.int32() if kind == pa.date32() else pa.int64()).cast(kind)
        pq.write_table(pa.table(table), tmp_path / "events" / f"{name}.parquet")
    if message:
        told = refusal(source(tmp_path))
        assert told.startswith(f"{tmp_path / 'events' / 'b.parquet'}: column 'ts' ")
        assert message in told
    else:
        assert len(set(read_raw(source(tmp_path)).interactions["order"].to_pylist())) == 1


def test_a_later_block_of_a_csv_that_does_not_fit_the_first_is_named_by_its_row(tmp_path: Path):
    row = "user-number-one,item,home,1,"
    count = 200_000
    assert count * len(row) > 1 << 22
    for times, bad, rule in (("17", "18.5", "a whole number"), ("2024-01-01", "x", "a number or a time")):
        lines = [",".join(HEADER), *[row + times] * count, row + bad]
        (tmp_path / "rows.csv").write_text("\n".join(lines))
        message = refusal(source(tmp_path, "rows.csv"))
        assert message.startswith(f"{tmp_path / 'rows.csv'}: column 'ts': '{bad}' in row {count + 1}; expected {rule}")


# --- pieces ---------------------------------------------------------------------------------------------------------


def test_a_large_parquet_file_is_read_in_pieces_of_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path / "events" / "a.parquet", 0, 1000, row_group_size=64)
    write(tmp_path / "events" / "b.parquet", 1000, 10)
    in_one = whole(sources.read(source(tmp_path)).interactions)
    monkeypatch.setattr(pieces, "PIECE_BYTES", 5000)
    raw = sources.read(source(tmp_path)).interactions
    assert isinstance(raw, PieceTable)
    assert len(raw.pieces) > 4
    assert whole(raw).equals(in_one)
    assert raw.rows == 1010
    starts = [next(raw.read(piece))["row"][0].as_py() for piece in raw.pieces]
    assert starts == sorted(starts)


def test_rows_are_counted_where_footers_tell_and_estimated_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for at in range(30):
        write(tmp_path / "events" / f"{at:02}.parquet", 100 * at, 100)
        write(tmp_path / "texts" / f"{at:02}.csv.gz", 1000 * at, 1000)
    assert sources.read(source(tmp_path)).interactions.rows == 3000
    assert sources.read(source(tmp_path, "texts")).interactions.rows == pytest.approx(30_000, rel=0.2)
    monkeypatch.setattr(pieces, "FOOTERS", 4)
    assert sources.read(source(tmp_path)).interactions.rows == pytest.approx(3000, rel=0.1)


def test_a_table_is_read_piece_by_piece(tmp_path: Path):
    """A later file may be unreadable, and the rows before it are given."""
    write(tmp_path / "events" / "a.parquet", 0)
    (tmp_path / "events" / "b.parquet").write_bytes(b"PAR1 no Parquet")
    config = source(tmp_path)
    with pytest.raises(DataError, match=r"b\.parquet: not readable as Parquet"):
        sources.read(config)  # the footers are read for the number of rows
    (tmp_path / "events" / "a.parquet").unlink()
    (tmp_path / "events" / "b.parquet").unlink()
    write(tmp_path / "events" / "a.csv", 0)
    (tmp_path / "events" / "b.csv").write_bytes(b"\xff\xfe")
    tables = sources.read(config).interactions.tables()
    assert next(tables).num_rows == 4
    with pytest.raises(DataError, match=r"b\.csv: the encoding is UTF-16"):
        next(tables)


# --- fingerprints ---------------------------------------------------------------------------------------------------


def test_a_fingerprint_follows_each_file_and_each_name(tmp_path: Path):
    for at in range(5):
        write(tmp_path / "events" / f"day={at}" / "x.csv", at)
    prints = [sources.fingerprint(source(tmp_path))]
    assert prints[0] == sources.fingerprint(source(tmp_path))
    write(tmp_path / "events" / "day=3" / "x.csv", 7)
    prints.append(sources.fingerprint(source(tmp_path)))
    (tmp_path / "events" / "day=3").rename(tmp_path / "events" / "day=9")
    prints.append(sources.fingerprint(source(tmp_path)))
    (tmp_path / "events" / "day=1" / "x.csv").unlink()
    prints.append(sources.fingerprint(source(tmp_path)))
    assert len(set(prints)) == 4
    (tmp_path / "events" / "_SUCCESS").touch()
    os.utime(tmp_path / "events" / "day=0" / "x.csv", (1, 1))
    assert sources.fingerprint(source(tmp_path)) == prints[-1]


def test_the_same_files_elsewhere_have_the_same_fingerprint(tmp_path: Path):
    for place in ("here", "there"):
        write(tmp_path / place / "events" / "a" / "x.csv", 1)
    assert sources.fingerprint(source(tmp_path / "here")) == sources.fingerprint(source(tmp_path / "there"))


def test_another_uri_gives_the_same_rows_and_numbers(tmp_path: Path):
    there = UPath("memory://many-files")
    for day in (1, 2):
        file = write(tmp_path / "events" / f"day={day}" / "x.parquet", day)
        (there / "events" / f"day={day}" / "x.parquet").write_bytes(file.read_bytes())
    away, here = (whole(sources.read(source(at, context=["day"])).interactions) for at in (there, tmp_path))
    assert away.equals(here)
    assert items_of(source(there, "events/*/x.parquet")) == here["item_id"].to_pylist()


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_a_file_on_a_server_is_read_and_a_large_one_is_named_if_its_parts_cannot_be_asked_for(
    tmp_path: Path, name: str
):
    write(tmp_path / name, 0)
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = f"http://127.0.0.1:{server.server_port}"
        assert sources.fingerprint(source(place, name)) == sources.fingerprint(source(tmp_path, name))
        assert items_of(source(place, name)) == items_of(source(tmp_path, name))
        (tmp_path / name).write_bytes(f"{','.join(HEADER)}\n".encode() + b"u,i,a,1,1\n" * 1_000_000)
        message = refusal(source(place, name))
        server.shutdown()
    assert message.startswith(f"{place}/{name}: ")
    assert "range requests" in message


def test_a_listing_is_asked_for_once_whatever_the_number_of_files(monkeypatch: pytest.MonkeyPatch):
    asked, find = list[str](), MemoryFileSystem.find

    def count(fs: MemoryFileSystem, path: str, **options: Any) -> Any:
        asked.append(path)
        return find(fs, path, **options)

    monkeypatch.setattr(MemoryFileSystem, "find", count)
    place = UPath("memory://counted")
    for at in range(40):
        (place / "events" / f"{at}.csv").write_bytes(b"user_id,item_id,scenario,label,ts\nu,i,s,1,1\n")
    assert len(items_of(source(place))) == 40
    assert asked == ["/counted/events"]
    sources.fingerprint(source(place, "events/*.csv"))
    assert len(asked) == 2
