"""How text stands in a file: encodings, line ends, delimiters, quotes; and fingerprints of content."""

import bz2
import gzip
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from upath import UPath

from llm4msr.config import SourceConfig, TableColumns
from llm4msr.data import sources
from llm4msr.data.reading import csv_blocks
from llm4msr.errors import DataError
from llm4msr.pipeline import prepare
from tests.support.data import config_of, interactions, write_data
from tests.support.raw import WholeData, read_raw
from tests.unit.data.sources.test_sources import DAT

TEXT = "user_id,item_id,scenario,label,ts\nu1,Amélie,home,1,1\nu2,星,home,0,2\n"


def source(folder: Any, name: str = "rows.csv", **table: Any) -> SourceConfig:
    keys = {"interactions": name, "label": "label", "order": "ts"} | table
    return SourceConfig.model_validate({"kind": "table", "path": str(folder), "table": keys})


def read(folder: Path, data: bytes, name: str = "rows.csv", **table: Any) -> WholeData:
    (folder / name).write_bytes(data)
    return read_raw(source(folder, name, **table))


def refusal(folder: Path, data: bytes, name: str = "rows.csv", **table: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(folder, data, name, **table)
    start = f"{folder / name}: "
    assert str(caught.value).startswith(start)
    return str(caught.value).removeprefix(start)


# --- encodings and line ends --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz", "rows.txt"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\n\n", "\r\n\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_utf8_with_or_without_mark_and_any_line_end(tmp_path: Path, name: str, mark: str, end: str, last: bool):
    data = (mark + (TEXT if last else TEXT.rstrip()).replace("\n", end)).encode()
    raw = read(tmp_path, gzip.compress(data) if name.endswith(".gz") else data, name)
    assert raw.interactions["user_id"].to_pylist() == ["u1", "u2"]
    assert raw.interactions["item_id"].to_pylist() == ["Amélie", "星"]
    assert raw.interactions["order"].to_pylist() == [1, 2]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (TEXT.replace("星", "x").encode("latin-1"), "the encoding is not UTF-8 (line 2 has the byte 0xe9)"),
        (TEXT.encode("utf-16"), "the encoding is UTF-16"),
        (b"\xfe\xff" + TEXT.encode("utf-16-be"), "the encoding is UTF-16"),
        (TEXT.encode("utf-16-le"), "the encoding is not UTF-8 ("),
        ("user_id,item_id".encode("utf-16-le"), "the encoding is not UTF-8 (the header has zero bytes)"),
        (TEXT.encode("utf-32"), "the encoding is UTF-32"),
        (TEXT.encode("gb18030"), "the encoding is not UTF-8 (line 2"),
        (
            TEXT.encode()[: TEXT.encode().index("星".encode()) + 2],
            "the encoding is not UTF-8 (line 3 has the byte 0xe6)",
        ),
    ],
)
def test_another_encoding_is_named(tmp_path: Path, data: bytes, message: str):
    told = refusal(tmp_path, data)
    assert told.startswith(message)
    assert told.endswith("; save it as UTF-8")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (gzip.compress(TEXT.encode()), "packed with gzip; its name has to end in .gz"),
        (bz2.compress(TEXT.encode()), "packed with bzip2; unpack it"),
        (b"PAR1" + bytes(9) + b"PAR1", "a Parquet file; its name has to end in .parquet"),
        (b"PK\x03\x04" + bytes(9), "a zip file; unpack it"),
    ],
)
def test_what_is_no_text_is_named(tmp_path: Path, data: bytes, message: str):
    assert refusal(tmp_path, data) == message
    assert refusal(tmp_path, gzip.compress(data), "rows.csv.gz") == message


def test_another_encoding_is_found_behind_the_first_block_and_a_character_may_lie_across_blocks(tmp_path: Path):
    row = "u1,星,home,1,1\n".encode()
    data = TEXT.encode() + row * 700_000
    assert len(data) > 2 * (1 << 22)
    assert len(set(read(tmp_path, data).interactions["item_id"].to_pylist())) == 2
    assert refusal(tmp_path, data + b"\xe9").startswith("the encoding is not UTF-8 (line 700004 has the byte 0xe9)")


# --- delimiters ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "rows.tsv.gz"])
@pytest.mark.parametrize("delimiter", csv_blocks.DELIMITERS)
@pytest.mark.parametrize("key", [True, False])
def test_a_delimiter_is_found_or_given(tmp_path: Path, delimiter: str, name: str, key: bool):
    data = TEXT.replace(",", delimiter).encode()
    data = gzip.compress(data) if name.endswith(".gz") else data
    raw = read(tmp_path, data, name, delimiter=delimiter if key else "")
    assert raw.interactions["item_id"].to_pylist() == ["Amélie", "星"]


def test_each_file_has_a_delimiter_of_its_own(tmp_path: Path):
    (tmp_path / "items.tsv").write_text('item_id\tname, full\n星\t"a\tb, ""c"""\n')
    (tmp_path / "users.csv").write_text("user_id\nu1\n")
    raw = read(tmp_path, TEXT.encode(), items="items.tsv", title="name, full", users="users.csv")
    assert raw.items.to_pylist() == [{"item_id": "星", "title": 'a\tb, "c"'}]
    assert raw.users.to_pylist() == [{"user_id": "u1"}]


def test_any_other_delimiter_may_be_given(tmp_path: Path):
    raw = read(tmp_path, TEXT.replace(",", "^").encode(), delimiter="^")
    assert raw.interactions["item_id"].to_pylist() == ["Amélie", "星"]


@pytest.mark.parametrize(
    "header",
    [
        "user_id,item_id,scenario,label,ts,x;user_id;item_id;scenario;label;ts;y",
        "user_id,item_id;scenario,label,ts",
        "user_id\titem_id|scenario\tlabel|ts",
    ],
)
def test_a_delimiter_that_could_be_two_is_refused_by_the_key(tmp_path: Path, header: str):
    told = refusal(tmp_path, f"{header}\n{header}\n".encode())
    assert told.startswith("columns may be separated by '")
    assert " or '" in told
    assert told.endswith("; set source.table.delimiter")


def test_columns_that_are_there_decide_between_two_delimiters(tmp_path: Path):
    data = "user_id;item_id;scenario;label;ts;price, EUR|USD\nu;i;s;1;1;2,50\n"
    assert read(tmp_path, data.encode()).interactions["item_id"].to_pylist() == ["i"]


@pytest.mark.parametrize("delimiter", ["ab", "a", "1", '"', "\n", " ", "_"])
def test_what_separates_nothing_is_no_delimiter(delimiter: str):
    with pytest.raises(ValidationError, match="delimiter"):
        TableColumns(delimiter=delimiter)


# --- quotes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [3, 60_000])
def test_quotes_within_a_cell_are_characters_and_enclosed_ones_enclose(tmp_path: Path, size: int):
    ids = ['27" tv', 'a"', '"', "x\r\ny,\n", '""', "'", 'say "hi", you']
    cells = ['27" tv', 'a"', '""""', '"x\r\ny,\n"', '""""""', "'", '"say ""hi"", you"']
    block = "".join(f"u,{cell},s,1,{at}\n" for at, cell in enumerate(cells))
    raw = read(tmp_path, ("user_id,item_id,scenario,label,ts\n" + block * size).encode())
    assert raw.interactions["item_id"].to_pylist() == ids * size


@pytest.mark.parametrize("rows", [1, 800_000])
@pytest.mark.parametrize("last", ["\n", ""])
def test_an_open_quote_swallows_nothing(tmp_path: Path, rows: int, last: str):
    data = TEXT + 'u3,"i3,home,1,3\n' + "u4,i4,home,1,4\n" * rows + f"u5,i5,home,1,5{last}"
    message = "no end within" if rows > 1 else "a quote is left open to the end of the file"
    assert refusal(tmp_path, data.encode()).startswith(f"row 3: {message}")


@pytest.mark.parametrize("row", ["u3,i3,home,1", "u3,i3,home,1,3,4", "u3"])
def test_a_row_of_another_width_is_named(tmp_path: Path, row: str):
    cells = row.count(",") + 1
    assert refusal(tmp_path, f"{TEXT}\n{row}\n".encode()) == f"row 3: {cells} cells; expected 5"


# --- MovieLens ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8", "utf-8-sig"])
@pytest.mark.parametrize("form", ["folder", "zip"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_movielens_may_be_latin_1_or_utf8(tmp_path: Path, encoding: str, form: str, end: str):
    data = {name: text.replace("\n", end).encode(encoding) for name, text in DAT.items()}
    for name, content in data.items():
        (tmp_path / name).write_bytes(content)
    if form == "zip":
        with zipfile.ZipFile(tmp_path / "ml.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name in data:
                archive.write(tmp_path / name, f"ml-1m/{name}")
    raw = read_raw(SourceConfig(kind="movielens", path=str(tmp_path / "ml.zip" if form == "zip" else tmp_path)))
    titles = ["The Sting", "Amélie", "Star Wars: Episode IV - A New Hope", "No year", "Les Misérables"]
    assert raw.items["title"].to_pylist() == titles
    assert raw.interactions["user_id"].to_pylist() == ["1", "1", "2", "2", "3"]
    assert raw.users["user_id"].to_pylist() == ["1", "2", "3"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_movielens_in_another_encoding_is_refused(tmp_path: Path, encoding: str):
    for name, text in DAT.items():
        (tmp_path / name).write_bytes(text.encode(encoding if name == "movies.dat" else "latin-1"))
    with pytest.raises(DataError, match=r"movies\.dat: the encoding is neither UTF-8 nor Latin-1"):
        read_raw(SourceConfig(kind="movielens", path=str(tmp_path)))


# --- fingerprints -------------------------------------------------------------------------------------------------


def changed_in_place(file: Path, old: bytes, new: bytes) -> None:
    """Other content of the same size and time."""
    before = file.stat()
    file.write_bytes(file.read_bytes().replace(old, new))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [("interactions.csv", b"phone", b"panel"), ("items.csv", b"odd", b"ode"), ("users.csv", b"fr", b"es")],
)
def test_other_content_of_the_same_size_and_time_is_prepared_anew(tmp_path: Path, name: str, old: bytes, new: bytes):
    config = config_of(write_data(tmp_path, interactions(20, 12, 10)))
    first = prepare(config)
    assert prepare(config).reused
    changed_in_place(tmp_path / name, old, new)
    assert prepare(config).folder != first.folder


def test_a_copy_with_another_time_is_the_same_data(tmp_path: Path):
    config = source(tmp_path)
    (tmp_path / "rows.csv").write_text(TEXT)
    first = sources.fingerprint(config)
    os.utime(tmp_path / "rows.csv", (1, 1))
    assert sources.fingerprint(config) == first
    changed_in_place(tmp_path / "rows.csv", b"home", b"shop")
    assert sources.fingerprint(config) != first


def test_movielens_of_the_same_size_and_time_is_other_data(tmp_path: Path):
    for name, text in DAT.items():
        (tmp_path / name).write_bytes(text.encode("latin-1"))
    config = SourceConfig(kind="movielens", path=str(tmp_path))
    first = sources.fingerprint(config)
    changed_in_place(tmp_path / "users.dat", b"48067", b"48068")
    assert sources.fingerprint(config) != first


def test_a_store_without_etags_is_read(tmp_path: Path):
    place = UPath("memory://fingerprints")
    (place / "rows.csv").write_bytes(TEXT.encode())
    first = sources.fingerprint(source(place))
    (place / "rows.csv").write_bytes(TEXT.replace("home", "shop").encode())
    assert sources.fingerprint(source(place)) != first
    assert read_raw(source(place)).interactions["scenario_id"].to_pylist() == ["shop", "shop"]
