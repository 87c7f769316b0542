"""Data of someone's own in ten shapes and more: each writes its files and gives back what `init` is called with."""

import csv
import gzip
import io
import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

START = datetime(2026, 3, 1, tzinfo=UTC)
PAGES = ("home", "search", "basket")


class Row(NamedTuple):
    user: int
    item: int
    page: str
    liked: int
    minute: int


def rows(count: int = 600, users: int = 30, items: int = 24, seed: int = 3) -> list[Row]:
    """In the order of time, as a log has them."""
    rng = random.Random(seed)
    return [
        Row(rng.randrange(users), rng.randrange(items), rng.choice(PAGES), int(rng.random() < 0.4), at * 7)
        for at in range(count)
    ]


def write(file: Path, header: Sequence[str], cells: Sequence[Sequence[Any]], delimiter: str = ",") -> None:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerows([header, *cells])
    data = text.getvalue().encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress(data) if file.suffix == ".gz" else data)


def titles(prefix: str = "", count: int = 24) -> list[list[Any]]:
    colours = ("Red", "Green", "Blue", "Pale yellow")
    return [[f"{prefix}{i}", f"{colours[i % 4]} cup no. {i}", f"Kitchen > {colours[i % 4]}"] for i in range(count)]


def usual(folder: Path) -> list[str]:
    write(
        folder / "interactions.csv",
        ["user_id", "item_id", "scenario", "label", "timestamp"],
        [[f"u{r.user}", f"i{r.item}", r.page, r.liked, 1_780_000_000 + r.minute * 60] for r in rows()],
    )
    write(folder / "items.csv", ["item_id", "title", "category_path"], titles("i"))
    write(folder / "users.csv", ["user_id", "country"], [[f"u{u}", "de" if u % 3 else "fr"] for u in range(30)])
    return [str(folder)]


def stars_with_semicolons(folder: Path) -> list[str]:
    """As MovieLens' newer files are: no scenario, stars, seconds."""
    write(
        folder / "ratings.csv",
        ["userId", "movieId", "rating", "timestamp"],
        [[r.user + 1, r.item + 1, 1 + (r.item + r.user) % 9 / 2, 1_780_000_000 + r.minute * 60] for r in rows()],
        ";",
    )
    films = [[i + 1, f"The film no. {i} (1999)", "Drama|Crime" if i % 2 else "Comedy|War"] for i in range(24)]
    write(folder / "movies.csv", ["movieId", "title", "genres"], films, ";")
    return [str(folder / "ratings.csv"), str(folder / "movies.csv")]


def packed_tabs(folder: Path) -> list[str]:
    write(
        folder / "click log.tsv.gz",
        ["eventTime", "visitorId", "productSku", "pageType", "clicked", "deviceType"],
        [
            [
                (START + timedelta(minutes=r.minute)).isoformat(),
                f"v-{r.user}",
                f"{r.item:05}",
                r.page,
                ("false", "True")[r.liked],
                ("phone", "tv")[r.user % 2],
            ]
            for r in rows()
        ],
        "\t",
    )
    write(
        folder / "catalogue.tsv",
        ["productSku", "Product Name"],
        [[f"{i:05}", f"Soap of {i} oils"] for i in range(24)],
        "\t",
    )
    return [str(folder / "click log.tsv.gz"), str(folder / "catalogue.tsv")]


def parquet_by_day(folder: Path) -> list[str]:
    for day in range(3):
        chosen = [r for r in rows() if r.minute // 1440 == day]
        table = pa.table(
            {
                "customer_id": pa.array([r.user + 10**12 for r in chosen]),
                "article_id": pa.array([r.item for r in chosen], pa.int32()),
                "channel": pa.array([r.page for r in chosen]).dictionary_encode(),
                "event_ts": pa.array([START + timedelta(minutes=r.minute) for r in chosen], pa.timestamp("ms", "UTC")),
                "bought": pa.array([bool(r.liked) for r in chosen]),
                "embedding": pa.array([[0.5, 0.25]] * len(chosen), pa.list_(pa.float32(), 2)),
            }
        )
        place = folder / "events" / f"day=2026-03-0{day + 1}"
        place.mkdir(parents=True)
        pq.write_table(table, place / f"part-0000{day}.parquet")
    items = pa.table(
        {
            "article_id": pa.array(range(24)),
            "prod_name": pa.array([f"Green scarf {i}" for i in range(24)]),
            "categories": pa.array([["Clothes", "Scarves" if i % 2 else "Hats"] for i in range(24)]),
        }
    )
    pq.write_table(items, folder / "articles.parquet")
    return [str(folder)]


def folder_of_parts(folder: Path) -> list[str]:
    """A folder whose files are the table, and items beside it, in the same command."""
    logged = [[f"m{r.user}", f"s{r.item}", r.page, r.liked, r.minute] for r in rows()]
    for part in range(12):
        header = ["MEMBER_ID", "SONG_ID", "SURFACE", "PLAYED", "TS"]
        write(folder / "plays" / f"part-{part:05}.csv", header, logged[part * 50 : part * 50 + 50])
    write(
        folder / "songs.csv",
        ["SONG_ID", "TRACK_NAME", "ARTIST"],
        [[f"s{i}", f"A song of {i}", f"a{i % 3}"] for i in range(24)],
    )
    return [str(folder / "plays"), str(folder / "songs.csv")]


def orders_without_labels(folder: Path) -> list[str]:
    """As the Online Retail data is: blanks in names, dates, a title in each row."""
    write(
        folder / "orders.csv",
        ["Invoice", "StockCode", "Description", "Quantity", "InvoiceDate", "Price", "Customer ID", "Country"],
        [
            [
                536_365 + at // 3,
                f"8{r.item:04}A",
                f"CUP OF {r.item}",
                1 + r.item % 5,
                f"{START + timedelta(minutes=r.minute):%Y-%m-%d %H:%M:%S}",
                "2.55",
                17_850 + r.user,
                ("United Kingdom", "France")[r.item % 2],
            ]
            for at, r in enumerate(rows())
        ],
    )
    return [str(folder / "orders.csv")]


def reviews_with_stars(folder: Path) -> list[str]:
    write(
        folder / "reviews.csv.gz",
        ["reviewerID", "asin", "overall", "unixReviewTime", "domain", "reviewText"],
        [
            [
                f"A{r.user:013}",
                f"B{r.item:09}",
                1 + (r.item + r.user) % 5,
                1_780_000_000 + r.minute * 60,
                r.page,
                f'I, "{r.user}", think',
            ]
            for r in rows()
        ],
    )
    return [str(folder / "reviews.csv.gz")]


def names_without_meaning(folder: Path) -> list[str]:
    """Columns that only their content tells, and two files joined by it."""
    write(
        folder / "t1.txt",
        ["a", "b", "c", "d", "e"],
        [[f"x{r.user}", f"y{r.item}", r.page, r.liked, 1_780_000_000_000 + r.minute * 60_000] for r in rows()],
        "|",
    )
    write(
        folder / "t2.txt",
        ["k", "b", "n"],
        [[k, f"y{i}", f"Blue cup of {i} litres"] for k, i in enumerate(range(24))],
        "|",
    )
    return [str(folder)]


def positions_within_users(folder: Path) -> list[str]:
    seen: dict[int, int] = {}
    cells = []
    for r in sorted(rows(), key=lambda r: r.user):
        seen[r.user] = seen.get(r.user, -1) + 1
        cells.append([f"u{r.user}", f"i{r.item}", r.page, seen[r.user]])
    write(folder / "sequences.csv", ["uid", "iid", "domain", "seq"], cells)
    return [str(folder / "sequences.csv")]


def two_marks_in_the_header(folder: Path) -> list[str]:
    write(
        folder / "log.csv",
        ["user_id", "item_id,code", "shelf", "label", "ts"],
        [[f"u{r.user}", f"i{r.item}", r.page, r.liked, r.minute] for r in rows()],
        ";",
    )
    return [str(folder / "log.csv")]


def no_time_and_no_files_beside(folder: Path) -> list[str]:
    write(
        folder / "pairs.csv",
        ["customerNumber", "isbn", "store", "purchased"],
        [[f"c{r.user}", f"978{r.item:010}", r.page, r.liked] for r in rows()],
    )
    return [str(folder / "pairs.csv")]


def ids_under_two_names(folder: Path) -> list[str]:
    usual(folder)
    write(folder / "items.csv", ["id", "title"], [row[:2] for row in titles("i")])
    return [str(folder)]


def items_that_stand_twice(folder: Path) -> list[str]:
    usual(folder)
    write(folder / "items.csv", ["item_id", "title", "category_path"], [*titles("i"), titles("i")[5]])
    return [str(folder)]


ACCEPTED: dict[str, Callable[[Path], list[str]]] = {
    shape.__name__: shape
    for shape in (
        usual,
        packed_tabs,
        parquet_by_day,
        folder_of_parts,
        orders_without_labels,
        reviews_with_stars,
        names_without_meaning,
        positions_within_users,
        two_marks_in_the_header,
        no_time_and_no_files_beside,
        stars_with_semicolons,
        ids_under_two_names,
        items_that_stand_twice,
    )
}
"""Shapes whose config runs as it is written."""


def users_that_stand_twice(folder: Path) -> list[str]:
    usual(folder)
    write(folder / "users.csv", ["user_id", "country"], [[f"u{u % 30}", "de" if u % 3 else "fr"] for u in range(31)])
    return [str(folder)]


def times_as_people_write_them(folder: Path) -> list[str]:
    write(
        folder / "visits.csv",
        ["user_id", "item_id", "page", "clicked", "date"],
        [
            [f"u{r.user}", f"i{r.item}", r.page, r.liked, f"{START + timedelta(minutes=r.minute):%d.%m.%Y %H:%M}"]
            for r in rows()
        ],
    )
    return [str(folder)]


def users_that_are_missing(folder: Path) -> list[str]:
    write(
        folder / "visits.csv",
        ["user_id", "item_id", "page", "clicked", "ts"],
        [[f"u{r.user}" if r.user else "", f"i{r.item}", r.page, r.liked, r.minute] for r in rows()],
    )
    return [str(folder)]


def pages_with_gaps(folder: Path) -> list[str]:
    write(
        folder / "visits.csv",
        ["user_id", "item_id", "page", "clicked", "ts"],
        [[f"u{r.user}", f"i{r.item}", r.page if r.item else "", r.liked, r.minute] for r in rows()],
    )
    return [str(folder)]


TO_DECIDE: dict[str, tuple[Callable[[Path], list[str]], str, str]] = {
    "twice": (users_that_stand_twice, "users: in users.csv, 1 of the values of ", "stands again in row 31"),
    "times": (times_as_people_write_them, "order: ", "expected a number or a time such as"),
    "gaps": (pages_with_gaps, "scenario: ", "an id cannot be empty"),
    "no user": (users_that_are_missing, "user: ", "an id cannot be empty"),
}
"""Shapes of which one thing is left to decide or to mend: what the draft says, and what reading says until then."""
