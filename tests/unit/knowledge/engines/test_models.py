"""Which model it is: each byte of it counts, copies follow what lies at a URI, and broken folders are told early."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch

from llm4msr import storage
from llm4msr.config import ExtractConfig
from llm4msr.errors import ConfigError, StorageError
from llm4msr.knowledge.engines import models, open_engine, open_tokenizer, soundness
from llm4msr.knowledge.engines.transformers import TransformersEngine
from tests.support.data import flip_a_bit


@pytest.fixture
def copied(llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama, tmp_path / "copy"))


# --- revision -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0.0, 0.1, 0.5, 0.731, 1.0])
def test_one_bit_anywhere_in_the_weights_is_another_revision(copied: Path, at: float, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(models, "CHUNK", 1 << 16)  # so that several pieces are read side by side
    before = models.revision(copied)
    flip_a_bit(copied / "model.safetensors", at)
    assert models.revision(copied) != before
    flip_a_bit(copied / "model.safetensors", at)
    assert models.revision(copied) == before


def test_every_file_that_an_engine_may_read_counts(copied: Path, llama: Path):
    seen = {models.revision(copied)}
    assert seen == {models.revision(llama)}
    for name in (
        "modeling.py",
        "1_Pooling/config.json",
        "chat_template.jinja",
        "vocab.tiktoken",
        "adapter_config.json",
    ):
        (copied / name).parent.mkdir(exist_ok=True)
        (copied / name).write_text("{}")
        seen.add(models.revision(copied))
    (copied / "1_Pooling/config.json").rename(copied / "config_of_pooling.json")
    seen.add(models.revision(copied))
    for name in ("config.json", "tokenizer.json", "generation_config.json"):
        changed = json.loads((copied / name).read_text()) | {"added": 1}
        (copied / name).write_text(json.dumps(changed))
        seen.add(models.revision(copied))
    assert len(seen) == 10


def test_documents_and_hidden_files_are_no_part_of_the_model(copied: Path):
    first = models.revision(copied)
    for name in ("README.md", "figure.PNG", ".gitattributes", ".cache/huggingface/config.json"):
        (copied / name).parent.mkdir(parents=True, exist_ok=True)
        (copied / name).write_text("not part of the model")
    assert models.revision(copied) == first


def test_a_file_whose_name_is_not_utf8_counts(copied: Path):
    first = models.revision(copied)
    Path(os.fsdecode(os.fsencode(copied) + b"/caf\xe9.txt")).write_text("x")
    assert models.revision(copied) != first


# --- a model at a URI ---------------------------------------------------------------------------------------------


def upload(folder: Path, uri: str) -> None:
    for file in folder.iterdir():
        storage.write_bytes(storage.path(uri) / file.name, file.read_bytes())


def test_a_model_at_a_uri_is_copied_once(llama: Path, capsys: pytest.CaptureFixture[str]):
    uri = "memory://models/once"
    upload(llama, uri)
    assert models.find_local(uri) is None
    folder = models.resolve(uri)
    assert capsys.readouterr().err == f"  fetching {uri}, once on this machine\n"
    stamp = (folder / "config.json").stat().st_mtime_ns
    assert models.find_local(uri) == models.resolve(uri) == folder
    assert (folder / "config.json").stat().st_mtime_ns == stamp
    assert models.revision(folder) == models.revision(llama)
    tokens = [[1, 2, 3]]
    one, two = (TransformersEngine(f, "last", "float32").vectors(tokens) for f in (folder, llama))
    np.testing.assert_array_equal(one, two)
    assert capsys.readouterr().err == ""
    storage.remove(storage.path(uri))
    assert models.resolve(uri) == folder
    assert f"{uri}: cannot be read now; the copy of {folder} is used" in capsys.readouterr().err


def test_a_model_that_changes_behind_its_uri_is_fetched_again(copied: Path):
    uri = "memory://models/swapped"
    upload(copied, uri)
    first = models.resolve(uri)
    flip_a_bit(copied / "model.safetensors")
    upload(copied, uri)
    assert models.find_local(uri) is None
    second = models.resolve(uri)
    assert models.revision(first) != models.revision(second) == models.revision(copied)
    assert models.resolve(uri) == second


def test_a_uri_of_this_machine_is_its_folder(llama: Path):
    assert models.resolve(llama.as_uri()) == models.find_local(llama.as_uri()) == llama


def test_a_model_of_the_hub_is_pinned_to_its_commit(tmp_path: Path):
    commit = tmp_path / "models--owner--name" / "snapshots" / "0123abcd"
    commit.mkdir(parents=True)
    assert models.pin("owner/name", commit) == "owner/name@0123abcd"
    assert models.pin("owner/name@main", commit) == "owner/name@0123abcd"
    for model in (models.ALIAS, "memory://bucket/model", str(tmp_path)):
        assert models.pin(model, tmp_path) == model
    assert models.pin(str(commit), commit) == str(commit)


# --- broken folders -----------------------------------------------------------------------------------------------


def pointer(file: Path) -> None:
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 269060552\n")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


def longer(file: Path) -> None:
    file.write_bytes(file.read_bytes() + bytes(8))


def only_the_first_of_two(file: Path) -> None:
    file.rename(file.with_name("model-00001-of-00002.safetensors"))


def half_of_the_index(file: Path) -> None:
    places = {"a": "model.safetensors", "b": "other.safetensors"}
    file.with_name("model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


BROKEN = [
    ("model.safetensors", pointer, r"model\.safetensors: a git-lfs pointer, .*git lfs pull"),
    ("tokenizer.json", pointer, r"tokenizer\.json: a git-lfs pointer"),
    ("model.safetensors", Path.unlink, r"copy: no weights"),
    ("model.safetensors", cut, r"model\.safetensors: not whole safetensors"),
    ("model.safetensors", longer, r"model\.safetensors: not whole safetensors"),
    ("model.safetensors", lambda f: f.write_bytes(b""), r"model\.safetensors: not whole safetensors"),
    ("model.safetensors", lambda f: f.write_bytes(b"\xff" * 4096), r"model\.safetensors: not whole safetensors"),
    ("model.safetensors", only_the_first_of_two, r"model-00002-of-00002\.safetensors: missing"),
    ("model.safetensors", half_of_the_index, r"other\.safetensors: missing"),
    ("tokenizer.json", Path.unlink, r"copy: no tokenizer"),
    ("tokenizer.json", lambda f: f.write_text("{}"), r"copy: the tokenizer cannot be loaded"),
    ("tokenizer.json", cut, r"tokenizer\.json: not JSON"),
    ("config.json", Path.unlink, r"copy: no config\.json"),
    ("config.json", lambda f: f.write_text("<html>404</html>"), r"config\.json: not JSON"),
    ("config.json", lambda f: f.write_text("[]"), r"config\.json: not a model's configuration"),
]


@pytest.mark.parametrize(("name", "breaks", "told"), BROKEN)
def test_a_broken_folder_is_told_with_its_file(copied: Path, name: str, breaks: Callable[[Path], None], told: str):
    breaks(copied / name)
    with pytest.raises(StorageError, match=told):
        checked(copied)


def checked(folder: Path) -> None:
    """What `extract` looks at before any engine starts."""
    soundness.check_model(folder)
    open_tokenizer(ExtractConfig(model=str(folder)))


def test_a_sound_folder_passes(llama: Path):
    soundness.check_model(llama)


def test_weights_that_are_missing_are_not_made_up(copied: Path):
    weights = safetensors.torch.load_file(copied / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    safetensors.torch.save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StorageError, match=r"copy: no weights for model\.layers\.1\.mlp\.up_proj\.weight \(1 are"):
        open_engine(ExtractConfig(engine="transformers", dtype="float32", model=str(copied)))


def test_weights_of_another_shape_are_named(copied: Path):
    changed(copied / "config.json", intermediate_size=192)
    told = r"layers\.0\.mlp\.down_proj\.weight are \[128, 256\], and config\.json says \[128, 192\] \(6 differ"
    with pytest.raises(StorageError, match=told):
        open_engine(ExtractConfig(engine="transformers", dtype="float32", model=str(copied)))


def test_code_that_a_model_brings_is_not_run_and_nobody_is_asked(copied: Path, capfd: pytest.CaptureFixture[str]):
    changed(copied / "config.json", model_type="own", auto_map={"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"})
    (copied / "own.py").write_text("raise SystemExit('the code ran')")
    with pytest.raises(StorageError, match="custom code"):
        open_engine(ExtractConfig(engine="transformers", dtype="float32", model=str(copied)))
    assert "[y/N]" not in capfd.readouterr().out


def test_a_tokenizer_of_another_model_is_told(llama: Path):
    engine = open_engine(ExtractConfig(engine="transformers", dtype="float32", model=str(llama)))
    with pytest.raises(StorageError, match=r"token 5000 of 400 .* its tokenizer is another model's"):
        engine.vectors([[3, 5000], [1]])


def changed(file: Path, **keys: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))


def test_what_an_engine_raises_while_it_loads_is_one_message(copied: Path):
    config = json.loads((copied / "config.json").read_text()) | {"model_type": "no-such-kind", "architectures": ["X"]}
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(StorageError, match=r"copy: transformers cannot load this model \(\w+: ") as caught:
        open_engine(ExtractConfig(engine="transformers", dtype="float32", model=str(copied)))
    assert "\n" not in str(caught.value)


# --- positions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"max_prompt_tokens": 4000}, None),
        (
            {"max_prompt_tokens": 4001},
            r"max_prompt_tokens = 4001 and extract\.answer_tokens = 96: .* set .* to 4000 or",
        ),
        ({"max_prompt_tokens": 4096, "answers": "none"}, None),
        (
            {"max_prompt_tokens": 4097, "answers": "none"},
            r"max_prompt_tokens = 4097: .* reads 4096 tokens at most; set ",
        ),
        ({"max_prompt_tokens": 4096, "answers": "none", "pooling": "answer"}, "set extract.max_prompt_tokens to 4000"),
        ({"answer_tokens": 4090}, "set extract.answer_tokens to 1024 and extract.max_prompt_tokens to 3072"),
    ],
)
@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_the_longest_prompt_is_compared_with_the_models_positions(
    llama: Path, engine: str, changes: dict[str, object], told: str | None
):
    config = ExtractConfig.model_validate({"model": str(llama), "engine": engine} | changes)
    if told is None:
        soundness.check_fit(config, llama)
        return
    with pytest.raises(ConfigError, match=told):
        open_engine(config)


@pytest.mark.parametrize(
    ("about", "found"),
    [({"n_positions": 512}, 512), ({"text_config": {"max_position_embeddings": 99}}, 99), ({}, 0), ({"n_ctx": "x"}, 0)],
)
def test_positions_have_several_names(tmp_path: Path, about: dict[str, object], found: int):
    (tmp_path / "config.json").write_text(json.dumps(about))
    assert soundness.positions(tmp_path) == found
