"""What lies in the folder `work` of an unfinished output: what passes over the raw rows found.

A partition's file counts only once its record, a JSON file beside it, is there; a record names the digests of files.
"""

import io
import json
import zipfile
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from upath import UPath

from llm4msr import storage
from llm4msr.arrays import Ints, strings
from llm4msr.data import partitions
from llm4msr.data.interactions import Ids, Keys
from llm4msr.data.negatives import Pools
from llm4msr.data.scan import Pairs
from llm4msr.data.scenarios import ScenarioSums
from llm4msr.data.vocabularies import Vocabularies
from llm4msr.errors import StorageError

WORK = "work"
PAIRS, SUMS = "pairs", "sums"
POOLS, WORDS, ITEMS = "pools.npz", "words.json", "items.parquet"


def place(folder: UPath, name: str, number: int, kind: str = "parquet") -> UPath:
    """A numbered file."""
    return folder / WORK / name / f"{number:05d}.{kind}"


def write_json(file: UPath, value: object) -> None:
    """Write a value in one piece."""
    storage.write_bytes(file, json.dumps(value, ensure_ascii=False).encode())


def read_json(file: UPath) -> Any:
    """The value, or None where there is no such file."""
    return json.loads(storage.read_bytes(file)) if file.exists() else None


def pairs_table(pairs: Pairs) -> pa.Table:
    """Pairs as a table."""
    texts = [ids.distinct.take(ids.number_R) for ids in (pairs.item, pairs.scenario)]
    return pa.Table.from_arrays([*texts, *map(pa.array, pairs[2:])], [*Pairs._fields])


def write_pairs(file: UPath, pairs: Pairs, parts: int) -> None:
    """Pairs in one row group for each of so many parts, into which a hash puts the items."""
    table = pairs_table(pairs)
    part_I = partitions.numbers_of(partitions.hash_ids(strings(pairs.item.distinct)), parts)
    part_K = part_I[pairs.item.number_R]
    storage.write_groups(file, [table.filter(pa.array(part_K == part)) for part in range(parts)])


def read_pairs(file: UPath, group: int | None = None) -> Pairs:
    """All pairs of a file, or those of one part."""
    with storage.open_parquet(file) as parquet:
        table = parquet.read() if group is None else parquet.read_row_group(group)
    counts = [table[name].to_numpy() for name in Pairs._fields[2:]]
    return Pairs(Ids.from_column(table["item"]), Ids.from_column(table["scenario"]), *counts)


def write_words(folder: UPath, known: Vocabularies) -> None:
    """What every partition needs to number its rows; the items have a file of their own."""
    write_json(folder / WORK / WORDS, [known.scenarios, known.user, known.item, known.context])
    if known.pools:
        _write_arrays(folder / WORK / POOLS, known.pools)


@lru_cache(1)
def read_words(folder_uri: str) -> Vocabularies:
    """The same, read once by each process."""
    folder = storage.path(folder_uri)
    scenarios, user, item, context = read_json(folder / WORK / WORDS)
    file = folder / WORK / POOLS
    pools = Pools(*_read_arrays(file)) if file.exists() else None
    return Vocabularies(storage.read_table(folder / ITEMS), scenarios, user, item, context, pools)


def write_sums(file: UPath, sums: ScenarioSums) -> None:
    """A partition's sums, which may be as many as pairs of scenarios."""
    rows_S, label_S, users_S, shared, categories = sums
    _write_arrays(file, [rows_S, label_S, users_S, *shared, *categories])


def read_sums(file: UPath) -> ScenarioSums:
    """The same."""
    rows_S, label_S, users_S, *keys = _read_arrays(file)
    return ScenarioSums(rows_S, label_S, users_S, Keys(*keys[:2]), Keys(*keys[2:]))


def _write_arrays(file: UPath, arrays: Iterable[Ints]) -> None:
    data = io.BytesIO()
    np.savez(data, *arrays)
    storage.write_bytes(file, data.getvalue())


def _read_arrays(file: UPath) -> list[Ints]:
    try:
        with np.load(io.BytesIO(storage.read_bytes(file)), allow_pickle=False) as arrays:
            return list(arrays.values())
    except (ValueError, EOFError, zipfile.BadZipFile):
        raise StorageError(f"{file}: damaged; delete it and run `llm4msr prepare` again") from None


def remove(folder: UPath) -> None:
    """Delete what only an unfinished output needs."""
    if (folder / WORK).exists():
        (folder / WORK).fs.rm((folder / WORK).path, recursive=True)
