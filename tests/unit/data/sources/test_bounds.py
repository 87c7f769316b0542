"""Bounds on what a file of a source can cost: what it unpacks to, lines and cells, nesting, expressions."""

import gzip
import json
import signal
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm4msr.config import SourceConfig
from llm4msr.data.reading import stream
from llm4msr.data.sources import amazon_lines
from llm4msr.errors import DataError
from llm4msr.text import MAX_ID, MAX_TEXT
from tests.support.data import write_csv
from tests.support.raw import read_raw
from tests.unit.data.sources.test_sources import DAT

HEADER = ["user_id", "item_id", "scenario", "label", "ts"]
MILLION = 1_000_000


def table(folder: Path, name: str = "rows.csv", **columns: Any) -> SourceConfig:
    keys = {"interactions": name, "label": "label", "order": "ts"} | columns
    return SourceConfig.model_validate({"kind": "table", "path": str(folder), "table": keys})


def refusal(config: SourceConfig) -> str:
    with pytest.raises(DataError) as caught:
        read_raw(config)
    assert len(str(caught.value)) < 600 + len(config.path)
    return str(caught.value)


@pytest.fixture
def less_to_unpack(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(stream, "MIN_UNPACKED", 1 << 20)
    return 1 << 20


# --- what a packed file unpacks to --------------------------------------------------------------------------------


def packed(start: bytes, zeros: int) -> bytes:
    """A gzip file of many members that unpacks to the start and so many times 1 MiB of one letter."""
    return gzip.compress(start) + gzip.compress(b"a" * (1 << 20)) * zeros


def test_a_gz_that_unpacks_to_too_much_is_refused(tmp_path: Path, less_to_unpack: int):
    data = packed(",".join(HEADER).encode() + b"\n", 9)
    (tmp_path / "rows.csv.gz").write_bytes(data)
    limit = max(200 * len(data), less_to_unpack)
    assert limit < 9 << 20
    expected = f"{tmp_path / 'rows.csv.gz'}: unpacks to more than {limit} bytes, which no table does"
    told = refusal(table(tmp_path, "rows.csv.gz"))
    assert told.startswith(expected)
    assert told.endswith("unpack it yourself and give the plain file")


@pytest.mark.parametrize("kind", ["amazon", "kuaisar"])
def test_so_is_one_of_the_other_sources(tmp_path: Path, less_to_unpack: int, kind: str):
    names = ("rec_inter.csv.gz", "src_inter.csv.gz", "user_features.csv.gz", "item_features.csv.gz", "Books.json.gz")
    for name in names:
        (tmp_path / name).write_bytes(packed(b"user_id,item_id,timestamp,click\n", 9))
    config = SourceConfig.model_validate({"kind": kind, "path": str(tmp_path), "amazon": {"meta": False}})
    assert "gz: unpacks to more than " in refusal(config)


def test_a_table_may_unpack_to_many_times_its_size(tmp_path: Path, less_to_unpack: int):
    rows = [",".join(HEADER), *[f"user,item,home,1,{17 * at}" for at in range(100_000)]]
    text = "\n".join(rows).encode()
    data = gzip.compress(text)
    assert len(text) > max(5 * len(data), less_to_unpack)
    (tmp_path / "rows.csv.gz").write_bytes(data)
    assert read_raw(table(tmp_path, "rows.csv.gz")).interactions.num_rows == 100_000


def zipped(folder: Path, **changed: bytes) -> SourceConfig:
    with zipfile.ZipFile(folder / "ml.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in DAT.items():
            archive.writestr(f"ml-1m/{name}", changed.get(name.removesuffix(".dat"), text.encode("latin-1")))
    return SourceConfig(kind="movielens", path=str(folder / "ml.zip"))


def test_a_zip_that_unpacks_to_too_much_is_refused(tmp_path: Path, less_to_unpack: int):
    config = zipped(tmp_path, users=b"1::F::1::10::" + b"0" * (9 << 20))
    assert refusal(config).startswith(f"{config.path}: users.dat: unpacks to more than ")


@pytest.mark.parametrize("size", [0, 7, 1 << 31])
def test_a_member_that_lies_about_its_size_is_refused(tmp_path: Path, size: int):
    config = zipped(tmp_path)
    file = Path(config.path)
    data = bytearray(file.read_bytes())
    for signature, at in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        place = data.find(signature) + at
        assert struct.unpack_from("<I", data, place)[0] == len(DAT["ratings.dat"])
        struct.pack_into("<I", data, place, size)
    file.write_bytes(data)
    if size < 1 << 31:
        assert refusal(config).startswith(f"{file}: ")
    else:  # all that is there is read, and nothing is set aside for what is not
        assert read_raw(config).interactions.num_rows == 5


@pytest.mark.parametrize("at", [40, 200, -30])
def test_a_damaged_zip_is_named(tmp_path: Path, at: int):
    config = zipped(tmp_path)
    data = bytearray(Path(config.path).read_bytes())
    data[at] ^= 0xFF
    Path(config.path).write_bytes(data)
    assert refusal(config).startswith(config.path)


# --- lines, cells and nesting ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["title", "path", "brand"])
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_cell_has_a_limit(tmp_path: Path, kind: str, column: str):
    write_csv(tmp_path / "rows.csv", HEADER, [["u", "i", "s", 1, 1]])
    for letters in (MAX_TEXT, MAX_TEXT + 1, MILLION):
        cells = {"item_id": ["i", "j"], "title": ["a", "b"], "path": ["a", "b"], "brand": ["a", "b"]}
        cells[column][1] = "x" * letters
        if kind == "csv":
            write_csv(tmp_path / "items.csv", list(cells), zip(*cells.values(), strict=True))
        else:
            pq.write_table(pa.table(cells), tmp_path / "items.parquet")
        config = table(tmp_path, items=f"items.{kind}", title="title", category="path", item_features=["brand"])
        if letters == MAX_TEXT:
            assert read_raw(config).items.num_rows == 2
        else:
            expected = f"items.{kind}: column '{column}': 'xxx"
            assert expected in (told := refusal(config))
            assert told.endswith(f"in row 2; a cell of this column has at most {MAX_TEXT} characters")


def review(**changed: Any) -> bytes:
    return json.dumps({"reviewerID": "A", "asin": "B", "overall": 5, "unixReviewTime": 1} | changed).encode()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"[" * MILLION, "nested too deeply"),
        (b'{"a":' * MILLION, "nested too deeply"),
        (b'{"reviewerID": ' + b"[" * 9000 + b"]" * 9000 + b"}", "nested too deeply"),
        (b'{"overall": ' + b"9" * MILLION + b"}", "a number of too many digits"),
        (review(overall=float("inf")), "'overall' is inf, not a number"),
        (review(overall=float("nan")), "'overall' is nan, not a number"),
        (review(unixReviewTime=1.5), "'unixReviewTime' is 1.5, not a whole number"),
        (review(asin="B" * (MAX_ID + 1)), "; an id has at most 8192 characters"),
        (review(reviewerID="A" * MILLION), "; an id has at most 8192 characters"),
    ],
)
def test_a_line_of_reviews_costs_little_and_is_named(tmp_path: Path, line: bytes, message: str):
    (tmp_path / "Books.json").write_bytes(review() + b"\n" + line + b"\n")
    config = SourceConfig.model_validate({"kind": "amazon", "path": str(tmp_path), "amazon": {"meta": False}})
    told = refusal(config)
    assert told.startswith(f"{tmp_path / 'Books.json'}: line 2: ")
    assert message in told


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{'asin': 'B', 'x': " + b"[" * MILLION, "neither JSON nor a Python literal"),
        (b"{'asin': 'B', 'x': " + b"(" * 250 + b"1" + b",)" * 250 + b"}", "neither JSON nor a Python literal"),
        (b"{'asin': 'B', 'x': " + b"-" * MILLION + b"1}", "neither JSON nor a Python literal"),
        (b"{'asin': 'B', 'x': '" + b"a" * (amazon_lines.MAX_LITERAL + 1) + b"'}", "too long for a Python literal"),
        (b'{"asin": "B", "title": "' + b"a" * MILLION + b'"}', "a title, category or brand has at most"),
    ],
)
def test_a_line_of_items_costs_little_and_is_named(tmp_path: Path, line: bytes, message: str):
    (tmp_path / "Books.json").write_bytes(review())
    (tmp_path / "meta_Books.json").write_bytes(b'{"asin": "X"}\n' + line)
    told = refusal(SourceConfig(kind="amazon", path=str(tmp_path)))
    assert told.startswith(f"{tmp_path / 'meta_Books.json'}: line 2: ")
    assert message in told


# --- expressions ----------------------------------------------------------------------------------------------------
# A quadratic expression needs many minutes for a million characters.


@pytest.fixture
def little_work() -> Iterator[None]:
    """Ends the test after 20 s of this process's CPU time."""

    def end(number: int, frame: FrameType | None) -> None:
        raise TimeoutError("this costs more than a pass over the text")

    before = signal.signal(signal.SIGPROF, end)
    signal.setitimer(signal.ITIMER_PROF, 20)
    yield
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.signal(signal.SIGPROF, before)


HARD_CELLS = {
    "blanks": " " * MILLION,
    "blanks in a title": f"A{' ' * MILLION}(1990",
    "years": "(1990) " * (MILLION // 7),
    "open brackets": "(" * MILLION,
    "articles": ", The" * (MILLION // 5),
    "commas": "," * MILLION,
    "digits": "1" * MILLION,
    "digits and a letter": "1" * MILLION + "x",
    "exponents": "1e" * (MILLION // 2),
    "open tags": "<a" * (MILLION // 2),
    "closing tags": "</a " * (MILLION // 4),
    "entities": "&#" * (MILLION // 2),
    "entity of digits": "&#" + "9" * MILLION,
    "zones": "2024-01-01T00:00:00" + "+01:00" * (MILLION // 6),
    "zones apart": "2024-01-01T00" + " +01" * (MILLION // 4),
    "UTC": "2024-01-01T00 " + "UTC " * (MILLION // 4),
    "apostrophes": "x" + "'" * MILLION,
    "separators": " > " * (MILLION // 3),
}


@pytest.mark.parametrize("cell", HARD_CELLS.values(), ids=HARD_CELLS)
@pytest.mark.parametrize("column", ["label", "ts", "item_id"])
def test_a_cell_of_a_megabyte_is_refused_at_once(tmp_path: Path, cell: str, column: str, little_work: None):
    rows = [["u", "i", "s", "1", "2024-01-01T00:00Z"], ["u", "i", "s", "1", "2024-01-01T00:00Z"]]
    rows[1][HEADER.index(column)] = cell
    write_csv(tmp_path / "rows.csv", HEADER, rows)
    assert refusal(table(tmp_path)).startswith(f"{tmp_path / 'rows.csv'}: column '{column}': ")


@pytest.mark.parametrize("cell", HARD_CELLS.values(), ids=HARD_CELLS)
def test_an_amazon_title_of_a_megabyte_is_cleaned_at_once(
    cell: str, little_work: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(amazon_lines, "MAX_TEXT", 2 * MILLION)
    assert amazon_lines.item(json.dumps({"asin": "B", "title": cell, "category": [[cell]]}).encode(), {"B"})


@pytest.mark.parametrize("cell", HARD_CELLS.values(), ids=HARD_CELLS)
@pytest.mark.parametrize("cut", [MAX_TEXT - 10, MILLION])
def test_a_movielens_title_is_read_or_refused_at_once(tmp_path: Path, cell: str, cut: int, little_work: None):
    for name, text in DAT.items():
        (tmp_path / name).write_bytes(text.encode("latin-1"))
    (tmp_path / "movies.dat").write_text(f"10::x{cell[:cut]}x (1990)::Drama\n20::A::B\n30::A::B\n")
    config = SourceConfig(kind="movielens", path=str(tmp_path))
    if cut < MAX_TEXT:
        assert read_raw(config).items["f:year"][0].as_py() == "1990"
    else:
        assert "movies.dat: column 'title': " in refusal(config)


@pytest.mark.parametrize("cell", ['"' * MILLION, '","' * (MILLION // 3), '"\n' * (MILLION // 2), '""' * MILLION])
def test_quotes_are_read_at_once(tmp_path: Path, cell: str, little_work: None):
    (tmp_path / "rows.csv").write_text(f"{','.join(HEADER)}\nu,i,s,1,1\nu,i,{cell}\n")
    assert refusal(table(tmp_path)).startswith(f"{tmp_path / 'rows.csv'}: ")
