"""Amazon reviews as J. McAuley publishes them (2014 and 2018), one scenario for each category.

Below `source.path` a category has a file of reviews, `reviews_Books.json.gz` (2014) or `Books.json.gz` (2018), also
as `_5` for the 5-core and also unpacked, and a file of items, `meta_Books.json.gz`, whose lines of 2014 are Python
literals. A user's latest review of an item in a category counts. Items are those that such a review names.

Memory holds no file, but the distinct ids, 24 bytes a review, and 40 more a review of the largest category. Pages of
the temporary files count as used while they are read; the system drops them when it needs room.
"""

import functools
import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from upath import UPath

from llm4msr import schema, storage
from llm4msr.arrays import Bools
from llm4msr.config import AmazonOptions, SourceConfig
from llm4msr.data.reading import stream
from llm4msr.data.reading.raw_data import RawData, file_fingerprint
from llm4msr.data.sources import amazon_core, amazon_lines
from llm4msr.errors import DataError, StorageError

_REVIEWS_FILE = re.compile(r"(?!meta_|\.)(?:reviews_)?(?P<category>.+?)(?:_5)?\.json(?:\.gz)?")
_META_FILE = re.compile(r"meta_(?P<category>.+?)\.json(?:\.gz)?")

_REVIEWS = pa.schema(
    [("user_id", pa.string()), ("item_id", pa.string()), ("rating", pa.float64()), ("order", pa.int64())]
)
_ITEMS = pa.schema([*schema.RAW_ITEMS, ("f:category", pa.list_(pa.string())), ("f:brand", pa.string())])


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
    """Read reviews and items; the tables are mapped from temporary files.

    Raises:
        DataError: a bad line (file and number are named), a file without reviews, nothing left by the options.
        StorageError: a file is missing or cannot be read.
    """
    categories = _categories(config)
    shelves = [_shelf(category.reviews) for category in categories]
    kept, item_ids = _kept(shelves, config.amazon)
    if not kept.any():
        options = "lower source.amazon.k_core or liked_above"
        raise DataError(f"{config.path}: none of {len(kept)} reviews is left; {options}")
    rows = _interactions(categories, shelves, kept, config.amazon.liked_above)
    interactions = stream.spooled(schema.RAW_INTERACTIONS, rows)
    users = pa.table({"user_id": pa.array([], pa.string())})
    items = stream.spooled(_ITEMS, stream.batched(_ITEMS, _items(categories, set(item_ids.to_pylist()))))
    raw = RawData(interactions, users, items, config.amazon.implicit)
    return raw.checked(config.path)


def _categories(config: SourceConfig) -> list[Category]:
    """The configured categories, or all whose reviews are there."""
    folder = storage.path(config.path)
    there = stream.names_in(folder)
    names = [name.replace(" ", "_") for name in config.amazon.categories]
    names = names or sorted(m["category"] for m in map(_REVIEWS_FILE.fullmatch, there) if m)
    if not names:
        raise StorageError(f"{folder}: no reviews_*.json.gz and no other .json or .json.gz; {stream.shown(there)}")
    return [
        Category(
            name.replace("_", " "),
            _file(folder, there, _REVIEWS_FILE, name, f"reviews_{name}.json.gz or {name}.json.gz (or with _5)"),
            _file(folder, there, _META_FILE, name, f"meta_{name}.json.gz (source.amazon.meta = false goes without)")
            if config.amazon.meta
            else None,
        )
        for name in dict.fromkeys(names)
    ]


def _file(folder: UPath, there: list[str], kind: re.Pattern[str], category: str, expected: str) -> UPath:
    found = [match[0] for match in map(kind.fullmatch, there) if match and match["category"] == category]
    if not found:
        raise StorageError(f"{folder}: no {expected}; {stream.shown(there)}")
    if len(found) > 1:
        raise DataError(f"{folder}: {' and '.join(found)} are files of one category; keep one of them")
    return folder / found[0]


def _shelf(file: UPath) -> pa.Table:
    """All reviews of a category."""
    expected = "a JSON object with reviewerID, asin, overall and unixReviewTime"
    reviews = stream.spooled(_REVIEWS, stream.batched(_REVIEWS, _parsed(file, amazon_lines.review, expected)))
    if not reviews.num_rows:
        raise DataError(f"{file}: no reviews; the file is empty")
    return reviews


def _kept(shelves: list[pa.Table], options: AmazonOptions) -> tuple[Bools, pa.Array]:
    """Which reviews stay, and the distinct items that they name."""
    reviews = pa.concat_tables(shelves)
    user, _ = amazon_core.codes(reviews["user_id"])
    item, item_ids = amazon_core.codes(reviews["item_id"])
    ends = itertools.accumulate(map(len, shelves))
    parts = [(slice(end - len(shelf), end), shelf) for end, shelf in zip(ends, shelves, strict=True)]
    kept = np.concatenate([amazon_core.latest(user[at], item[at], shelf["order"].to_numpy()) for at, shelf in parts])
    if options.implicit:
        kept &= reviews["rating"].to_numpy() > options.liked_above
    kept = amazon_core.k_core(user, item, kept, options.k_core)
    named = np.bincount(item[kept], minlength=len(item_ids)) > 0
    return kept, item_ids.filter(pa.array(named))


def _interactions(
    categories: list[Category], shelves: list[pa.Table], kept: Bools, liked_above: float
) -> Iterator[pa.RecordBatch]:
    start = 0
    for category, shelf in zip(categories, shelves, strict=True):
        for reviews in shelf.to_batches():
            chosen = reviews.filter(pa.array(kept[start : start + len(reviews)]))
            start += len(reviews)
            scenario = pa.repeat(category.name, len(chosen))
            label = pc.greater(chosen["rating"], liked_above).cast(pa.int8()).cast(pa.float32())
            columns = [chosen["user_id"], chosen["item_id"], scenario, label, chosen["order"]]
            yield pa.record_batch(columns, schema=schema.RAW_INTERACTIONS)


def _items(categories: list[Category], wanted: set[str]) -> Iterator[tuple[Any, ...]]:
    """What the first line that names it says of each wanted item; takes from `wanted` what it finds."""
    expected = "a JSON object or a Python dict with asin"
    parse = functools.partial(amazon_lines.item, wanted=wanted)
    for category in categories:
        if category.meta is not None:
            yield from filter(None, _parsed(category.meta, parse, expected))


def _parsed(file: UPath, parse: Callable[[bytes], Any], expected: str) -> Iterator[Any]:
    for number, line in stream.lines(file):
        try:
            row = parse(line)
        except ValueError as error:
            raise DataError(f"{file}: line {number}: {error}; expected {expected}") from None
        yield row
