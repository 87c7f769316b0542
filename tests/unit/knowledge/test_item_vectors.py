"""Items' vectors as models read them, from what the LLM says of them or from a control."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm4msr import storage
from llm4msr.config import Config
from llm4msr.errors import StorageError
from llm4msr.knowledge import item_vectors, pooling
from llm4msr.knowledge.index import RowGroup
from llm4msr.knowledge.item_vectors import ItemVectors
from llm4msr.storage import StageResult
from tests.support.data import config_of, shard

RNG = np.random.default_rng(5)
SAID = RNG.standard_normal((6, 4)).astype(np.float16)
FAILED = 3
"""The fourth of six items that the LLM read; two more are in no training row."""
TRAINED = np.array([False, *[True] * 6, False, False])


def said(folder: Path, good: bool = True) -> list[RowGroup]:
    errors = ["" if good and row != FAILED else "Boom" for row in range(6)]
    storage.write_table(storage.path(folder / "vectors/items-0.parquet"), shard([1, 2, 3, 4, 5, 6], SAID, errors))
    return [RowGroup(str(folder / "vectors/items-0.parquet"), "")]


def config(folder: Path, source: str) -> Config:
    return config_of(folder, extract={"reads": "items", "item_vectors": source, "pool_dim": 3})


def make(folder: Path, source: str) -> ItemVectors:
    return item_vectors.make(config(folder, source), storage.path(folder), TRAINED, {"items": said(folder)})


def test_items_have_the_strongest_directions_of_what_the_llm_says(tmp_path: Path):
    vectors_ID, known_I = make(tmp_path, "llm")
    good = [row for row in range(6) if row != FAILED]
    assert np.flatnonzero(known_I).tolist() == [row + 1 for row in good]
    np.testing.assert_array_equal(vectors_ID[known_I], pooling.whiten(SAID[good], 3).astype(np.float16))
    assert not vectors_ID[~known_I].any()


def test_shuffled_items_have_the_vectors_of_others(tmp_path: Path):
    (vectors_ID, known_I), (other_ID, same_I) = make(tmp_path, "llm"), make(tmp_path, "shuffled")
    np.testing.assert_array_equal(known_I, same_I)
    assert sorted(vectors_ID.tolist()) == sorted(other_ID.tolist())
    assert (vectors_ID != other_ID).any()
    np.testing.assert_array_equal(other_ID, make(tmp_path, "shuffled")[0])


def test_random_numbers_are_those_of_items_in_training_rows(tmp_path: Path):
    vectors_ID, known_I = make(tmp_path, "random")
    np.testing.assert_array_equal(known_I, TRAINED)
    assert vectors_ID.shape == (9, 3)
    assert vectors_ID[known_I].all()
    assert not vectors_ID[~known_I].any()


def test_that_the_llm_read_no_item_is_told(tmp_path: Path):
    with pytest.raises(StorageError, match="no item has a vector; look at the errors in its shards"):
        item_vectors.make(
            config(tmp_path, "llm"), storage.path(tmp_path), TRAINED, {"items": said(tmp_path, good=False)}
        )


def test_they_are_read_as_they_were_written(tmp_path: Path):
    ours = make(tmp_path, "llm")
    files: dict[str, Any] = {}

    def build(folder: Any) -> StageResult:
        files[item_vectors.FILE] = item_vectors.write(folder, ours)
        return StageResult(files=files, rows=9)

    output = storage.publish(storage.path(tmp_path / "version"), "extract", 1, {}, {}, build)
    found = item_vectors.read(output)
    np.testing.assert_array_equal(found.vectors_ID, ours.vectors_ID)
    np.testing.assert_array_equal(found.known_I, ours.known_I)
    assert found.vectors_ID.dtype == np.float16
