import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm4msr.config import ExtractConfig
from llm4msr.errors import ConfigError, MissingExtraError, StorageError
from llm4msr.knowledge.engines import engine_name, models, open_engine, open_tokenizer, soundness
from llm4msr.knowledge.engines import transformers as engine_module
from llm4msr.knowledge.engines.tokens import PromptTokenizer, PromptTooLongError
from llm4msr.knowledge.engines.transformers import TransformersEngine
from llm4msr.knowledge.engines.vllm import VllmEngine

PROMPTS = ["a", "Some longer prompt, with a comma.", "b" * 90, "Ünïcode", "two words", "c" * 40]


@pytest.fixture(scope="module")
def tokens(llama: Path) -> list[list[int]]:
    tokenizer = PromptTokenizer(llama, 1000)
    return [tokenizer(prompt) for prompt in PROMPTS]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return


# --- transformers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("batch", [1, 150, 4096])
def test_vectors_are_the_hidden_states_of_each_prompt_alone(
    llama: Path, tokens: list[list[int]], pooling: str, batch: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(engine_module.BATCH_TOKENS, "cpu", batch)
    vectors = TransformersEngine(llama, pooling, "float32").vectors(tokens)
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).eval()
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(PROMPTS), 128)
    for ids, vector in zip(tokens, vectors, strict=True):
        with torch.inference_mode():
            states_TD = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]
        expected = states_TD[-1] if pooling == "last" else states_TD.mean(0)
        np.testing.assert_allclose(vector, expected.numpy(), atol=1e-4)


def test_a_batch_holds_prompts_of_like_length_and_no_more_tokens_than_allowed():
    assert list(engine_module.batches([3, 30, 5, 4, 6, 6, 1], 20)) == [[6, 0, 3, 2], [4, 5], [1]]
    assert list(engine_module.batches([], 20)) == []


def test_poolings_differ(llama: Path, tokens: list[list[int]]):
    last, mean = (TransformersEngine(llama, pooling, "float32").vectors(tokens[1:]) for pooling in ("last", "mean"))
    assert np.abs(last - mean).max() > 0.1


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("layer", [1, 2])
def test_vectors_of_a_layer_are_its_hidden_states(llama: Path, tokens: list[list[int]], layer: int, pooling: Any):
    """The last of both layers comes after the final norm, as without a layer."""
    found = TransformersEngine(llama, pooling, "float32", layer).vectors(tokens)
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).eval()
    for ids, vector in zip(tokens, found, strict=True):
        with torch.inference_mode():
            states_TD = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer][0].numpy()
        np.testing.assert_allclose(vector, states_TD[-1] if pooling == "last" else states_TD.mean(0), atol=1e-4)
    default = TransformersEngine(llama, pooling, "float32").vectors(tokens)
    assert np.allclose(found, default, atol=1e-4) == (layer == 2)


def test_a_layer_that_the_model_has_not_is_refused(llama: Path):
    with pytest.raises(ConfigError, match=r"extract\.layer = 3: .* has 2 layers; 0 is the last one"):
        open_engine(ExtractConfig(engine="transformers", dtype="float32", model=str(llama), layer=3))


def test_another_layer_than_the_last_is_not_vllms():
    assert engine_name(ExtractConfig(layer=1)) == "transformers"
    with pytest.raises(ValidationError, match="layer = 1: vLLM gives the hidden states of the last layer alone"):
        ExtractConfig(engine="vllm", layer=1)


def test_vectors_of_nothing_are_an_empty_matrix(llama: Path):
    assert TransformersEngine(llama, "last", "float32").vectors([]).shape == (0, 128)


def test_dtype_is_that_of_the_weights(llama: Path, tokens: list[list[int]]):
    half = TransformersEngine(llama, "last", "bfloat16")
    assert half.model.dtype == torch.bfloat16
    vectors = half.vectors(tokens)
    assert vectors.dtype == np.float32
    full = TransformersEngine(llama, "last", "float32").vectors(tokens)
    assert (vectors * full).sum() / np.linalg.norm(vectors) / np.linalg.norm(full) > 0.98


@pytest.mark.parametrize("limit", [1, 5])
def test_answers_are_greedy_and_no_longer_than_allowed(llama: Path, tokens: list[list[int]], limit: int):
    engine = TransformersEngine(llama, "last", "float32")
    answers = engine.answers(tokens, limit)
    assert len(answers) == len(PROMPTS)
    assert answers == engine.answers(tokens, limit)
    tokenizer = AutoTokenizer.from_pretrained(llama)
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).eval()
    for ids, answer in zip(tokens, answers, strict=True):
        alone = model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
            max_new_tokens=limit,
            do_sample=False,
            repetition_penalty=1.15,
            pad_token_id=tokenizer.pad_token_id,
        )[0, len(ids) :]
        assert len(alone) <= limit
        assert answer == tokenizer.decode(alone, skip_special_tokens=True).strip()


# --- tokens -------------------------------------------------------------------------------------------------------


def test_prompt_that_is_too_long_is_refused(llama: Path):
    ids = PromptTokenizer(llama, 1000)("x y z " * 20)
    assert PromptTokenizer(llama, len(ids))("x y z " * 20) == ids
    with pytest.raises(PromptTooLongError, match=rf"prompt of {len(ids)} tokens, allowed are {len(ids) - 1}; shorten"):
        PromptTokenizer(llama, len(ids) - 1)("x y z " * 20)


def test_answer_follows_the_prompt(llama: Path):
    tokenizer = PromptTokenizer(llama, 1000)
    both = tokenizer("question?", " answer")
    assert tokenizer.tokenizer.decode(both) == "question? answer"


@pytest.mark.parametrize(("pooling", "room"), [("last", 100), ("answer", 120)])
def test_answers_have_room_where_they_are_pooled(llama: Path, pooling: str, room: int):
    config = ExtractConfig(model=str(llama), dtype="float32", pooling=pooling, max_prompt_tokens=100, answer_tokens=20)
    assert open_tokenizer(config).max_tokens == room


# --- which engine, which model ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pooling", "expected"), [("last", "last"), ("mean", "mean"), ("answer", "last")])
def test_open_engine_reads_the_config(llama: Path, pooling: str, expected: str):
    engine = open_engine(ExtractConfig(engine="transformers", dtype="float32", model=str(llama), pooling=pooling))
    assert isinstance(engine, TransformersEngine)
    assert engine.pooling == expected
    assert engine.width == 128


@pytest.mark.parametrize("engine", ["vllm", "transformers"])
def test_a_named_engine_is_taken(engine: str):
    assert engine_name(ExtractConfig(engine=engine)) == engine


def test_a_missing_vllm_names_the_extra(llama: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(MissingExtraError, match=r"engine 'vllm': .*llm4msr\[gpu\].*extract\.engine = 'transformers'"):
        VllmEngine(llama, "last", "float32", 100, "vectors")


def test_local_folder_is_the_model(llama: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(llama.parent)
    assert models.resolve(llama.name) == llama
    assert models.find_local(str(llama)) == llama
    assert models.find_local("not/here") is None
    assert models.find_local(models.ALIAS) is None


@pytest.mark.parametrize("model", ["no-such-owner/no-such-model", "not a valid id!", "/absent/folder"])
def test_unknown_model_is_refused_with_what_can_be_given(model: str, offline: None):
    with pytest.raises(
        StorageError, match=r"neither a folder nor found on the Hugging Face hub .*'smollm2-135m'"
    ) as caught:
        models.resolve(model)
    assert f"extract.model = '{model}'" in str(caught.value)


def test_model_at_an_unreadable_uri_is_refused():
    with pytest.raises(StorageError, match=r"memory://models/absent: the model cannot be read"):
        models.resolve("memory://models/absent")
    assert models.find_local("memory://models/absent") is None


def test_parameters_are_counted_from_the_headers(llama: Path, tmp_path: Path):
    model = AutoModelForCausalLM.from_pretrained(llama)
    assert soundness.parameters(llama) == sum(p.numel() for p in model.parameters())
    assert soundness.parameters(tmp_path) == 0


SHARING = """
import sys
from llm4msr.config import ExtractConfig
from llm4msr.knowledge.engines import open_engine
e = ExtractConfig(engine="vllm", model=sys.argv[1], dtype="float32", max_prompt_tokens=60, engines_per_gpu=4)
engine = open_engine(e)
config = engine._load("pooling").llm_engine.vllm_config
print(config.cache_config.gpu_memory_utilization, config.parallel_config.tensor_parallel_size, engine.width)
"""


def test_an_engine_that_shares_a_gpu_takes_its_part_of_the_memory(llama: Path):
    """As vLLM's own config has it, which is the same on a CPU; in a process of its own, as an actor's."""
    pytest.importorskip("vllm")
    done = subprocess.run([sys.executable, "-c", SHARING, str(llama)], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["0.23 1 128"], done.stderr


def test_a_part_of_a_gpu_and_several_are_not_both():
    with pytest.raises(ValueError, match="engines_per_gpu"):
        ExtractConfig(engines_per_gpu=2, tensor_parallel=2)
