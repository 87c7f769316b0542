"""What lies in the folder `work` of an unfinished output: what passes over the raw rows found.

A partition's file counts only once its record, a JSON file beside it, is there; a record names the digests of files.
"""

import json
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from upath import UPath

from llm4msr import storage
from llm4msr.arrays import Ints
from llm4msr.data.interactions import Ids, Keys
from llm4msr.data.negatives import Pools
from llm4msr.data.scan import Pairs
from llm4msr.data.scenarios import ScenarioSums
from llm4msr.data.vocabularies import Vocabularies

WORK = "work"
PAIRS, SUMS = "pairs", "sums"
POOLS, WORDS, ITEMS = "pools.parquet", "words.json", "items.parquet"


def place(folder: UPath, name: str, number: int, kind: str = "parquet") -> UPath:
    """A numbered file."""
    return folder / WORK / name / f"{number:05d}.{kind}"


def write_json(file: UPath, value: object) -> None:
    """Write a value in one piece."""
    storage.write_bytes(file, json.dumps(value, ensure_ascii=False).encode())


def read_json(file: UPath) -> Any:
    """The value, or None where there is no such file."""
    return json.loads(storage.read_bytes(file)) if file.exists() else None


def write_pairs(file: UPath, parts: Iterable[Pairs]) -> None:
    """Pairs in one row group for each part."""
    storage.write_groups(file, [_pairs_table(part) for part in parts])


def _pairs_table(pairs: Pairs) -> pa.Table:
    counts = dict(zip(Pairs._fields[2:], pairs[2:], strict=True))
    texts = {
        side: ids.distinct.take(ids.number_R) for side, ids in (("item", pairs.item), ("scenario", pairs.scenario))
    }
    return pa.Table.from_pydict(texts | {name: pa.array(column) for name, column in counts.items()})


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
        pools = known.pools
        table = pa.table({"item": pa.array(pools.item_I), "upto": pa.array(pools.upto_I)})
        storage.write_table(folder / WORK / POOLS, table)
        write_json(folder / WORK / "starts.json", pools.start_S.tolist())


@lru_cache(1)
def read_words(folder_uri: str) -> Vocabularies:
    """The same, read once by each process."""
    folder = storage.path(folder_uri)
    scenarios, user, item, context = read_json(folder / WORK / WORDS)
    pools = None
    if (starts := read_json(folder / WORK / "starts.json")) is not None:
        table = storage.read_table(folder / WORK / POOLS)
        pools = Pools(np.array(starts), table["item"].to_numpy(), table["upto"].to_numpy())
    return Vocabularies(storage.read_table(folder / ITEMS), scenarios, user, item, context, pools)


class _Part(NamedTuple):
    name: str
    values: Ints


def write_sums(file: UPath, sums: ScenarioSums) -> None:
    """A partition's sums, which may be as many as pairs of scenarios."""
    parts = [_Part("rows", sums.rows_S), _Part("label", sums.label_S), _Part("users", sums.users_S)]
    for name, keys in (("shared", sums.shared), ("categories", sums.categories)):
        parts += [_Part(f"{name}-key", keys.key_K), _Part(f"{name}-count", keys.count_K)]
    table = pa.table({"name": [part.name for part in parts], "values": [part.values for part in parts]})
    storage.write_table(file, table.cast(pa.schema({"name": pa.string(), "values": pa.list_(pa.int64())})))


def read_sums(file: UPath) -> ScenarioSums:
    """The same."""
    table = storage.read_table(file)
    parts = {name: np.asarray(table["values"][at].values) for at, name in enumerate(table["name"].to_pylist())}
    shared, categories = (Keys(parts[f"{name}-key"], parts[f"{name}-count"]) for name in ("shared", "categories"))
    return ScenarioSums(parts["rows"], parts["label"], parts["users"], shared, categories)


def remove(folder: UPath) -> None:
    """Delete what only an unfinished output needs."""
    if (folder / WORK).exists():
        (folder / WORK).fs.rm((folder / WORK).path, recursive=True)
