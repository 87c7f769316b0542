"""Amazon reviews as J. McAuley publishes them (2014 and 2018), one scenario for each category.

Below `source.path` a category has a file of reviews, `reviews_Books.json.gz` (2014) or `Books.json.gz` (2018), also
as `_5` for the 5-core and also unpacked, and a file of items, `meta_Books.json.gz`, whose lines of 2014 are Python
literals. A user's latest review of an item in a category counts. Items are those that such a review names.

Memory holds no file, only the distinct ids, 24 bytes a review, and 40 more a review of the largest category. Pages of
the temporary files count as used while they are read; the system drops them when it needs room.
"""

import functools
import itertools
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from upath import UPath

from llm4msr import schema, storage
from llm4msr.arrays import Bools, Column, strings
from llm4msr.config import AmazonOptions, SourceConfig
from llm4msr.data.interactions import Ids
from llm4msr.data.reading import stream
from llm4msr.data.reading.files import file_fingerprint
from llm4msr.data.reading.raw_data import RawData
from llm4msr.data.reading.raw_tables import UNNUMBERED, hold
from llm4msr.data.sources import amazon_core, amazon_lines
from llm4msr.errors import DataError, StorageError

_REVIEWS_FILE = re.compile(r"(?!meta_|\.)(?:reviews_)?(?P<category>.+?)(?:_5)?\.json(?:\.gz)?")
_META_FILE = re.compile(r"meta_(?P<category>.+?)\.json(?:\.gz)?")

_REVIEW_TYPES: dict[str, pa.DataType] = {
    **dict.fromkeys(("user_id", "item_id"), pa.string()),
    "rating": pa.float64(),
    "order": pa.int64(),
}
_REVIEWS = pa.schema(_REVIEW_TYPES)
_ITEMS = schema.RAW_ITEMS.append(pa.field("f:category", pa.list_(pa.string()))).append(pa.field("f:brand", pa.string()))

_Row = TypeVar("_Row")


class Category(NamedTuple):
    """A category's name and its files."""

    name: str
    reviews: UPath
    meta: UPath | None


def fingerprint(config: SourceConfig) -> str:
    """Hash that changes when a file or an option changes."""
    files = [file for category in _categories(config) for file in category[1:] if file is not None]
    return storage.digest(config.amazon.model_dump_json(), *map(file_fingerprint, files))


def read(config: SourceConfig) -> RawData:
    """As `Source.read`; all is read, the tables are mapped from temporary files.

    Raises:
        DataError: a bad line (file and number are named), a file without reviews, nothing left by the options.
    """
    categories = _categories(config)
    reviews = [_read_reviews(category.reviews) for category in categories]
    kept, item_ids = _choose_reviews(reviews, config.amazon)
    if not kept.any():
        options = "lower source.amazon.k_core or liked_above"
        raise DataError(f"{config.path}: none of {len(kept)} reviews is left; {options}")
    rows = _interactions(categories, reviews, kept, config.amazon.liked_above)
    interactions = stream.spool(UNNUMBERED, rows)
    users = pa.table({"user_id": pa.array([], pa.string())})
    items = stream.spool(_ITEMS, stream.batches(_ITEMS, _items(categories, set(strings(item_ids)))))
    return hold(interactions, users, items, config.amazon.implicit, where=config.path)


def _categories(config: SourceConfig) -> list[Category]:
    """The configured categories, or all whose reviews are there."""
    folder = storage.path(config.path)
    names_there = stream.names_in(folder)
    names = [name.replace(" ", "_") for name in config.amazon.categories]
    names = names or sorted(m["category"] for m in map(_REVIEWS_FILE.fullmatch, names_there) if m)
    if not names:
        raise StorageError(
            f"{folder}: no reviews_*.json.gz and no other .json or .json.gz; {stream.describe(names_there)}"
        )
    return [
        Category(
            name.replace("_", " "),
            _find_file(
                folder, names_there, _REVIEWS_FILE, name, f"reviews_{name}.json.gz or {name}.json.gz (or with _5)"
            ),
            _find_file(
                folder, names_there, _META_FILE, name, f"meta_{name}.json.gz (source.amazon.meta = false goes without)"
            )
            if config.amazon.meta
            else None,
        )
        for name in dict.fromkeys(names)
    ]


def _find_file(folder: UPath, names_there: list[str], kind: re.Pattern[str], category: str, expected: str) -> UPath:
    names = [match[0] for match in map(kind.fullmatch, names_there) if match and match["category"] == category]
    if not names:
        raise StorageError(f"{folder}: no {expected}; {stream.describe(names_there)}")
    if len(names) > 1:
        raise DataError(f"{folder}: {' and '.join(names)} are files of one category; keep one of them")
    return folder / names[0]


def _read_reviews(file: UPath) -> pa.Table:
    """All reviews of a category."""
    expected = "a JSON object with reviewerID, asin, overall and unixReviewTime"
    reviews = stream.spool(_REVIEWS, stream.batches(_REVIEWS, _parse_lines(file, amazon_lines.review, expected)))
    if not reviews.num_rows:
        raise DataError(f"{file}: no reviews; the file is empty")
    return reviews


def _choose_reviews(of_categories: list[pa.Table], options: AmazonOptions) -> tuple[Bools, Column]:
    """Which of all categories' reviews stay, and the distinct items that they name."""
    reviews = pa.concat_tables(of_categories)
    user, _ = Ids.from_column(reviews["user_id"])
    item, item_ids = Ids.from_column(reviews["item_id"])
    ends = itertools.accumulate(map(len, of_categories))
    places = [(slice(end - len(table), end), table) for end, table in zip(ends, of_categories, strict=True)]
    kept = np.concatenate([amazon_core.latest(user[at], item[at], table["order"].to_numpy()) for at, table in places])
    if options.implicit:
        kept &= reviews["rating"].to_numpy() > options.liked_above
    kept = amazon_core.k_core(user, item, kept, options.k_core)
    named = np.bincount(item[kept], minlength=len(item_ids)) > 0
    return kept, item_ids.filter(named)


def _interactions(
    categories: list[Category], of_categories: list[pa.Table], kept: Bools, liked_above: float
) -> Iterator[pa.RecordBatch]:
    start = 0
    for category, table in zip(categories, of_categories, strict=True):
        for reviews in table.to_batches():
            chosen = reviews.filter(pa.array(kept[start : start + len(reviews)]))
            start += len(reviews)
            scenario = pa.repeat(category.name, len(chosen))
            label = pc.greater(chosen["rating"], pa.scalar(liked_above)).cast(pa.int8()).cast(pa.float32())
            columns = [chosen["user_id"], chosen["item_id"], scenario, label, chosen["order"]]
            yield pa.record_batch(columns, schema=UNNUMBERED)


def _items(categories: list[Category], wanted: set[str]) -> Iterator[tuple[object, ...]]:
    """A row for each wanted item, from the first line that names it; takes from `wanted` what it finds."""
    expected = "a JSON object or a Python dict with asin"
    parse = functools.partial(amazon_lines.item, wanted=wanted)
    for category in categories:
        if category.meta is not None:
            yield from filter(None, _parse_lines(category.meta, parse, expected))


def _parse_lines(file: UPath, parse: Callable[[bytes], _Row], expected: str) -> Iterator[_Row]:
    for number, line in stream.lines(file):
        try:
            row = parse(line)
        except ValueError as error:
            raise DataError(f"{file}: line {number}: {error}; expected {expected}") from None
        yield row
