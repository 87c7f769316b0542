"""Made-up interactions of any number, skewed as real ones are, written block by block in the order of their times.

Rows are drawn independently: few users make many rows, ten on average; items follow Zipf's law on the shelf that the
user likes or on any; a like follows from the item's quality and the user's shelf, so a model that knows both finds it.
What a user or an item is follows from its number alone, so no block has to know another.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llm4msr.arrays import Floats, Hashes, Ints

ROWS_PER_USER = 10
ITEMS, SHELVES, SCENARIOS = 100_000, 50, 8
BLOCK = 1 << 20
"""Rows that are made at once, at most; a file holds one block."""
DAYS = 30
START = 1_750_000_000
"""The first row's time, in seconds since 1970."""
TABLE = """\
[source.table]
interactions = "interactions"
items = "items.parquet"
user = "user"
item = "item"
scenario = "scenario"
label = "{label}"
order = "time"
title = "title"
item_features = ["shelf"]
"""
"""What a config says of the columns; `label` is `like`, or empty where all rows are positives."""


def write_source(folder: Path, rows: int, seed: int = 1) -> Path:
    """`interactions/*.parquet` and `items.parquet` below `folder`, unless they are there.

    Interactions have the columns user, item, scenario, like (0 or 1) and time (seconds); items have item, title, shelf.
    """
    done = folder / "items.parquet"
    if not done.exists():
        (folder / "interactions").mkdir(parents=True, exist_ok=True)
        for start in range(0, rows, BLOCK):
            block = interactions(start, min(start + BLOCK, rows), rows, seed)
            pq.write_table(block, folder / "interactions" / f"{start // BLOCK:05d}.parquet", row_group_size=BLOCK // 8)
        pq.write_table(_items(), done)
    return folder


def interactions(start: int, stop: int, rows: int, seed: int) -> pa.Table:
    """Rows `start` to `stop` of so many."""
    rng, size = np.random.default_rng([seed, start]), stop - start
    user = (rng.random(size) ** 2 * max(1, rows // ROWS_PER_USER)).astype(np.int64)
    liked = (_noise(user, 1) * SHELVES).astype(np.int64)
    shelf = np.where(rng.random(size) < 0.5, liked, rng.integers(SHELVES, size=size))
    place = np.exp(rng.random(size) * np.log(ITEMS // SHELVES)).astype(np.int64) - 1
    item = place * SHELVES + shelf
    scenario = np.exp(rng.random(size) * np.log(SCENARIOS + 1)).astype(np.int64) - 1
    chance = 0.1 + 0.5 * _noise(item, 2) + 0.3 * (shelf == liked)
    columns = {
        "user": _ids("u", user),
        "item": _ids("i", item),
        "scenario": pa.array([f"scenario {n}" for n in range(SCENARIOS)]).take(pa.array(scenario)),
        "like": pa.array((rng.random(size) < chance).astype(np.int8)),
        "time": pa.array(START + np.arange(start, stop) * (DAYS * 86_400) // rows),
    }
    return pa.table(columns)


def _items() -> pa.Table:
    numbers = np.arange(ITEMS)
    shelves = pa.array([f"shelf {n % SHELVES}" for n in numbers])
    return pa.table({"item": _ids("i", numbers), "title": pa.array([f"Thing {n}" for n in numbers]), "shelf": shelves})


def user_ids(numbers: Ints) -> "pa.Array[Any]":
    """Of users by their numbers."""
    return _ids("u", numbers)


def mix(numbers: Ints | Hashes, salt: int) -> Hashes:
    """64 random-looking bits for each number (the finalizer of SplitMix64)."""
    bits = numbers.astype(np.uint64) + np.uint64(salt * 0x9E3779B97F4A7C15 % 2**64)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Hashes = bits ^ (bits >> np.uint64(31))
    return mixed


def _noise(numbers: Ints, salt: int) -> Floats:
    """In [0, 1), the same for the same number."""
    return (mix(numbers, salt) >> np.uint64(11)) / 2**53


def _ids(letter: str, numbers: Ints) -> "pa.Array[Any]":
    """Twelve characters each, a letter and eleven hexadecimal digits; no two numbers below 2^44 share one."""
    scattered = numbers.astype(np.uint64) * np.uint64(0x9E3779B97F5) & np.uint64(2**44 - 1)
    shifts = np.arange(40, -4, -4, dtype=np.uint64)
    characters = np.empty((len(numbers), 12), np.uint8)
    characters[:, 0] = ord(letter)
    characters[:, 1:] = np.frombuffer(b"0123456789abcdef", np.uint8)[
        (scattered[:, None] >> shifts & np.uint64(15)).astype(np.uint8)
    ]
    offsets = np.arange(0, 12 * len(numbers) + 1, 12, dtype=np.int32)
    return pa.StringArray.from_buffers(len(numbers), pa.py_buffer(offsets.data), pa.py_buffer(characters.data))
