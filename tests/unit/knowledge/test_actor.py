"""Extraction without Ray: what its tasks and actors do with one shard."""

import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from llm4msr import schema, storage
from llm4msr.config import Config
from llm4msr.errors import ConfigError, LLM4MSRError, StorageError, TooManyFailedError
from llm4msr.knowledge.actor import SHARD_FOLDERS, AskLLM, Counts, Pass
from llm4msr.knowledge.engines import PromptTokenizer, models, open_tokenizer
from llm4msr.knowledge.engines.transformers import TransformersEngine
from llm4msr.knowledge.failures import refuse_failures
from llm4msr.knowledge.passes import finished_shards
from llm4msr.knowledge.prompts import templates
from llm4msr.knowledge.prompts.render import (
    Window,
    item_prompts,
    items_to_read,
    render,
    slice_rows,
    user_prompts,
    windows,
)
from llm4msr.knowledge.reader import Reader
from llm4msr.knowledge.work import Shard, Work
from llm4msr.pipeline import extracted
from tests.support.data import config_of, flip_a_bit, published
from tests.unit.conftest import World

NO_FILE = storage.path("/no/scenarios/here")
FILE = "users-000000000.parquet"
EMPTY, LONG = 1, 3
"""Rows of `prompted` that cannot be read."""


@pytest.fixture
def config(llama: Path, tmp_path: Path) -> Config:
    return config_of(tmp_path, extract={"model": str(llama), "max_prompt_tokens": 60, "answer_tokens": 4})


def with_pooling(config: Config, pooling: str) -> Config:
    return config.model_copy(update={"extract": config.extract.model_copy(update={"pooling": pooling})})


def reads(config: Config) -> Reader:
    """Who the config says reads."""
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
    return AskLLM(Pass(task, config, str(folder), planned or reads(config), ["home", "search"]))


def ask(config: Config, task: Any, folder: Path, table: pa.Table) -> tuple[dict[str, Any], pa.Table]:
    (summary,) = actor(config, task, folder).ask(table).to_pylist()
    return summary, storage.read_table(storage.path(folder / SHARD_FOLDERS[task] / FILE))


def matrix(table: pa.Table) -> np.ndarray:
    return table["vector"].combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1)


def with_model(config: Config, model: Path) -> Config:
    return config.model_copy(update={"extract": config.extract.model_copy(update={"model": str(model)})})


def engine(config: Config) -> TransformersEngine:
    pooling = "mean" if config.extract.pooling == "mean" else "last"
    return TransformersEngine(Path(config.extract.model), pooling, "float32")


# --- shards and their prompts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("users", "max_users", "per_shard", "ranges"),
    [
        (10, 0, 4, [(0, 4), (4, 8), (8, 10)]),
        (10, 5, 4, [(0, 4), (4, 5)]),
        (3, 9, 4, [(0, 3)]),
        (0, 0, 4, []),
    ],
)
def test_windows_are_the_scenarios_and_ranges_of_users(
    tmp_path: Path, users: int, max_users: int, per_shard: int, ranges: list[tuple[int, int]]
):
    found = windows(config_of(tmp_path, extract={"max_users": max_users}), users, 0, per_shard)
    assert found == [Window("scenarios"), *(Window("users", *rows) for rows in ranges)]


@pytest.mark.parametrize(("vectors", "ranges"), [("llm", [(0, 4), (4, 8), (8, 9)]), ("random", [])])
def test_windows_of_items_know_no_limit_of_users(tmp_path: Path, vectors: str, ranges: list[tuple[int, int]]):
    extract = {"max_users": 2, "reads": "items", "item_vectors": vectors}
    found = windows(config_of(tmp_path, extract=extract), 10, 9, 4)
    assert found == [Window("scenarios"), *(Window("items", *rows) for rows in ranges)]


def test_a_window_of_items_begins_after_the_unknown_item(world: World):
    table = render(Window("items", 2, 5), world.config, world.data, NO_FILE)
    items = storage.read_table(world.data.folder / "items.parquet")
    assert table["id"].to_pylist() == [3, 4, 5]
    assert table["raw_id"].to_pylist() == items["item_id"].to_pylist()[3:6]
    for prompt, title in zip(table["prompt"].to_pylist(), items["title"].to_pylist()[3:6], strict=True):
        assert f"Title: {title}\n" in prompt
        assert prompt.endswith('\n---\nThe one word is: "')


def test_an_item_shows_its_own_categories(world: World):
    items = storage.read_table(world.data.folder / "items.parquet")
    words = ["Tea", "Cake", "Bread"]
    numbers = pa.array([[], [1, 3], *[[2]] * (len(items) - 2)], pa.list_(pa.int64()))
    shown = items.append_column("f:kinds", numbers)
    found = item_prompts(shown.slice(1, 2), {"item_id": [], "kinds": words}, world.config)
    assert [prompt.splitlines()[2] for prompt in found["prompt"].to_pylist()] == [
        "Categories: Tea, Bread",
        "Categories: Cake",
    ]


def test_items_to_read_are_those_of_training_rows():
    assert items_to_read(pa.table({"f:item_id": [0, 1, 2, 3, 0, 0]})) == 3


def test_windows_of_users_are_slices_of_the_whole(world: World):
    whole = user_prompts(storage.read_table(world.data.folder / "histories.parquet"), world.config)
    ranges = [(0, 6), (6, 40)]
    found = [render(Window("users", a, b), world.config, world.data, NO_FILE) for a, b in ranges]
    assert [len(table) for table in found] == [6, 34]
    assert pa.concat_tables(found).equals(whole)


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (0, 10), (3, 4), (2, 7), (9, 10), (4, 8)])
@pytest.mark.parametrize("group", [1, 3, 100])
def test_slice_reads_its_rows_alone(tmp_path: Path, start: int, stop: int, group: int):
    storage.write_table(storage.path(tmp_path / "items.parquet"), pa.table({"a": list(range(10))}), group)
    data = published(tmp_path, {"items.parquet": 10})
    assert slice_rows(data, "items.parquet", start, stop)["a"].to_pylist() == list(range(start, stop))


# --- vectors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_vectors_are_the_engines_and_bad_rows_are_told(
    config: Config, prompted: pa.Table, tmp_path: Path, pooling: str
):
    config = with_pooling(config, pooling)
    summary, table = ask(config, "vectors", tmp_path / "out", prompted)
    size = (tmp_path / "out" / "vectors" / FILE).stat().st_size
    digest, seconds, cores = (summary.pop(name) for name in ("digest", "seconds", "cpu_seconds"))
    assert min(seconds, cores) > 0
    assert (summary.pop("tokens"), summary.pop("cached")) == (sum(table["tokens"].to_pylist()), 0)
    assert summary == {"file": FILE, "rows": 5, "failed": 2, "empty": 1, "bytes": size, "with_interests": 0}
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
    np.testing.assert_array_equal(matrix(table)[good], engine(config).vectors(ids).astype(np.float16))
    assert (matrix(table)[[EMPTY, LONG]] == 0).all()
    assert [table["tokens"][i].as_py() for i in good] == [len(one) for one in ids]
    assert table["tokens"][EMPTY].as_py() == 0
    assert table["answer"].to_pylist() == [""] * 5


def test_answers_of_the_first_pass_stand_beside_the_vectors(config: Config, prompted: pa.Table, tmp_path: Path):
    summary, first = ask(config, "answers", tmp_path / "out", prompted)
    assert summary["failed"] == 2
    assert "vector" not in first.column_names
    answers = first["answer"].to_pylist()
    assert answers[EMPTY] == answers[LONG] == ""
    _, second = ask(config, "vectors", tmp_path / "out", prompted)
    assert second["answer"].to_pylist() == answers
    _, without = ask(config, "vectors", tmp_path / "bare", prompted)
    np.testing.assert_array_equal(matrix(second), matrix(without))


def test_pooling_of_answers_reads_prompt_and_answer(config: Config, prompted: pa.Table, tmp_path: Path):
    config = with_pooling(config, "answer")
    _, first = ask(config, "answers", tmp_path / "out", prompted)
    answers = first["answer"].to_pylist()
    assert answers[0]
    _, table = ask(config, "vectors", tmp_path / "out", prompted)
    tokenizer = PromptTokenizer(Path(config.extract.model), 100)
    expected = engine(config).vectors([tokenizer("likes tea", answers[0])])
    np.testing.assert_allclose(matrix(table)[0], expected[0].astype(np.float16), atol=0.02)
    _, plain = ask(with_pooling(config, "last"), "vectors", tmp_path / "plain", prompted)
    assert np.abs(matrix(table)[0] - matrix(plain)[0]).max() > 0.1


def test_a_row_whose_answer_failed_has_no_vector_where_answers_are_pooled(
    config: Config, prompted: pa.Table, tmp_path: Path
):
    config = with_pooling(config, "answer")
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
    assert (matrix(table)[4] == 0).all()
    assert (matrix(table)[[0, 2]] != 0).any(1).all()


def test_a_vector_beyond_float16_is_a_bad_row(
    config: Config, prompted: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plain = TransformersEngine.vectors
    monkeypatch.setattr(TransformersEngine, "vectors", lambda self, tokens: plain(self, tokens) * 1e9)
    summary, table = ask(config, "vectors", tmp_path / "out", prompted)
    assert summary["failed"] == 5
    assert table["error"][0].as_py() == "FloatingPointError: the hidden state is not finite in float16"
    assert np.isfinite(matrix(table)).all()


@pytest.mark.parametrize("task", ["answers", "vectors"])
def test_an_engine_that_cannot_be_opened_is_no_matter_of_rows(
    config: Config, prompted: pa.Table, tmp_path: Path, task: Any
):
    broken = Path(shutil.copytree(config.extract.model, tmp_path / "broken"))
    (broken / "model.safetensors").write_bytes(b"no weights")
    config = with_model(config, broken)
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
    config = with_model(config, swapped)
    planned = reads(config)
    if what == "weights":
        flip_a_bit(swapped / "model.safetensors")
    else:
        (swapped / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    with pytest.raises(StorageError) as caught:
        actor(config, task, tmp_path / "out", planned).ask(prompted)
    for part in (socket.gethostname(), planned.revision, models.revision(swapped), "run `llm4msr extract` again"):
        assert part in str(caught.value)
    assert not (tmp_path / "out").exists()


# --- resume and failures ------------------------------------------------------------------------------------------


def test_a_shard_is_finished_if_no_row_of_it_is_to_be_tried_again(config: Config, prompted: pa.Table, tmp_path: Path):
    out, wanted = tmp_path / "out", [Shard(name=FILE, kind="users", todo=FILE, group=0, rows=5)]
    assert finished_shards(storage.path(out / "vectors"), wanted) == {}
    ask(config, "vectors", out, prompted)
    assert finished_shards(storage.path(out / "vectors"), wanted) == {}  # it has bad rows, which are tried again
    no_retry_helps = prompted.filter(pa.array([i != LONG for i in range(5)]))
    ask(config, "vectors", out, no_retry_helps)
    assert finished_shards(storage.path(out / "vectors"), wanted) == {FILE: (4, 1, 1)}
    shard = out / "vectors" / FILE
    shard.write_bytes(shard.read_bytes()[:-7])  # as a crash of the machine may leave it
    assert finished_shards(storage.path(out / "vectors"), wanted) == {}
    assert finished_shards(storage.path(out / "vectors"), []) == {}


@pytest.mark.parametrize(("allowed", "refused"), [(0.0, True), (0.19, True), (0.2, False), (1.0, False)])
def test_too_many_failures_end_the_stage_and_name_the_first(
    config: Config, prompted: pa.Table, tmp_path: Path, allowed: float, refused: bool
):
    ask(config, "vectors", tmp_path / "out", prompted)
    done: Any = {"vectors": {FILE: Counts(5, 2, 1), "scenarios-000000000.parquet": Counts(0, 0, 0)}}
    arguments = (allowing(config, allowed), storage.path(tmp_path / "out"), done, nothing_kept(config))
    if not refused:
        refuse_failures(*arguments)
        return
    with pytest.raises(
        TooManyFailedError, match=rf"1 of 5 users failed; first: 'u4' in {FILE}: PromptTooLong"
    ) as caught:
        refuse_failures(*arguments)
    assert caught.value.exit_code == 3


def test_each_kind_is_compared_with_what_is_allowed_by_itself(config: Config, prompted: pa.Table, tmp_path: Path):
    """A few scenarios that all fail are a small part of all rows."""
    shards = {name: prompted.set_column(5, "file", pa.array([name] * 5)) for name in ("scenarios-0.parquet", FILE)}
    for table in shards.values():
        actor(config, "vectors", tmp_path / "out").ask(table)
    done: Any = {"vectors": {"scenarios-0.parquet": Counts(5, 5, 0), FILE: Counts(5, 2, 1)}}
    work = nothing_kept(config)
    work.kept = {"users": 9995, "scenarios": 0}
    folder = storage.path(tmp_path / "out")
    with pytest.raises(
        TooManyFailedError, match=r"5 of 5 scenarios failed; first: 'u4'.* allows 0\.01 of each"
    ) as caught:
        refuse_failures(allowing(config, 0.01), folder, done, work)
    assert "users failed" not in str(caught.value)
    with pytest.raises(TooManyFailedError, match=r"5 of 5 scenarios failed; .*1 of 10000 users failed; first: 'u4'"):
        refuse_failures(allowing(config, 0), folder, done, work)
    refuse_failures(allowing(config, 1), folder, done, work)


def test_failures_of_answers_count_too(config: Config, prompted: pa.Table, tmp_path: Path):
    ask(config, "answers", tmp_path / "out", prompted)
    done: Any = {"answers": {FILE: Counts(5, 2, 1)}, "vectors": {FILE: Counts(5, 1, 1)}}
    with pytest.raises(
        TooManyFailedError,
        match=r"out: 1 of 5 users failed; first: 'u4' .*tokens, allowed are 60; shorten the template, lower",
    ):
        refuse_failures(allowing(config, 0.1), storage.path(tmp_path / "out"), done, nothing_kept(config))


def allowing(config: Config, share: float) -> Config:
    extract = config.extract.model_copy(update={"max_failed_fraction": share})
    return config.model_copy(update={"extract": extract})


def nothing_kept(config: Config) -> Work:
    return Work(reader=reads(config), bases=[])


def test_extracted_wants_a_finished_extraction(world: World, tmp_path: Path):
    assert extracted(world.config).manifest == world.knowledge.manifest
    other = world.config.extract.model_copy(update={"titles_per_scenario": 9})
    with pytest.raises(ConfigError, match="no finished extraction for this config; run `llm4msr extract` first"):
        extracted(world.config.model_copy(update={"extract": other}))
    with pytest.raises(LLM4MSRError, match="run `llm4msr prepare` first"):
        extracted(world.config.model_copy(update={"storage": str(tmp_path)}))


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"engine": "vllm"}, True),
        ({"actors": 2}, True),
        ({"max_failed_fraction": 0.5}, True),
        ({"pooling": "mean"}, False),
        ({"max_users": 3}, False),
        ({"model": "another"}, False),
    ],
)
def test_an_extraction_is_shared_by_configs_that_ask_the_same(world: World, change: dict[str, Any], same: bool):
    other = world.config.model_copy(update={"extract": world.config.extract.model_copy(update=change)})
    if same:
        assert extracted(other).folder == world.knowledge.folder
        return
    with pytest.raises(ConfigError):
        extracted(other)


def test_own_templates_get_an_extraction_of_their_own(world: World, tmp_path: Path):
    (tmp_path / "mine.txt").write_text("In short: $history")
    change = {"user_template": str(tmp_path / "mine.txt")}
    config = world.config.model_copy(update={"extract": world.config.extract.model_copy(update=change)})
    with pytest.raises(ConfigError, match="no finished extraction"):
        extracted(config)
    prompt = user_prompts(storage.read_table(world.data.folder / "histories.parquet"), config)["prompt"][0].as_py()
    assert prompt.startswith("In short: home: ")
