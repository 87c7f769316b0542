"""What lists are made of: the candidates of each scenario, from the training rows or from a table of the user's own.

Shape suffixes: U candidates of all scenarios, B those of one.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm4msr import storage
from llm4msr.arrays import Column, Ints, strings
from llm4msr.config import Config
from llm4msr.data.reading import pieces
from llm4msr.data.reading.files import SourceFile, find_files, fingerprint
from llm4msr.data.reading.pieces import Piece
from llm4msr.errors import ConfigError, DataError
from llm4msr.storage import StageOutput
from llm4msr.training import popularity
from llm4msr.training.popularity import Popularity

FILE = "candidates.parquet"
SCENARIO, ITEM = "scenario", "item_id"


class Candidates(NamedTuple):
    """Items by their raw ids, and which of them count in a scenario."""

    id_U: Column
    """Sorted as UTF-8 bytes."""
    places: dict[str, Ints]
    """By scenario: places in `id_U`, ascending, [B]."""

    @classmethod
    def of(cls, table: pa.Table) -> "Candidates":
        """From a table with columns `scenario` and `item_id`, in which pairs may stand twice."""
        id_U = table[ITEM].unique()
        id_U, places = id_U.take(pc.sort_indices(id_U)), {}
        for name in strings(table[SCENARIO].unique()):
            ids = table.filter(pc.field(SCENARIO) == name)[ITEM]
            places[name] = np.unique(pc.index_in(ids, value_set=id_U).to_numpy()).astype(np.int64)
        return cls(id_U, places)

    def to_table(self) -> pa.Table:
        """For `of`."""
        parts = [_pairs(name, take(self.id_U, place_B)) for name, place_B in self.places.items()]
        return pa.concat_tables([_pairs("", self.id_U.slice(0, 0)), *parts])


def _pairs(scenario: str, ids: Column) -> pa.Table:
    return pa.Table.from_pydict({SCENARIO: pa.repeat(pa.scalar(scenario), len(ids)), ITEM: ids})


def take(ids: Column, place_N: Ints) -> Column:
    """The ids at these places, [N]."""
    return ids.take(pa.array(place_N, pa.int64()))


def find(config: Config, prepared: StageOutput, known: Sequence[str]) -> Candidates:
    """The candidates in the scenarios that `score.scenarios` names, or in all that the model has `known`.

    Raises:
        ConfigError: the model does not know a scenario that is named.
        DataError: the table lacks a column, or has no candidate for these scenarios.
        StorageError: the table cannot be read.
    """
    names = _scenarios(config, known)
    table = _read(table_files(config.score.candidates), names) if config.score.candidates else _liked(prepared)
    candidates = Candidates.of(table.filter(pc.is_in(table[SCENARIO], value_set=pa.array(names, pa.string()))))
    if not len(candidates.id_U):
        where = config.score.candidates or "the training rows"
        raise DataError(f"{where}: no candidates for the scenarios {', '.join(names[:5])}; check score.scenarios")
    return candidates


def _scenarios(config: Config, known: Sequence[str]) -> list[str]:
    wanted = config.score.scenarios
    if isinstance(wanted, str):
        return list(known)
    if unknown := [name for name in wanted if name not in known]:
        there = ", ".join(known[:20])
        raise ConfigError(f"score.scenarios: the model knows no scenario '{unknown[0]}'; it knows: {there}")
    return list(wanted)


def _liked(prepared: StageOutput) -> pa.Table:
    """The items that training rows of each scenario like."""
    scenarios = prepared.table("scenarios.parquet", ["scenario_id"])["scenario_id"]
    items = prepared.table("items.parquet", ["item_id"])["item_id"]
    scenario_R, item_R = np.divmod(Popularity.read(prepared, len(scenarios)).by_pair[0], popularity.ITEMS)
    is_known_R = (scenario_R > 0) & (item_R > 0)
    columns = {SCENARIO: take(scenarios, scenario_R[is_known_R]), ITEM: take(items, item_R[is_known_R])}
    return pa.Table.from_pydict(columns)


def table_files(uri: str) -> list[SourceFile]:
    """The files of a table of candidates.

    Raises:
        DataError: there is none.
        StorageError: the place cannot be read.
    """
    return find_files(storage.path(uri), "")


def digest(config: Config) -> str:
    """Hash of the content of `score.candidates`; empty where there is none."""
    return fingerprint(table_files(config.score.candidates)) if config.score.candidates else ""


def _read(files: Sequence[SourceFile], names: Sequence[str]) -> pa.Table:
    parts = [_pairs("", pa.array([], pa.string()))]
    for place, file in enumerate(files):
        for rows in pieces.read_piece(Piece(file, place, file.size), [SCENARIO, ITEM]):
            part = pa.Table.from_pydict({SCENARIO: rows.texts(SCENARIO), ITEM: rows.ids(ITEM)})
            everywhere = part.filter(pc.field(SCENARIO) == "")[ITEM]
            parts += [part.filter(pc.field(SCENARIO) != ""), *(_pairs(name, everywhere) for name in names)]
    return pa.concat_tables(parts)
