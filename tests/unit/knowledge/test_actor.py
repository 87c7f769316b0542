"""What an actor does with one shard, without Ray."""

import shutil
import socket
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from llm4msr import schema, storage
from llm4msr.arrays import Halves, Singles
from llm4msr.config import Config
from llm4msr.errors import StorageError
from llm4msr.knowledge.actor import AskLLM
from llm4msr.knowledge.engines import PromptTokenizer, models, open_tokenizer
from llm4msr.knowledge.engines.transformers import TransformersEngine
from llm4msr.knowledge.prompts import templates
from llm4msr.knowledge.reader import Reader
from llm4msr.knowledge.shards import SHARD_FOLDERS, Pass
from llm4msr.storage.vectors import to_matrix
from tests.support.data import config_of, flip_a_bit

FILE = "users-000000000.parquet"
EMPTY, LONG = 1, 3
"""Rows of `prompted` that cannot be read."""


@pytest.fixture
def config(llama: Path, tmp_path: Path) -> Config:
    return config_of(tmp_path, extract={"model": str(llama), "max_prompt_tokens": 60, "answer_tokens": 4})


def with_extract(config: Config, **changes: object) -> Config:
    return config.model_copy(update={"extract": config.extract.model_copy(update=changes)})


def reader(config: Config) -> Reader:
    return Reader.of(config, models.revision(Path(config.extract.model)), open_tokenizer(config.extract).frame)


@pytest.fixture
def prompted() -> pa.Table:
    """A rendered shard: one prompt is empty, one is too long."""
    texts = ["likes tea", "", "likes coffee and cake", "far too long " * 50, "likes nothing"]
    return pa.table(
        {
            "id": pa.array(range(1, 6), pa.int64()),
            "raw_id": [f"u{i}" for i in range(1, 6)],
            "prompt": texts,
            "fingerprint": [templates.fingerprint(t, "somebody") for t in texts],
            "error": ["" if t else "nothing liked before the cut" for t in texts],
            "file": [FILE] * 5,
        }
    )


def actor(config: Config, task: Any, folder: Path, planned: Reader | None = None) -> AskLLM:
    return AskLLM(Pass(task, config, str(folder), {"users": planned or reader(config)}, ["home", "search"]))


def ask(config: Config, task: Any, folder: Path, table: pa.Table) -> tuple[dict[str, Any], pa.Table]:
    (summary,) = actor(config, task, folder).ask(table).to_pylist()
    return summary, storage.read_table(storage.path(folder / SHARD_FOLDERS[task] / FILE))


def vectors(table: pa.Table) -> Halves:
    return to_matrix(table["vector"])


def engine(config: Config) -> TransformersEngine:
    pooling = "mean" if config.extract.pooling == "mean" else "last"
    return TransformersEngine(Path(config.extract.model), pooling, "float32")


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_vectors_are_the_engines_and_bad_rows_are_told(
    config: Config, prompted: pa.Table, tmp_path: Path, pooling: str
):
    config = with_extract(config, pooling=pooling)
    summary, table = ask(config, "vectors", tmp_path / "out", prompted)
    size = (tmp_path / "out" / "vectors" / FILE).stat().st_size
    digest, seconds, cores = (summary.pop(name) for name in ("digest", "seconds", "cpu_seconds"))
    assert min(seconds, cores, summary.pop("read_seconds"), summary.pop("write_seconds")) > 0
    assert (summary.pop("tokens"), summary.pop("cached")) == (sum(table["tokens"].to_pylist()), 0)
    nothing = {"with_interests": 0, "billed": 0, "billed_answers": 0, "wait_seconds": 0}
    assert summary == {"file": FILE, "rows": 5, "failed": 2, "empty": 1, "bytes": size} | nothing
    assert digest == storage.digest((tmp_path / "out" / "vectors" / FILE).read_bytes())
    schema.check(table, schema.knowledge(128), "shard")
    assert table.column_names == schema.knowledge(128).names
    for name in ("id", "raw_id", "prompt", "fingerprint"):
        assert table[name].equals(prompted[name])
    errors = table["error"].to_pylist()
    assert errors[EMPTY] == "nothing liked before the cut"
    assert errors[LONG].startswith("PromptTooLongError: prompt of ")
    good = [i for i in range(5) if i not in (EMPTY, LONG)]
    assert [errors[i] for i in good] == [""] * 3
    tokenizer = PromptTokenizer(Path(config.extract.model), 60)
    ids = [tokenizer(prompted["prompt"][i].as_py()) for i in good]
    np.testing.assert_array_equal(vectors(table)[good], engine(config).vectors(ids).astype(np.float16))
    assert (vectors(table)[[EMPTY, LONG]] == 0).all()
    assert [table["tokens"][i].as_py() for i in good] == [len(one) for one in ids]
    assert table["tokens"][EMPTY].as_py() == 0
    assert table["answer"].to_pylist() == [""] * 5


def test_rows_of_the_same_text_are_read_once(config: Config, prompted: pa.Table, tmp_path: Path):
    texts = ["likes tea", "likes coffee and cake", "likes tea", "likes tea", "likes nothing"]
    rows = prompted.set_column(2, "prompt", pa.array(texts)).set_column(4, "error", pa.array([""] * 5))
    summary, table = ask(config, "vectors", tmp_path / "out", rows)
    lengths = table["tokens"].to_pylist()
    assert summary["tokens"] == lengths[0] + lengths[1] + lengths[4]
    tokenizer = PromptTokenizer(Path(config.extract.model), 60)
    each = engine(config).vectors([tokenizer(text) for text in texts])
    np.testing.assert_allclose(vectors(table), each, atol=1e-3 * np.abs(each).max())
    np.testing.assert_array_equal(vectors(table)[[0, 0]], vectors(table)[[2, 3]])


def test_answers_of_the_first_pass_stand_beside_the_vectors(config: Config, prompted: pa.Table, tmp_path: Path):
    summary, first = ask(config, "answers", tmp_path / "out", prompted)
    assert summary["failed"] == 2
    assert "vector" not in first.column_names
    answers = first["answer"].to_pylist()
    assert answers[EMPTY] == answers[LONG] == ""
    _, second = ask(config, "vectors", tmp_path / "out", prompted)
    assert second["answer"].to_pylist() == answers
    _, without = ask(config, "vectors", tmp_path / "bare", prompted)
    np.testing.assert_array_equal(vectors(second), vectors(without))


def test_pooling_of_answers_reads_prompt_and_answer(config: Config, prompted: pa.Table, tmp_path: Path):
    config = with_extract(config, pooling="answer")
    _, first = ask(config, "answers", tmp_path / "out", prompted)
    answers = first["answer"].to_pylist()
    assert answers[0]
    _, table = ask(config, "vectors", tmp_path / "out", prompted)
    tokenizer = PromptTokenizer(Path(config.extract.model), 100)
    expected = engine(config).vectors([tokenizer("likes tea", answers[0])])
    np.testing.assert_allclose(vectors(table)[0], expected[0].astype(np.float16), atol=0.02)
    _, plain = ask(with_extract(config, pooling="last"), "vectors", tmp_path / "plain", prompted)
    assert np.abs(vectors(table)[0] - vectors(plain)[0]).max() > 0.1


def test_a_row_whose_answer_failed_has_no_vector_where_answers_are_pooled(
    config: Config, prompted: pa.Table, tmp_path: Path
):
    config = with_extract(config, pooling="answer")
    _, first = ask(config, "answers", tmp_path / "out", prompted)
    rows = first.to_pylist()
    rows[0] |= {"answer": "", "error": "RuntimeError: out of memory"}
    storage.write_table(
        storage.path(tmp_path / "out" / SHARD_FOLDERS["answers"] / FILE), pa.Table.from_pylist(rows, first.schema)
    )
    summary, table = ask(config, "vectors", tmp_path / "out", prompted)
    assert table["error"][0].as_py()
    assert summary["failed"] == 3


def test_one_bad_row_of_a_batch_does_not_take_the_others_with_it(
    config: Config, prompted: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """An engine that breaks down on one prompt of several."""
    plain = TransformersEngine.vectors
    tokenizer = PromptTokenizer(Path(config.extract.model), 60)
    poison = tokenizer("likes nothing")

    def fragile(self: TransformersEngine, tokens: Any) -> Any:
        if poison in list(tokens):
            raise RuntimeError("broke down")
        return plain(self, tokens)

    monkeypatch.setattr(TransformersEngine, "vectors", fragile)
    summary, table = ask(config, "vectors", tmp_path / "out", prompted)
    errors = table["error"].to_pylist()
    assert errors[4] == "RuntimeError: broke down"
    assert (errors[0], errors[2]) == ("", "")
    assert summary["failed"] == 3
    assert (vectors(table)[4] == 0).all()
    assert (vectors(table)[[0, 2]] != 0).any(1).all()


def test_a_vector_beyond_float16_is_a_bad_row(
    config: Config, prompted: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plain = TransformersEngine.vectors
    monkeypatch.setattr(TransformersEngine, "vectors", lambda self, tokens: plain(self, tokens) * 1e9)
    summary, table = ask(config, "vectors", tmp_path / "out", prompted)
    assert summary["failed"] == 5
    assert table["error"][0].as_py() == "FloatingPointError: the hidden state is not finite in float16"
    assert np.isfinite(vectors(table)).all()


@pytest.mark.parametrize("task", ["answers", "vectors"])
def test_an_engine_that_cannot_be_opened_is_no_matter_of_rows(
    config: Config, prompted: pa.Table, tmp_path: Path, task: Any
):
    broken = Path(shutil.copytree(config.extract.model, tmp_path / "broken"))
    (broken / "model.safetensors").write_bytes(b"no weights")
    config = with_extract(config, model=str(broken))
    with pytest.raises(StorageError, match=r"model\.safetensors: not whole safetensors"):
        actor(config, task, tmp_path / "out").ask(prompted)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("task", ["answers", "vectors"])
@pytest.mark.parametrize("what", ["weights", "chat template"])
def test_who_asks_refuses_another_model_than_was_planned(
    config: Config, prompted: pa.Table, tmp_path: Path, task: Any, what: str
):
    """Between planning and asking the model is swapped, file sizes and times being the same."""
    swapped = Path(shutil.copytree(config.extract.model, tmp_path / "swapped"))
    config = with_extract(config, model=str(swapped))
    planned = reader(config)
    if what == "weights":
        flip_a_bit(swapped / "model.safetensors")
    else:
        (swapped / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    with pytest.raises(StorageError) as caught:
        actor(config, task, tmp_path / "out", planned).ask(prompted)
    for part in (socket.gethostname(), planned.revision, models.revision(swapped), "run `llm4msr extract` again"):
        assert part in str(caught.value)
    assert not (tmp_path / "out").exists()


class WaitsForTheNext(TransformersEngine):
    """Reads the first shard only when the second one's prompts have been made tokens of."""

    def __init__(self, config: Config, tokenized: threading.Semaphore):
        super().__init__(Path(config.extract.model), "last", "float32")
        self.tokenized, self.threads = tokenized, list[int]()

    def vectors(self, tokens: Sequence[list[int]]) -> Singles:
        if not self.threads:
            assert self.tokenized.acquire(timeout=60)
            assert self.tokenized.acquire(timeout=60), "the next shard waits for the LLM"
        self.threads.append(threading.get_ident())
        return super().vectors(tokens)


def test_the_next_shard_is_tokenised_while_the_llm_reads_and_shards_are_as_one_by_one(
    config: Config, prompted: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tokenized = threading.Semaphore(0)
    encode = PromptTokenizer.encode_batch

    def encode_and_tell(*arguments: Any) -> list[list[int]]:
        try:
            return encode(*arguments)
        finally:
            tokenized.release()

    monkeypatch.setattr(PromptTokenizer, "encode_batch", encode_and_tell)
    names = [f"users-{number:09d}.parquet" for number in range(3)]
    tables = [prompted.set_column(5, "file", pa.array([name] * 5)) for name in names]
    together = actor(config, "vectors", tmp_path / "together")
    together.engine = WaitsForTheNext(config, tokenized)
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(together.ask, tables))
    assert len({*together.engine.threads}) == 1
    alone = actor(config, "vectors", tmp_path / "alone")
    for table in tables:
        alone.ask(table)
    for name in names:
        files = [tmp_path / folder / "vectors" / name for folder in ("together", "alone")]
        assert files[0].read_bytes() == files[1].read_bytes()
