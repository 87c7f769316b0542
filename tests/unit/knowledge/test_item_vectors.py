"""Items' vectors as models read them, from what the LLM says of them or from a control."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from llm4msr import storage
from llm4msr.config import Config
from llm4msr.errors import DataError, StorageError
from llm4msr.knowledge import item_vectors, pooling
from llm4msr.knowledge.index import RowGroup
from llm4msr.knowledge.item_vectors import ItemVectors
from llm4msr.storage import StageResult
from tests.support.data import config_of, shard

RNG = np.random.default_rng(5)
SAID = RNG.standard_normal((6, 4)).astype(np.float16)
COUNTS = RNG.standard_normal((7, 4)).astype(np.float16)
FAILED = 3
"""The fourth of six items that the LLM read; two more are in no training row."""
TRAINED = np.array([False, *[True] * 6, False, False])


def said(folder: Path, good: bool = True) -> list[RowGroup]:
    errors = ["" if good and row != FAILED else "Boom" for row in range(6)]
    storage.write_table(storage.path(folder / "vectors/items-0.parquet"), shard([1, 2, 3, 4, 5, 6], SAID, errors))
    return [RowGroup(str(folder / "vectors/items-0.parquet"), "")]


def counted(folder: Path) -> list[RowGroup]:
    """Words count in all items but one, those that are in no training row too."""
    rows = shard([1, 2, 3, 5, 6, 7, 8], COUNTS)
    storage.write_table(storage.path(folder / "vectors/items_by_words-0.parquet"), rows)
    return [RowGroup(str(folder / "vectors/items_by_words-0.parquet"), "")]


def config(folder: Path, source: Any) -> Config:
    return config_of(folder, extract={"reads": "items", "item_vectors": source, "pool_dim": 3})


def make(folder: Path, source: Any) -> ItemVectors:
    return item_vectors.make(
        config(folder, source),
        storage.path(folder),
        TRAINED,
        {"items": said(folder), "items_by_words": counted(folder)},
    )


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


def test_random_numbers_are_those_of_the_items_that_would_be_read(tmp_path: Path):
    trained = config(tmp_path, "random")
    trained = trained.model_copy(update={"extract": trained.extract.model_copy(update={"items": "trained"})})
    vectors_ID, known_I = item_vectors.make(trained, storage.path(tmp_path), TRAINED, {})
    np.testing.assert_array_equal(known_I, TRAINED)
    np.testing.assert_array_equal(make(tmp_path, "random").known_I, np.arange(9) > 0)
    assert vectors_ID.shape == (9, 3)
    assert vectors_ID[known_I].all()
    assert not vectors_ID[~known_I].any()


def test_words_know_items_of_no_training_row_but_do_not_go_by_them(tmp_path: Path):
    vectors_ID, known_I = make(tmp_path, "words")
    assert np.flatnonzero(known_I).tolist() == [1, 2, 3, 5, 6, 7, 8]
    trained = np.array([True] * 5 + [False] * 2)
    np.testing.assert_array_equal(vectors_ID[known_I], pooling.whiten(COUNTS, 3, trained).astype(np.float16))
    np.testing.assert_allclose(np.cov(vectors_ID[[1, 2, 3, 5, 6]].T.astype(float), bias=True), np.eye(3), atol=1e-2)


def test_several_sources_stand_side_by_side_and_an_item_is_known_if_one_knows_it(tmp_path: Path):
    llm, counts, both = (make(tmp_path, source) for source in ("llm", "words", ["llm", "words"]))
    np.testing.assert_array_equal(both.vectors_ID, np.hstack([llm.vectors_ID, counts.vectors_ID]))
    np.testing.assert_array_equal(both.known_I, llm.known_I | counts.known_I)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"item_vectors": ["llm", "llm"]}, "each only once"),
        ({"item_vectors": []}, "at least 1 item"),
        ({"item_vectors": "encoder"}, "needs a model in extract.encoder"),
        ({"item_vectors": "words", "reads": "users"}, "is for reads = 'items'"),
        ({"pooling": "mean", "answers": "all"}, "without a question"),
    ],
)
def test_sources_that_cannot_be_are_refused(tmp_path: Path, change: dict[str, Any], message: str):
    with pytest.raises(ValidationError, match=message):
        config_of(tmp_path, extract={"reads": "items"} | change)


def test_that_the_llm_read_no_item_is_told(tmp_path: Path):
    with pytest.raises(
        StorageError, match="no item of the training rows has a vector; look at the errors in its shards"
    ):
        item_vectors.make(
            config(tmp_path, "llm"), storage.path(tmp_path), TRAINED, {"items": said(tmp_path, good=False)}
        )


def test_items_that_are_all_alike_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = storage.path(tmp_path / "vectors/items-0.parquet")
    storage.write_table(file, shard([1, 2, 3, 4, 5, 6], np.ones((6, 4), np.float16)))
    groups = {"items": [RowGroup(str(file), "")], "items_by_words": counted(tmp_path)}
    with pytest.raises(DataError, match=r"item_vectors = llm: all items .* the same vector; look at their titles"):
        item_vectors.make(config(tmp_path, "llm"), storage.path(tmp_path), TRAINED, groups)
    beside = item_vectors.make(config(tmp_path, ["llm", "words"]), storage.path(tmp_path), TRAINED, groups)
    assert beside.vectors_ID.shape[1] == 3  # of the words alone
    assert "'llm' counts for nothing" in capsys.readouterr().err


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
