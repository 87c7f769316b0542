"""Items' vectors as models read them: the strongest directions of what the LLM says, each of unit variance, or a
projection of these that knows what was taken together.

A version keeps them beside the vectors that they come from, with a row for each item of the prepared data, by number:
users are pooled from them, and a model compares a candidate with a user's past by them.

Shape suffixes: I items with the unknown one as row 0, W directions, D kept numbers.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from upath import UPath

from llm4msr import schema, storage
from llm4msr.arrays import Bools, Column, Halves, Ints, Singles
from llm4msr.config import Config
from llm4msr.errors import DataError, StorageError
from llm4msr.knowledge import pooling
from llm4msr.knowledge.index import RowGroup
from llm4msr.knowledge.rows import good_rows, read_rows
from llm4msr.knowledge.sources import ITEM_KINDS
from llm4msr.progress import warn
from llm4msr.storage import FileRecord, StageOutput
from llm4msr.storage.vectors import to_column, to_matrix

FILE = "items.parquet"
"""Of a version that reads items: rows of `schema.item_vectors`."""
ITEMS_A_DIRECTION = 8
"""Items of training rows for each direction that a projection starts from: of fewer it would learn the items by heart,
and place new ones at random."""
_ROWS = 1 << 16
_SEED = 4711
"""Of the controls: one draw for all seeds of a model, as there is one LLM for all."""


class ItemVectors(NamedTuple):
    """A vector for each item, zero where nothing is known of it."""

    vectors_ID: Halves
    known_I: Bools


def make(
    config: Config,
    folder: UPath,
    trained_I: Bools,
    groups: Mapping[str, Sequence[RowGroup]],
    pairs_P2: Ints | None = None,
) -> ItemVectors:
    """The vectors of the sources that `extract.item_vectors` names, side by side or projected together.

    Args:
        config: the run's.
        folder: of the new version.
        trained_I: bool, which items stand in training rows.
        groups: row groups of each kind of items, as in `sources.ITEM_KINDS`.
        pairs_P2: for a contrastive projection, items that were taken together.

    Raises:
        DataError: all items have the same vector, or there is nothing to train a projection with.
        StorageError: no item has a vector.
    """
    wide, known = zip(
        *(_of_source(one, config, folder, trained_I, groups) for one in config.extract.sources), strict=True
    )
    known_I = np.any(known, axis=0)
    _tell_alike(
        [name for name, one_IW in zip(config.extract.sources, wide, strict=True) if not one_IW.shape[1]], config
    )
    if pairs_P2 is None:
        vectors_ID = np.concatenate(wide, axis=1)
    else:
        from llm4msr.knowledge import contrastive  # PyTorch takes seconds to load

        strength_W = np.concatenate([np.arange(one_IW.shape[1]) for one_IW in wide])
        strongest_first = np.argsort(strength_W, kind="stable")  # of all sources
        wide_IW = np.concatenate(wide, axis=1)[:, strongest_first]
        vectors_ID = contrastive.project(wide_IW, known_I & trained_I, pairs_P2, config.extract.pool_dim)
    return ItemVectors(vectors_ID.astype(np.float16), known_I)


def _tell_alike(alike: list[str], config: Config) -> None:
    """Warn of sources that have the same vector for all items of training rows.

    Raises:
        DataError: all sources have.
    """
    advice = "all items of training rows have the same vector; look at their titles and features (`llm4msr check`)"
    if len(alike) == len(config.extract.sources):
        raise DataError(f"extract.item_vectors = {', '.join(alike)}: {advice}")
    for name in alike:
        warn(f"extract.item_vectors: {name!r} counts for nothing, since {advice}")


def _of_source(
    source: str, config: Config, folder: UPath, trained_I: Bools, groups: Mapping[str, Sequence[RowGroup]]
) -> tuple[Singles, Bools]:
    """float32 [I, W], and which items have a vector; a projection is trained on the controls' too."""
    rng, e = np.random.default_rng(_SEED), config.extract
    dim = min(e.width_before, max(e.pool_dim, int(trained_I.sum()) // ITEMS_A_DIRECTION))
    if source == "random":
        vectors_IW = rng.standard_normal((len(trained_I), dim), np.float32)
        known_I = trained_I if e.items == "trained" else np.arange(len(trained_I)) > 0
    else:
        vectors_IW, known_I = _whiten(folder, trained_I, dim, groups[ITEM_KINDS[source]])
    if source == "shuffled":
        places = np.flatnonzero(known_I)
        vectors_IW[places] = vectors_IW[rng.permutation(places)]
    return np.where(known_I[:, None], vectors_IW, 0), known_I


def _whiten(folder: UPath, trained_I: Bools, dim: int, groups: Sequence[RowGroup]) -> tuple[Singles, Bools]:
    """The strongest directions of the vectors in these row groups, and which items have one.

    Directions, mean and variances are those of items in training rows, and hold for the others too.

    Raises:
        StorageError: none has.
    """
    table = pa.concat_tables(read_rows(group, ["id", "error", "vector"]) for group in groups)
    good = good_rows(table)
    known_I, ids = np.zeros(len(trained_I), bool), table["id"].to_numpy()[good]
    if not trained_I[ids].any():
        raise StorageError(
            f"{folder / 'vectors'}: no item of the training rows has a vector; look at the errors in its shards"
        )
    known_I[ids] = True
    whitened = pooling.whiten(to_matrix(table["vector"])[good], dim, trained_I[ids])
    vectors_IW = np.zeros((len(trained_I), whitened.shape[1]), np.float32)
    vectors_IW[ids] = whitened
    return vectors_IW, known_I


def write(folder: UPath, items: ItemVectors) -> FileRecord:
    """Keep them in a version's folder."""
    vectors_ID, known_I = items
    columns: list[Column] = [pa.array(np.arange(len(known_I))), pa.array(known_I), to_column(vectors_ID)]
    layout = schema.item_vectors(vectors_ID.shape[1])
    return storage.write_table(folder / FILE, pa.Table.from_arrays(columns, schema=layout))


def read(output: StageOutput) -> ItemVectors:
    """Those of a finished version that reads items: by the numbers of the prepared items.

    Raises:
        StorageError: the file is damaged.
    """
    table = output.table(FILE)
    return ItemVectors(to_matrix(table["vector"]), table["known"].to_numpy())


def of_unit_length(vectors_ID: Halves) -> Halves:
    """The same directions, each of length 1; zeros stay as they are."""
    unit_ID = np.empty_like(vectors_ID)
    for start in range(0, len(unit_ID), _ROWS):  # not all of them as float32 at once
        piece = vectors_ID[start : start + _ROWS].astype(np.float32)
        length = np.linalg.norm(piece, axis=1, keepdims=True)
        unit_ID[start : start + _ROWS] = piece / np.where(length > 0, length, 1)
    return unit_ID
