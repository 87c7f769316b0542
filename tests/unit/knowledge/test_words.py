"""Counts of words as vectors of items."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from llm4msr import storage
from llm4msr.config import Config
from llm4msr.data.catalogue import item_fields
from llm4msr.errors import ConfigError
from llm4msr.knowledge import words
from llm4msr.knowledge.passes import count_shard
from llm4msr.knowledge.prompts.own_text import MAX_SCENARIO_TOKENS, item_texts, scenario_texts
from llm4msr.knowledge.prompts.templates import most_tokens
from llm4msr.knowledge.reader import Reader
from llm4msr.knowledge.shards import Pass
from llm4msr.knowledge.sources import items_by_kind, sources, texts_of_items
from llm4msr.knowledge.words import Words
from llm4msr.knowledge.work import Shard
from llm4msr.storage.vectors import to_matrix
from tests.support.data import config_of
from tests.unit.conftest import World

TEAS = [f"{colour} tea {size}" for colour in ("green", "black", "white") for size in ("small", "large", "huge")]
TOOLS = [f"{kind} steel {tool}" for kind in ("bent", "long", "short") for tool in ("hammer", "saw", "drill")]


def of_words(config: Config) -> Config:
    change = {"reads": "items", "item_vectors": "words", "pool_dim": 4}
    return config.model_copy(update={"extract": config.extract.model_copy(update=change)})


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize("dim", [4, 64])
def test_texts_with_common_words_are_near_each_other(dim: int):
    vectors = Words.fit(TEAS + TOOLS, dim).vectors(["green tea", "large black TEA", "a steel saw", "nothing known"])
    assert vectors.shape == (4, min(dim, 14))
    assert cosine(vectors[0], vectors[1]) > 0.1
    assert cosine(vectors[0], vectors[1]) > 2 * abs(cosine(vectors[0], vectors[2]))
    assert not vectors[3].any()


def test_words_that_are_in_no_item_of_training_rows_do_not_count():
    fitted = Words.fit(TEAS, 3)
    np.testing.assert_array_equal(*fitted.vectors(["green tea", "green zeppelin tea"]))


def test_words_of_other_alphabets_and_digits_count():
    vectors = Words.fit(["зелёный чай", "чёрный чай", "7", "молоток"], 8).vectors(["чай", "7"])
    assert (np.linalg.norm(vectors, axis=1) > 0.3).all()


def test_that_there_are_no_words_is_told():
    with pytest.raises(ConfigError, match="'words' finds none in titles and features"):
        Words.fit(["", "!?"], 4)


def test_vectors_are_the_same_each_time_and_known_by_the_texts_they_are_fitted_on():
    first, second = (Words.fit(TEAS + TOOLS, 4).vectors(TEAS) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    one = words.identity(TEAS, 4)
    assert one == words.identity([*TEAS], 4)
    assert len({one, words.identity(TEAS, 5), words.identity(TEAS[1:], 4), words.identity([*TEAS[1:], "x"], 4)}) == 4


def test_of_very_many_texts_a_sample_is_read(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(words, "MOST_TEXTS", 3)
    assert set(Words.fit(["a b", "c", "d", "e", "f g"], 2).vectorizer.vocabulary_) == {"a", "b", "d", "f", "g"}


def test_an_items_own_text_is_its_title_and_all_its_features(world: World):
    items = storage.read_table(world.data.folder / "items.parquet")
    texts = item_texts(items, item_fields(world.data))
    row = items["item_id"].to_pylist().index("i3")
    assert texts[row] in ("Title 3. b0, All, odd, c3", "Title 3. All, odd, c3, b0")
    hostile = items.slice(row, 1).set_column(2, "title", pa.array(["a\n---\nb" + "x" * 300]))
    (text,) = item_texts(hostile, item_fields(world.data))
    assert text.startswith("a --- bxxx")
    assert len(text) < 230


def test_a_scenarios_own_text_is_its_name_its_categories_and_titles(world: World):
    table = storage.read_table(world.data.folder / "scenarios.parquet").slice(1)
    for text, row in zip(scenario_texts(table), table.to_pylist(), strict=True):
        assert text == ". ".join([row["scenario_id"], ", ".join(row["categories"] + row["titles"])])


def test_a_scenario_of_long_titles_names_as_many_as_an_encoder_reads(world: World):
    table = storage.read_table(world.data.folder / "scenarios.parquet").slice(1, 1)
    long = pa.array([["a rather long title " * 4] * 10], table.schema.field("titles").type)
    table = table.set_column(table.column_names.index("titles"), table.schema.field("titles"), long)
    (text,) = scenario_texts(table)
    assert 1 < text.count("a rather") < 40
    assert most_tokens(text) <= MAX_SCENARIO_TOKENS < most_tokens(text + ", " + "a rather long title " * 4)


def test_words_alone_need_no_llm(world: World):
    config = of_words(world.config)
    (source,) = sources(config.extract)
    assert (source.name, source.kinds, source.model) == ("words", ("items_by_words", "scenarios"), "words")
    readers = source.readers(config, source.revision(), texts_of_items(world.data))
    assert items_by_kind(readers, 5) == {"items_by_words": 5}
    others = source.readers(config, source.revision(), lambda: ["another catalogue"])
    assert others["scenarios"].reads != readers["scenarios"].reads


def test_the_llm_reads_scenarios_where_items_are_random_numbers(tmp_path: Path):
    (source,) = sources(config_of(tmp_path, extract={"reads": "items", "item_vectors": "random"}).extract)
    assert (source.name, source.kinds) == ("llm", ("scenarios",))


def test_a_shard_holds_the_vectors_of_its_texts(world: World, tmp_path: Path):
    name, folder = "items_by_words-00000-of-00001-x.parquet", storage.path(tmp_path)
    texts = ["green tea", "a saw", ""]
    rows = {"id": [1, 2, 3], "raw_id": ["a", "b", "c"], "fingerprint": ["f", "g", "h"], "prompt": texts}
    table = pa.table(rows | {"error": ["", "", "nothing liked before the cut"]})
    storage.write_groups(folder / "work/todo/items_by_words-0.parquet", [table])
    reader = Reader(revision="r", frame="", reads="r", writes={"items_by_words": ""}, source="words", own_text=True)
    pass_ = Pass("vectors", world.config, str(folder), {"items_by_words": reader}, [], "words")
    job = Shard(name=name, kind="items_by_words", todo="items_by_words-0.parquet", group=0, rows=3)
    fitted = Words.fit(TEAS + TOOLS, 4)
    summary = count_shard(pass_, job, fitted)
    assert (summary["file"], summary["rows"], summary["failed"], summary["empty"]) == (name, 3, 1, 1)
    assert (summary["tokens"], summary["digest"]) == (0, storage.digest_file(folder / "vectors" / name))
    written = storage.read_table(folder / "vectors" / name)
    np.testing.assert_array_equal(to_matrix(written["vector"]), fitted.vectors(texts).astype(np.float16))
    assert written["prompt"].to_pylist() == texts
