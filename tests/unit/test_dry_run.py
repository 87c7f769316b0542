import json
import re
from pathlib import Path
from typing import Any

import pytest

from llm4msr import storage
from llm4msr.config import Config
from llm4msr.data import partitions
from llm4msr.data.prepare import prompt_data
from llm4msr.dry_run import plan
from llm4msr.knowledge import estimate as module
from llm4msr.knowledge import snapshots
from llm4msr.knowledge.engines.tokens import PromptTokenizer
from llm4msr.knowledge.prompts.render import item_prompts, user_prompts
from llm4msr.knowledge.prompts.sample import sampler
from llm4msr.pipeline import prepare
from llm4msr.storage import StageResult
from tests.support.data import config_of, write_data
from tests.support.partitioned import in_partitions
from tests.support.versions import with_extract
from tests.unit.conftest import World

VERBS = ("prepare", "extract", "train", "tune", "evaluate", "export", "explain", "refresh", "score", "serve", "run")


@pytest.fixture
def config(llama: Path, tmp_path: Path) -> Config:
    return config_of(
        write_data(tmp_path), extract={"model": str(llama), "rows_per_shard": 16}, evaluate={"seeds": [1, 2]}
    )


@pytest.mark.parametrize("verb", VERBS)
def test_a_plan_is_json_and_writes_nothing(config: Config, tmp_path: Path, own_cache: Path, verb: str):
    def everything() -> set[Path]:
        return {*tmp_path.rglob("*"), *own_cache.rglob("*")}

    before = everything()
    found = plan(config, verb)
    assert found
    json.dumps(found)
    assert everything() == before


def test_a_split_that_goes_by_the_seed_is_asked_about_for_each(config: Config):
    assert "again_for_each_seed" not in plan(config, "run")["extract"]
    drawn = config.model_copy(update={"split": config.split.model_copy(update={"kind": "random"})})
    assert plan(drawn, "run")["extract"]["again_for_each_seed"] == [2, 1]


def test_prompts_and_tokens_are_counted(config: Config, llama: Path):
    found = plan(config, "extract")["extract"]
    tables = prompt_data(config, sampler).tables
    tokenizer = PromptTokenizer(llama, 1 << 20)
    counts = sorted(len(tokenizer(row["prompt"])) for row in user_prompts(tables["histories"], config).to_pylist())
    assert len(counts) == 40
    assert (found["prompts"], found["shards"], found["tokens"]) == (42, 4, sum(counts))
    small = config.model_copy(update={"extract": config.extract.model_copy(update={"rows_per_shard": 1})})
    assert plan(small, "extract")["extract"]["shards"] == 42
    assert counts[0] <= found["tokens_p50"] <= found["tokens_p99"] <= counts[-1]
    assert (found["engine"], found["model"], found["tokens_are"]) == ("transformers", str(llama), "counted")
    assert found["tokens_shared"] == 0
    assert found["estimate"].startswith("about ")


def test_items_are_counted_where_the_llm_reads_items(config: Config, llama: Path):
    of_items = config.model_copy(update={"extract": config.extract.model_copy(update={"reads": "items"})})
    found = plan(of_items, "extract")["extract"]
    data = prompt_data(config, sampler)
    tables, fields = data.tables, data.item_fields
    tokenizer = PromptTokenizer(llama, 1 << 20)
    counts = [
        len(tokenizer(row["prompt"])) for row in item_prompts(tables["items"].slice(1), fields, config).to_pylist()
    ]
    assert (found["prompts"], found["tokens"]) == (len(counts) + 2, sum(counts))


def test_the_mean_needs_fewer_tokens_of_an_item_and_the_plan_says_how_many(config: Config):
    found = {}
    for pooling in ("last", "mean"):
        change = {"reads": "items", "pooling": pooling}
        other = config.model_copy(update={"extract": config.extract.model_copy(update=change)})
        found[pooling] = plan(other, "extract")["extract"]
    both = {pooling: plans["tokens"] for pooling, plans in found.items()}
    assert both["mean"] < both["last"] / 2
    assert found["last"]["tokens_by_pooling"] == found["mean"]["tokens_by_pooling"] == both


def test_the_plan_of_several_sources_says_what_each_reads(config: Config, llama: Path):
    change = {"reads": "items", "item_vectors": ("llm", "words", "encoder"), "encoder": str(llama)}
    found = plan(config.model_copy(update={"extract": config.extract.model_copy(update=change)}), "extract")["extract"]
    encoder, words = found["beside"]
    assert (found["model"], encoder["model"], words["model"]) == (str(llama), str(llama), "words")
    assert (found["prompts"], encoder["prompts"], words["prompts"]) == (22, 20, 20)
    assert encoder["tokens"] == found["tokens_by_pooling"]["mean"]


def test_words_cost_nothing_and_the_plan_says_so(config: Config):
    change = {"reads": "items", "item_vectors": "words", "model": "some/llm"}
    found = plan(config.model_copy(update={"extract": config.extract.model_copy(update=change)}), "extract")["extract"]
    assert (found["engine"], found["model"], found["prompts"], found["tokens"]) == ("none", "words", 22, 0)
    assert found["estimate"].startswith("no LLM and no cost")


def test_shared_tokens_are_told_for_the_engine_that_shares_them(config: Config):
    vllm = config.model_copy(update={"extract": config.extract.model_copy(update={"engine": "vllm"})})
    found = plan(vllm, "extract")["extract"]
    assert 0 < found["tokens_shared"] < found["tokens_p50"]


@pytest.mark.parametrize("is_prepared", [False, True])
def test_snapshots_are_counted_and_their_tokens_too(config: Config, llama: Path, is_prepared: bool):
    often = config.model_copy(update={"extract": config.extract.model_copy(update={"snapshots": 3, "max_users": 30})})
    prepared = prepare(often)
    rows = snapshots.read_histories(prepared, 0, 0, 30, 3)
    if not is_prepared:
        storage.remove(prepared.folder)
    found, once = (plan(one, "extract")["extract"] for one in (often, with_extract(often, snapshots=1)))
    assert found["prompts"] == once["prompts"] + len(rows)
    assert len(rows) > 60
    tokenizer = PromptTokenizer(llama, 1 << 20)
    tokens = [len(tokenizer(prompt)) for prompt in user_prompts(rows, often)["prompt"].to_pylist() if prompt]
    assert found["tokens"] == pytest.approx(once["tokens"] + len(rows) * sum(tokens) / len(tokens), abs=1)
    assert found["left"] == once["left"] + len(rows)
    ratio = found["at_scale"]["1e9"]["fresh_tokens"] / once["at_scale"]["1e9"]["fresh_tokens"]
    assert ratio == pytest.approx(found["tokens"] / once["tokens"], rel=1e-3)


def test_max_users_limits_the_prompts(config: Config):
    quick = config.model_copy(update={"extract": config.extract.model_copy(update={"max_users": 5})})
    found = plan(quick, "extract")["extract"]
    assert (found["prompts"], found["shards"]) == (7, 2)
    assert found["tokens"] < plan(config, "extract")["extract"]["tokens"]


def test_many_prompts_are_estimated_from_a_sample(config: Config, monkeypatch: pytest.MonkeyPatch):
    exact = plan(config, "extract")["extract"]["tokens"]
    monkeypatch.setattr(module, "SAMPLE", 10)
    sampled = plan(config, "extract")["extract"]
    assert sampled["prompts"] == 42
    assert sampled["tokens"] == pytest.approx(exact, rel=0.1)


def test_a_model_that_is_not_here_is_estimated_and_not_fetched(config: Config):
    away = config.model_copy(update={"extract": config.extract.model_copy(update={"model": "some/llm"})})
    found = plan(away, "extract")["extract"]
    assert found["tokens_are"].startswith("estimated")
    assert found["tokens"] > 0
    assert found["estimate"] == "unknown until the model is on this machine"
    alias = config.model_copy(update={"extract": config.extract.model_copy(update={"model": "smollm2-135m"})})
    assert "(135M weights)" in plan(alias, "extract")["extract"]["estimate"]


def test_an_estimate_of_hours_says_how_to_look_sooner(config: Config):
    estimates = [
        plan(config.model_copy(update={"extract": config.extract.model_copy(update=stated)}), "extract")["extract"]
        for stated in ({"tokens_per_second": 1000}, {"tokens_per_second": 0.5})
    ]
    assert re.match(r"about \d+ min, .*not counted$", estimates[0]["estimate"])
    assert re.match(r"about \d+ hours, .*; for a first look the LLM can read less", estimates[1]["estimate"])


def test_hours_and_cost_of_a_stated_rate(config: Config):
    stated = {"tokens_per_second": 1000, "actors": 4, "actor_cost_per_hour": 2.5}
    found = plan(config.model_copy(update={"extract": config.extract.model_copy(update=stated)}), "extract")["extract"]
    hours = (found["tokens"] / 1000 / 4 + module.START_SECONDS) / 3600
    assert (found["left"], found["fresh_tokens"], found["actors"]) == (40, found["tokens"], 4)
    assert found["hours"] == pytest.approx(hours, rel=0.01)
    assert found["cost"] == pytest.approx(hours * 4 * 2.5, abs=0.01)
    assert list(found["at_scale"]) == ["1e6", "1e8", "1e9"]
    assert found["at_scale"]["1e9"]["hours"] == pytest.approx(1e9 * found["tokens"] / 40 / 4000 / 3600, rel=0.01)
    assert "as extract.tokens_per_second states" in found["estimate"]


def test_a_finished_extraction_is_nothing_to_do(world: World):
    assert plan(world.config, "extract")["extract"]["estimate"] == "finished already: nothing to do"


def test_a_plan_does_not_change_with_preparing(config: Config):
    before = plan(config, "prepare")
    counts = {"source": config.source.path, "users": 40, "scenarios": 2}
    assert before == {"prepare": counts | {"warnings": before["prepare"]["warnings"]}}
    assert any("of an earlier row" in text for text in before["prepare"]["warnings"])
    prepare(config)
    assert plan(config, "prepare") == before


@pytest.mark.parametrize(
    ("verb", "expected"),
    [
        ("evaluate", {"evaluate": "4 models on the test rows"}),
        ("export", {"export": "bundle of mmoe both, seed 1"}),
        ("explain", {"explain": "report on mmoe both, 2 seed(s)"}),
        ("score", {"score": "the best 100 items for each user, scenarios: all"}),
        ("serve", {"serve": "http://127.0.0.1:8000, 1 replica(s), 1000 candidates at most"}),
    ],
)
def test_later_stages_are_told_in_words(config: Config, verb: str, expected: dict[str, Any]):
    assert plan(config, verb) == expected


def test_run_plans_all_stages(config: Config):
    found = plan(config, "run")
    assert list(found) == ["prepare", "extract", "train", "evaluate", "export"]
    assert found["train"]["models"] == [f"mmoe {name}, seed {seed}" for name in ("none", "both") for seed in (1, 2)]


@pytest.mark.parametrize("total", [2, 8])
def test_the_plan_of_partitions_counts_all_users_and_reads_one_partition(config: Config, tmp_path: Path, total: int):
    one = plan(config, "run")
    parts, data = in_partitions(config, prepare(config), total, tmp_path / "parts")
    for number in range(1, total):
        name = partitions.file_name("histories", number)
        (Path(str(data.folder)) / name).write_bytes(b"x" * data.manifest.files[name].bytes)
    many = plan(parts, "run")
    assert many["prepare"]["users"] == one["prepare"]["users"] == 40
    for name in ("prompts", "left", "shards", "tokens_are"):
        assert many["extract"][name] == one["extract"][name]
    assert many["extract"]["tokens"] == pytest.approx(one["extract"]["tokens"], rel=0.1)


def test_the_time_of_all_trainings_is_told(config: Config):
    rows = prompt_data(config, sampler).report.parts["train"].rows
    one, all_of_them = plan(config, "train")["train"], plan(config, "run")["train"]
    assert one["rows"] == all_of_them["rows"] == rows
    assert len(one["models"]) == 1
    assert len(all_of_them["models"]) > 1
    assert f"for {len(all_of_them['models'])} training(s)" in all_of_them["estimate"]
    slow = config.model_copy(update={"train": config.train.model_copy(update={"epochs": 10**9})})
    assert plan(slow, "train")["train"]["estimate"] != one["estimate"]


def test_a_large_training_that_is_finished_tells_how_long_others_take(config: Config):
    info = {"epochs": 2, "starts": [{"epoch": 0, "batch": 0, "workers": 1}]}
    folder = storage.path(config.root) / "train" / f"mmoe-{config.model.variant}-s1-0123"
    storage.publish(folder, "train", 1, {}, {}, lambda _: StageResult(files={}, rows=1_000_000, info=info))
    assert f"as {folder.name} took" in plan(config, "train")["train"]["estimate"]


def test_the_plan_of_a_search_names_models_and_values(config: Config):
    found = plan(config.model_copy(update={"tune": config.tune.model_copy(update={"trials": 5})}), "tune")["tune"]
    assert found["trials"].startswith("5 of each of none, ")
    assert "10 training(s)" in found["estimate"]
    assert found["space"]["none"].keys() < found["space"][config.model.variant].keys()


def test_an_endpoint_is_planned_by_its_price_without_being_asked(config: Config, llama: Path):
    changes = {"engine": "http", "http_url": "http://127.0.0.1:9/v1", "dtype": "auto", "answers": "none"}
    changes |= {"http_price": 2e6, "model": "embedder"}
    document = config.model_dump()
    document["extract"] |= changes
    found = plan(Config.model_validate(document), "extract")["extract"]
    assert (found["engine"], found["model"], found["left"]) == ("http", "embedder", 40)
    assert found["tokens_are"].startswith("estimated: 4 characters each, since the endpoint's tokenizer")
    assert found["endpoint_cost"] == pytest.approx(2 * found["tokens"], rel=0.02)
    document["extract"]["http_tokenizer"] = str(llama)
    counted = plan(Config.model_validate(document), "extract")["extract"]
    assert counted["tokens_are"] == "counted"
    assert counted["tokens"] == plan(config, "extract")["extract"]["tokens"]
