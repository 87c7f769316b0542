import gzip
import json
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from upath import UPath

from llm4msr import storage
from llm4msr.config import Config, SourceConfig
from llm4msr.data import sources, split
from llm4msr.data.reading import stream
from llm4msr.data.reading.raw_data import whole
from llm4msr.data.sources import amazon_core, amazon_lines
from llm4msr.errors import ConfigError, DataError, InputError, StorageError
from llm4msr.pipeline import prepare
from tests.support.data import prepared_table
from tests.support.raw import WholeData, read_raw

Review = tuple[str, str, float, int]
"""User, item, rating and time."""

REVIEWS: list[Review] = [("A1", "B1", 5, 10), ("A2", "B1", 3, 11), ("A1", "B2", 4, 12)]
META: list[dict[str, Any]] = [
    {"asin": "B1", "title": "One", "brand": "Acme", "category": ["Books", "Art"], "price": "$3.20"},
    {"asin": "B2", "title": "Two", "category": ["Books"], "description": ['Wes\' "best"']},
    {"asin": "B9", "title": "Nobody's", "category": ["Books"]},
]


def review_line(review: Review, layout: int = 2014, **more: Any) -> str:
    """A review as it stands in the files."""
    user, item, rating, time = review
    named = {"reviewerID": user, "asin": item, "reviewerName": 'J. "Doe"', "reviewText": "Good, {really}\n'good'"}
    of_layout = {"helpful": [0, 1], "summary": "Nice"} if layout == 2014 else {"verified": True, "vote": "3"}
    times = {"unixReviewTime": time, "reviewTime": "09 13, 2009"}
    return json.dumps(named | of_layout | {"overall": float(rating)} | times | more)


def meta_line(item: dict[str, Any], layout: int = 2014) -> str:
    """An item as it stands in the files: a Python literal in 2014, JSON in 2018."""
    if layout == 2018:
        return json.dumps(item)
    return repr({"categories" if k == "category" else k: [v] if k == "category" else v for k, v in item.items()})


def put(file: Path, lines: Iterable[str]) -> Path:
    data = "".join(f"{line}\n" for line in lines).encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress(data) if file.suffix == ".gz" else data)
    return file


def write(
    folder: Path, name: str = "Books", reviews: Iterable[Review] = REVIEWS, meta: Iterable[dict[str, Any]] = META
) -> Path:
    """A category in the layout of 2014; the file of its reviews."""
    put(folder / f"meta_{name}.json.gz", map(meta_line, meta))
    return put(folder / f"reviews_{name}.json.gz", map(review_line, reviews))


def source(folder: Any, **options: Any) -> SourceConfig:
    return SourceConfig.model_validate({"kind": "amazon", "path": str(folder), "amazon": options})


def rows(raw: WholeData) -> list[tuple[Any, ...]]:
    return list(zip(*raw.interactions.to_pydict().values(), strict=True))


def refusal(config: SourceConfig, kind: type[InputError] = DataError) -> str:
    with pytest.raises(kind) as caught:
        read_raw(config)
    return str(caught.value)


# --- layouts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["json", "json.gz"])
@pytest.mark.parametrize("size", ["", "_5"])
@pytest.mark.parametrize("layout", [2014, 2018])
def test_layouts_give_the_same_tables(tmp_path: Path, layout: int, size: str, end: str):
    prefix = "reviews_" if layout == 2014 else ""
    put(tmp_path / f"{prefix}Home_and_Garden{size}.{end}", (review_line(r, layout) for r in REVIEWS))
    put(tmp_path / f"meta_Home_and_Garden.{end}", (meta_line(m, layout) for m in META))
    raw = read_raw(source(tmp_path))
    scenario = "Home and Garden"
    assert rows(raw) == [("A1", "B1", scenario, 1, 10), ("A2", "B1", scenario, 0, 11), ("A1", "B2", scenario, 1, 12)]
    assert raw.items.to_pylist() == [
        {"item_id": "B1", "title": "One", "f:category": ["Books", "Art"], "f:brand": "Acme"},
        {"item_id": "B2", "title": "Two", "f:category": ["Books"], "f:brand": ""},
    ]
    assert (raw.context, raw.user_features, raw.item_features) == ((), (), ("category", "brand"))
    assert raw.users.num_rows == 0
    assert not raw.implicit


def test_another_uri_is_read_as_a_local_folder(tmp_path: Path):
    write(tmp_path)
    there = UPath("memory://amazon-reviews")
    for file in tmp_path.iterdir():
        (there / file.name).write_bytes(file.read_bytes())
    here, away = (read_raw(source(place)) for place in (tmp_path, there))
    assert away.interactions.equals(here.interactions)
    assert away.items.equals(here.items)
    assert sources.fingerprint(source(there)) != sources.fingerprint(source(there, k_core=1))


def test_windows_line_ends_blank_lines_and_a_missing_last_line_end_do_no_harm(tmp_path: Path):
    file = write(tmp_path)
    text = "\r\n\r\n".join(map(review_line, REVIEWS))
    file.write_bytes(gzip.compress(text.encode()))
    assert len(rows(read_raw(source(tmp_path)))) == len(REVIEWS)


# --- categories -------------------------------------------------------------------------------------------------


def test_all_categories_are_found_and_each_is_a_scenario(tmp_path: Path):
    write(tmp_path, "Movies_and_TV", [("A1", "B1", 5, 7)]).rename(tmp_path / "Movies_and_TV_5.json.gz")
    write(tmp_path, "Books", [("A1", "B1", 1, 8), ("A3", "B5", 4, 6)])
    (tmp_path / "README.txt").write_text("not of the data")
    raw = read_raw(source(tmp_path))
    assert rows(raw) == [
        ("A1", "B1", "Books", 0, 8),
        ("A3", "B5", "Books", 1, 6),
        ("A1", "B1", "Movies and TV", 1, 7),
    ]


@pytest.mark.parametrize("named", [("Movies_and_TV", "Books"), ("Movies and TV", "Books", "Books")])
def test_named_categories_are_read_in_that_order(tmp_path: Path, named: tuple[str, ...]):
    for name in ("Books", "Toys", "Movies_and_TV"):
        write(tmp_path, name)
    scenarios = read_raw(source(tmp_path, categories=named)).interactions["scenario_id"].to_pylist()
    assert scenarios == ["Movies and TV"] * 3 + ["Books"] * 3


def test_an_item_of_several_categories_stands_once_as_the_first_says(tmp_path: Path):
    write(tmp_path, "Books", [("A1", "B1", 5, 1)], [{"asin": "B1", "title": "First"}, {"asin": "B1", "title": "Again"}])
    write(tmp_path, "Toys", [("A1", "B1", 5, 1), ("A1", "B2", 5, 1)], [{"asin": "B1", "title": "Later"}])
    raw = read_raw(source(tmp_path))
    assert raw.items.select(["item_id", "title"]).to_pylist() == [{"item_id": "B1", "title": "First"}]


@pytest.mark.parametrize("read", [read_raw, sources.fingerprint])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"categories": ["Toys"]},
            "no reviews_Toys.json.gz or Toys.json.gz (or with _5); it holds meta_Books.json.gz, reviews_Books.json.gz, "
            "reviews_Music_5.json",
        ),
        (
            {},
            "no meta_Music.json.gz (source.amazon.meta = false goes without); it holds meta_Books.json.gz, "
            "reviews_Books.json.gz, reviews_Music_5.json",
        ),
    ],
)
def test_a_missing_file_is_named_with_what_is_there(tmp_path: Path, options: Any, message: str, read: Any):
    write(tmp_path)
    put(tmp_path / "reviews_Music_5.json", map(review_line, REVIEWS))
    with pytest.raises(StorageError) as caught:
        read(source(tmp_path, **options))
    assert str(caught.value) == f"{tmp_path}: {message}"


def test_a_folder_without_reviews_says_what_it_holds(tmp_path: Path):
    expected = "no reviews_*.json.gz and no other .json or .json.gz"
    assert refusal(source(tmp_path), StorageError) == f"{tmp_path}: {expected}; it holds nothing"
    for number in range(23):
        (tmp_path / f"{number:02}.txt").touch()
    message = refusal(source(tmp_path), StorageError)
    assert message.startswith(f"{tmp_path}: {expected}; it holds 00.txt, ")
    assert message.endswith(", 19.txt and 3 more")


def test_a_path_that_is_no_folder_is_refused(tmp_path: Path):
    file = write(tmp_path)
    for place in (file, tmp_path / "absent"):
        message = refusal(source(place), StorageError)
        assert message.startswith(f"{place}: not a folder that can be read (")


def test_two_files_of_one_category_are_refused(tmp_path: Path):
    write(tmp_path)
    put(tmp_path / "Books_5.json", map(review_line, REVIEWS))
    expected = "Books_5.json and reviews_Books.json.gz are files of one category; keep one of them"
    assert refusal(source(tmp_path)) == f"{tmp_path}: {expected}"


# --- which reviews stay -----------------------------------------------------------------------------------------


def test_the_latest_review_of_an_item_counts_in_each_category(tmp_path: Path):
    write(tmp_path, "Books", [("A1", "B1", 5, 20), ("A1", "B1", 1, 30), ("A2", "B1", 5, 9), ("A1", "B1", 5, 25)])
    write(tmp_path, "Toys", [("A1", "B1", 4, 10), ("A1", "B2", 1, 10), ("A1", "B2", 5, 10)])
    assert rows(read_raw(source(tmp_path))) == [
        ("A1", "B1", "Books", 0, 30),
        ("A2", "B1", "Books", 1, 9),
        ("A1", "B1", "Toys", 1, 10),
        ("A1", "B2", "Toys", 1, 10),
    ]


def test_a_like_is_a_rating_above_the_threshold(tmp_path: Path):
    write(tmp_path, reviews=[("A1", f"B{rating}", rating, 1) for rating in (1, 2, 3, 3.5, 4, 5)])
    for above, expected in ((3.0, [0, 0, 0, 1, 1, 1]), (4.0, [0, 0, 0, 0, 0, 1])):
        raw = read_raw(source(tmp_path, liked_above=above))
        assert raw.interactions["label"].to_pylist() == expected


def test_implicit_keeps_what_the_latest_review_likes(tmp_path: Path):
    write(tmp_path, reviews=[("A1", "B1", 5, 1), ("A1", "B1", 2, 2), ("A1", "B2", 4, 3), ("A2", "B1", 5, 4)])
    raw = read_raw(source(tmp_path, implicit=True))
    assert raw.implicit
    assert rows(raw) == [("A1", "B2", "Books", 1, 3), ("A2", "B1", "Books", 1, 4)]


def test_implicit_counts_likes_alone_towards_the_core(tmp_path: Path):
    reviews = [(f"A{u}", f"B{i}", 5, u) for u in range(3) for i in range(3)]
    write(tmp_path, reviews=[*reviews, ("A9", "B0", 5, 1), ("A9", "B1", 5, 1), ("A9", "B2", 1, 1)])
    users = {
        implicit: set(read_raw(source(tmp_path, k_core=3, implicit=implicit)).interactions["user_id"].to_pylist())
        for implicit in (False, True)
    }
    assert users == {False: {"A0", "A1", "A2", "A9"}, True: {"A0", "A1", "A2"}}


def brute_core(pairs: list[tuple[Any, ...]], k: int) -> list[tuple[Any, ...]]:
    """Take one weak row after the other; pairs begin with user and item."""
    while True:
        users, items = Counter(p[0] for p in pairs), Counter(p[1] for p in pairs)
        weak = next((p for p in pairs if users[p[0]] < k or items[p[1]] < k), None)
        if weak is None:
            return pairs
        pairs = [p for p in pairs if p is not weak]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("k", [0, 1, 2, 3, 4])
def test_k_core_is_what_is_left_when_weak_rows_go_one_by_one(k: int, seed: int):
    rng = np.random.default_rng(seed)
    user, item = (rng.integers(size, size=300).astype(np.int32) for size in (80, 60))
    kept = rng.random(300) < 0.9
    found = amazon_core.k_core(user, item, kept, k)
    alive = [(u, i, at) for at, (u, i) in enumerate(zip(user, item, strict=True)) if kept[at]]
    expected = [at for _, _, at in brute_core(alive, k)]
    assert np.flatnonzero(found).tolist() == expected
    if k in (2, 3):
        assert 0 < len(expected) < len(alive)


def test_k_core_counts_over_all_categories_after_repeated_reviews_are_gone(tmp_path: Path):
    rng = random.Random(0)
    names = ("Books", "Toys", "Music")
    drawn = [(rng.choice(names), f"A{rng.randrange(50)}", f"B{rng.randrange(40)}", at) for at in range(400)]
    for name in names:
        write(tmp_path, name, [(user, item, 5, at) for where, user, item, at in drawn if where == name])
    latest = {(user, item, where): at for where, user, item, at in drawn}
    expected = brute_core([(*key, at) for key, at in latest.items()], 5)
    raw = read_raw(source(tmp_path, k_core=5))
    assert {(user, item, where, at) for user, item, where, _, at in rows(raw)} == set(expected)
    assert 0 < len(expected) < len(latest) < len(drawn)
    assert raw.interactions.num_rows == len(expected)


def test_latest_holds_for_many_rows_at_random():
    rng = np.random.default_rng(1)
    user, item = (rng.integers(20, size=2000).astype(np.int32) for _ in range(2))
    order = rng.integers(30, size=2000).astype(np.float64)
    best: dict[tuple[int, int], int] = {}
    for at, pair in enumerate(zip(user.tolist(), item.tolist(), strict=True)):
        if pair not in best or order[at] >= order[best[pair]]:
            best[pair] = at
    assert np.flatnonzero(amazon_core.latest(user, item, order)).tolist() == sorted(best.values())


def test_options_that_leave_nothing_are_refused(tmp_path: Path):
    write(tmp_path)
    expected = f"{tmp_path}: none of 3 reviews is left; lower source.amazon.k_core or liked_above"
    assert refusal(source(tmp_path, k_core=2)) == expected
    assert refusal(source(tmp_path, implicit=True, liked_above=5)) == expected


# --- items ------------------------------------------------------------------------------------------------------


def item_of(layout: int, **record: Any) -> dict[str, Any]:
    line = (json.dumps if layout == 2018 else repr)({"asin": "B1"} | record)
    found = amazon_lines.item(line.encode(), {"B1"})
    assert found is not None
    return dict(zip(("asin", "title", "category", "brand"), found, strict=True))


@pytest.mark.parametrize("layout", [2014, 2018])
@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("Tom &amp; Jerry", "Tom & Jerry"),
        ("  two\t words \n here ", "two words here"),
        ("<span class='a'>Bold</span><br/>claim", "Bold claim"),
        ("&lt;b&gt;Bold&lt;/b&gt;", "Bold"),
        ("I <3 cats, 2 > 1", "I <3 cats, 2 > 1"),
        ("Amélie’s", "Amélie’s"),
        ("half \ud83d", "half ?"),
        (None, ""),
        (7, ""),
    ],
)
def test_texts_are_cleaned(layout: int, given: Any, shown: str):
    found = item_of(layout, title=given, brand=given)
    assert (found["title"], found["brand"]) == (shown, shown)


def test_a_script_of_the_page_is_no_title():
    assert item_of(2018, title="var aPageStart = (new Date()).getTime();\nvar ue_t0=ue_t0||+new Date();")["title"] == ""


@pytest.mark.parametrize(
    ("record", "path"),
    [
        (
            {"categories": [["Toys &amp; Games", "Cards"], ["Toys &amp; Games", "Gifts"]]},
            ["Toys & Games", "Cards", "Gifts"],
        ),
        ({"category": ["Toys", "Cards", "Toys", " "]}, ["Toys", "Cards"]),
        ({"category": ["Shoes", "Men", "</span></span></span>", "Rubber sole"]}, ["Shoes", "Men"]),
        ({"category": []}, []),
        ({"category": None}, []),
        ({"categories": "Toys"}, []),
        ({"category": ["Toys", None, 3]}, ["Toys"]),
        ({}, []),
    ],
)
def test_category_paths(record: dict[str, Any], path: list[str]):
    assert item_of(2018, **record)["category"] == path
    assert item_of(2014, **record)["category"] == path


def test_items_that_no_remaining_review_names_are_left_out(tmp_path: Path):
    reviews = [("A1", "B1", 5, 1), ("A2", "B1", 5, 1), ("A1", "B2", 5, 1), ("A2", "B2", 5, 1), ("A1", "B9", 5, 1)]
    write(tmp_path, reviews=reviews)
    assert read_raw(source(tmp_path)).items["item_id"].to_pylist() == ["B1", "B2", "B9"]
    assert read_raw(source(tmp_path, k_core=2)).items["item_id"].to_pylist() == ["B1", "B2"]


def test_without_meta_there_are_no_items(tmp_path: Path):
    put(tmp_path / "Books.json", map(review_line, REVIEWS))
    raw = read_raw(source(tmp_path, meta=False))
    assert raw.items.num_rows == 0
    assert len(rows(raw)) == 3


# --- bad lines and files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'asin': 'B1'}", "not JSON (Expecting property name enclosed in double quotes, character 2)"),
        ('{"asin": "B1', "not JSON (Unterminated string starting at, character 10)"),
        ('["A1", "B1"]', "a list, not an object"),
        ("[" * 100_000, "nested too deeply"),
        (review_line(REVIEWS[0], reviewerID=""), "'reviewerID' is '', not an id"),
        (review_line(REVIEWS[0], asin=17), "'asin' is 17, not an id"),
        (review_line(REVIEWS[0], asin="B\ud800"), r"'asin' is 'B\ud800', not an id"),
        (review_line(REVIEWS[0], asin=None), "'asin' is None, not an id"),
        (review_line(REVIEWS[0], overall="5.0"), "'overall' is '5.0', not a number"),
        (review_line(REVIEWS[0], overall=True), "'overall' is True, not a number"),
        (review_line(REVIEWS[0], overall=float("nan")), "'overall' is nan, not a number"),
        (review_line(REVIEWS[0], unixReviewTime=None), "'unixReviewTime' is None, not a number"),
        (review_line(REVIEWS[0], unixReviewTime=10**400), f"'unixReviewTime' is 1{'0' * 59}, not a number"),
        *[
            (
                json.dumps({k: v for k, v in json.loads(review_line(REVIEWS[0])).items() if k != key}),
                f"'{key}' is missing",
            )
            for key in ("reviewerID", "asin", "overall", "unixReviewTime")
        ],
    ],
)
def test_a_bad_line_of_reviews_is_named(tmp_path: Path, line: str, message: str):
    write(tmp_path)
    file = put(tmp_path / "reviews_Books.json.gz", [review_line(REVIEWS[0]), "", line, review_line(REVIEWS[1])])
    expected = "a JSON object with reviewerID, asin, overall and unixReviewTime"
    assert refusal(source(tmp_path)) == f"{file}: line 3: {message}; expected {expected}"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("asin: B1", "neither JSON nor a Python literal"),
        ("{'asin': 'B1', 'title': 'cut", "neither JSON nor a Python literal"),
        ("{'asin': 'B1', 'title': str(1)}", "neither JSON nor a Python literal"),
        ("{['asin']: 'B1'}", "neither JSON nor a Python literal"),
        ("1" + "+1" * 5000, "neither JSON nor a Python literal"),
        ("-" * 100_000, "neither JSON nor a Python literal"),
        ("('asin', 'B1')", "a tuple, not an object"),
        ('{"title": "One"}', "'asin' is missing"),
        ("{'asin': 3}", "'asin' is 3, not an id"),
    ],
)
def test_a_bad_line_of_items_is_named(tmp_path: Path, line: str, message: str):
    write(tmp_path)
    file = put(tmp_path / "meta_Books.json.gz", [meta_line(META[1]), line])
    expected = f"{file}: line 2: {message}; expected a JSON object or a Python dict with asin"
    assert refusal(source(tmp_path)) == expected


def test_no_line_is_run_as_a_program(tmp_path: Path):
    write(tmp_path)
    proof = tmp_path / "proof"
    put(tmp_path / "meta_Books.json.gz", [f"{{'asin': 'B1', 'title': open({str(proof)!r}, 'w').name}}"])
    assert "neither JSON nor a Python literal" in refusal(source(tmp_path))
    assert not proof.exists()


def test_bytes_that_are_no_text_are_named(tmp_path: Path):
    write(tmp_path)
    file = tmp_path / "reviews_Books.json.gz"
    file.write_bytes(gzip.compress(review_line(REVIEWS[0]).encode() + b'\n{"asin": "\xff"}\n'))
    assert refusal(source(tmp_path)).startswith(f"{file}: line 2: not UTF-8; expected ")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no reviews; the file is empty"),
        (gzip.compress(b"\n \n"), "no reviews; the file is empty"),
        (b"no gzip at all", "cannot be read to its end (zlib inflate failed: incorrect header check); fetch it again"),
        (
            gzip.compress(review_line(REVIEWS[0]).encode() * 50)[:-9],
            "cannot be read to its end (Truncated compressed stream); fetch it again",
        ),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, data: bytes, message: str):
    write(tmp_path)
    file = tmp_path / "reviews_Books.json.gz"
    file.write_bytes(data)
    assert refusal(source(tmp_path)) == f"{file}: {message}"


def test_lines_keep_their_numbers_across_blocks(tmp_path: Path):
    lines = [f"{number} " + "x" * (number * 7919 % 3000) for number in range(1, 8000)]
    file = storage.path(put(tmp_path / "lines.json.gz", lines))
    assert [(number, line.decode()) for number, line in stream.lines(file)] == list(enumerate(lines, start=1))


def test_a_line_may_be_long_but_not_endless(tmp_path: Path):
    write(tmp_path)
    long = review_line(REVIEWS[1], reviewText="x" * (stream.MAX_LINE - 1000))
    file = put(tmp_path / "reviews_Books.json.gz", [review_line(REVIEWS[0]), long])
    assert len(rows(read_raw(source(tmp_path)))) == 2
    put(file, [review_line(REVIEWS[0]), "x" * (stream.MAX_LINE + (5 << 20))])
    expected = f"{file}: line 2: no end within {stream.MAX_LINE} bytes; is this the right file?"
    assert refusal(source(tmp_path)) == expected


# --- the tables -------------------------------------------------------------------------------------------------


def test_temporary_files_are_gone_and_the_tables_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    write(tmp_path / "data", reviews=[(f"A{at}", "B1", 5, at) for at in range(1000)])
    before = pa.total_allocated_bytes()
    raw = sources.read(source(tmp_path / "data"))
    assert pa.total_allocated_bytes() - before < 1000
    assert f"{tmp_path}/tmp/llm4msr-" in Path("/proc/self/maps").read_text()
    assert not list((tmp_path / "tmp").iterdir())
    assert whole(raw.interactions)["user_id"].to_pylist() == [f"A{at}" for at in range(1000)]
    put(tmp_path / "data" / "reviews_Books.json.gz", ["bad"])
    refusal(source(tmp_path / "data"))
    assert not list((tmp_path / "tmp").iterdir())


def test_no_room_for_temporary_files_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    message = refusal(source(tmp_path), StorageError)
    assert message.startswith("temporary file: cannot be written (")
    assert message.endswith("set TMPDIR to a folder with room")


def test_fingerprint_follows_files_and_options(tmp_path: Path):
    write(tmp_path)
    first = sources.fingerprint(source(tmp_path))
    assert first == sources.fingerprint(source(tmp_path))
    prints = [first] + [
        sources.fingerprint(source(tmp_path, **options))
        for options in (
            {"k_core": 5},
            {"liked_above": 4},
            {"implicit": True},
            {"meta": False},
            {"categories": ["Books"]},
        )
    ]
    for kind in ("meta", "reviews"):
        put(tmp_path / f"{kind}_Books.json.gz", ["other"])
        prints.append(sources.fingerprint(source(tmp_path)))
    assert len(set(prints)) == len(prints)


# --- prepare ----------------------------------------------------------------------------------------------------


def experiment(folder: Path, split_by: dict[str, Any], **options: Any) -> Config:
    rng = random.Random(0)
    for name in ("Books", "Toys"):
        drawn = [(f"A{rng.randrange(20)}", f"B{rng.randrange(15)}", rng.randint(1, 5), at) for at in range(150)]
        write(folder, name, drawn, [{"asin": f"B{i}", "title": f"Title {i}", "category": [name]} for i in range(12)])
    document = {"name": "tiny", "storage": str(folder / "out"), "source": source(folder, **options), "split": split_by}
    return Config.model_validate(document)


def test_prepare_runs_to_its_end(tmp_path: Path):
    output = prepare(experiment(tmp_path, {"by": "user"}, k_core=3))
    read = {name: prepared_table(output, name) for name in (*split.SPLITS, "items", "scenarios")}
    assert read["scenarios"]["scenario_id"].to_pylist() == ["", "Books", "Toys"]
    assert set(read["train"]["label"].to_pylist()) == {0, 1}
    titles = dict(zip(read["items"]["item_id"].to_pylist(), read["items"]["title"].to_pylist(), strict=True))
    assert (titles["B3"], titles["B13"]) == ("Title 3", "B13")
    assert read["scenarios"]["categories"][1].as_py() == ["Books"]


def test_prepare_draws_negatives_for_likes_alone(tmp_path: Path):
    config = experiment(tmp_path, {"negatives": 2}, implicit=True)
    labels = storage.read_table(prepare(config).folder / "train/p=00000.parquet")["label"].to_numpy()
    assert 0.25 < labels.mean() < 0.5
    with pytest.raises(ConfigError, match=r"all rows of this source are likes; set split\.negatives"):
        prepare(config.model_copy(update={"split": config.split.model_copy(update={"negatives": 0})}))


# --- memory -----------------------------------------------------------------------------------------------------

MEASURE = """
import sys
from pathlib import Path
from llm4msr import storage
from llm4msr.data import sources
from llm4msr.config import SourceConfig

def status(name):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) << 10

def peak(work):
    # not getrusage, whose maximum begins with that of the process that started this one
    Path("/proc/self/clear_refs").write_text("5")
    result = work()
    return status("VmHWM:")

kind, small, large, whole = sys.argv[1:]
def read_all(folder):
    raw = sources.read(SourceConfig(kind=kind, path=folder))
    rows = [sum(map(len, side.tables())) for side in (raw.interactions, raw.users)]
    return raw, rows

for folder in (small, small, large):
    print(peak(lambda: read_all(folder)))
held = status("VmRSS:")
print(peak(lambda: storage.read_bytes(storage.path(whole))) - held)
"""


def refuse_growth(kind: str, small: Path, large: Path, whole: Path) -> None:
    """Fail unless the peak of reading a large folder is less than a quarter of its growth above that of a small one.

    That the measure can see it at all is shown by reading the largest file in one piece. Peaks are compared whole,
    not as rises: what the allocator keeps of one reading would hide a part of the next one's rise.
    """
    command = [sys.executable, "-c", MEASURE, kind, str(small), str(large), str(whole)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    _, of_small, of_large, in_one_piece = map(int, printed.split())
    growth = size_of(large) - size_of(small)
    assert in_one_piece > 0.9 * whole.stat().st_size > 0.5 * growth
    assert of_large - of_small < growth / 4


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def long_reviews(count: int) -> Iterator[str]:
    text = "great product bought it for my husband who plays the piano and loves it " * 25
    for at in range(count):
        user, item = f"A{at * 7919 % (count // 8):013}", f"B{at * 104729 % (count // 30):09}"
        head = f'{{"reviewerID": "{user}", "asin": "{item}", "overall": {at % 5 + 1}.0, "unixReviewTime": {at}'
        yield f'{head}, "reviewText": "{text}"}}'


def test_memory_does_not_grow_with_the_file(tmp_path: Path):
    for name, count in (("small", 35_000), ("large", 100_000)):
        put(tmp_path / name / "Books.json", long_reviews(count))
        put(
            tmp_path / name / "meta_Books.json",
            (meta_line({"asin": f"B{i:09}", "title": f"Title {i}"}) for i in range(count // 30)),
        )
    refuse_growth("amazon", tmp_path / "small", tmp_path / "large", tmp_path / "large" / "Books.json")
