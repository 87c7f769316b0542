"""Checks of a model's folder before any engine starts: what is wrong with it is one message that names the file."""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors

from llm4msr.config import ExtractConfig
from llm4msr.errors import ConfigError, StorageError
from llm4msr.knowledge.engines import models

_POINTER = b"version https://git-lfs"
_WEIGHTS = {".safetensors", ".bin", ".gguf", ".pt"}
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
_POSITIONS = ("max_seq_length", "max_position_embeddings", "n_positions", "max_sequence_length", "seq_length", "n_ctx")
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers")


def check_model(folder: Path) -> None:
    """Look at each file that an engine will read.

    Raises:
        StorageError: one is missing, cut off, or only a pointer to the file.
    """
    files = models.files(folder)
    if not (folder / "config.json").exists():
        raise StorageError(f"{folder}: no config.json; give a folder in Hugging Face's layout")
    for file in files:
        if _starts_with(file, _POINTER):
            raise StorageError(f"{file}: a git-lfs pointer, not the file itself; run `git lfs pull` in its folder")
    for file in files:
        if file.suffix == ".json" and file.parent == folder:
            _read_json(file)
    if not any((folder / name).exists() for name in _VOCABULARIES) and not list(folder.glob("*.tiktoken")):
        raise StorageError(f"{folder}: no tokenizer; copy the model's tokenizer.json or tokenizer.model there")
    weights = [file.name for file in files if file.suffix in _WEIGHTS and file.parent == folder]
    if not weights:
        raise StorageError(f"{folder}: no weights; copy the model's *.safetensors there")
    if missing := sorted(_expected_weights(folder, weights) - set(weights)):
        raise StorageError(f"{folder / missing[0]}: missing; the model's weights lie in {len(missing)} file(s) more")
    for name in weights:
        if name.endswith(".safetensors"):
            _shapes(folder / name)


def parameters(folder: Path) -> int:
    """How many weights the model has, from the headers of its safetensors files; 0 without any.

    Raises:
        StorageError: one of them is no safetensors file.
    """
    return sum(math.prod(shape) for file in folder.glob("*.safetensors") for shape in _shapes(file))


def positions(folder: Path) -> int:
    """How many tokens the model can read, as its config.json says, or is meant to, if less; 0 if neither is said."""
    trained = folder / "sentence_bert_config.json"
    meant = _first_number(_read_json(trained), _POSITIONS) if trained.exists() else 0
    can = _first_number(_read_json(folder / "config.json"), _POSITIONS)
    return min(can, meant) if can and meant else can or meant


def _first_number(config: Any, keys: Sequence[str]) -> int:
    """The first of these keys that a model's configuration, or its part on text, has as a number; else 0."""
    for section in (config, config.get("text_config") or {}) if isinstance(config, dict) else ():
        for key in keys:
            if isinstance(section, dict) and isinstance(section.get(key), int) and section[key] > 0:
                return int(section[key])
    return 0


def layers(folder: Path) -> int:
    """How many layers the model has, as its config.json says; 0 if it does not."""
    return _first_number(_read_json(folder / "config.json"), _LAYERS)


def tokens_needed(config: ExtractConfig) -> int:
    """The most tokens that an engine reads and writes for one row."""
    writes = config.answers != "none" or config.pooling == "answer"
    return config.max_prompt_tokens + (config.answer_tokens if writes else 0)


def check_fit(config: ExtractConfig, folder: Path) -> None:
    """Compare the config's longest prompt with the model's positions, and its layer with the model's layers.

    Raises:
        ConfigError: the prompts and answers that the config allows are longer than the model can read, or it has no
            such layer.
    """
    if config.layer > (last := layers(folder)):
        raise ConfigError(f"extract.layer = {config.layer}: {config.model} has {last} layers; 0 is the last one")
    most, needed = positions(folder), tokens_needed(config)
    if not most or needed <= most:
        return
    answers = needed - config.max_prompt_tokens
    more = f" and extract.answer_tokens = {answers}" if answers else ""
    if most - answers >= 16:
        remedy = f"set extract.max_prompt_tokens to {most - answers} or less"
    else:
        remedy = f"set extract.answer_tokens to {max(most // 4, 1)} and extract.max_prompt_tokens to {most - most // 4}"
    raise ConfigError(
        f"extract.max_prompt_tokens = {config.max_prompt_tokens}{more}: "
        f"{config.model} reads {most} tokens at most; {remedy}"
    )


def _starts_with(file: Path, start: bytes) -> bool:
    try:
        with file.open("rb") as stream:
            return stream.read(len(start)) == start
    except OSError as error:
        raise StorageError(f"{file}: cannot be read ({error})") from None


def _read_json(file: Path) -> Any:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise StorageError(f"{file}: not JSON ({error}); copy the model again") from None
    if file.name == "config.json" and not isinstance(content, dict):
        raise StorageError(f"{file}: not a model's configuration; copy the model again")
    return content


def _expected_weights(folder: Path, weights: list[str]) -> set[str]:
    """Names of the weight files that an index lists, or that numbered names imply."""
    names: set[str] = set()
    for name in weights:
        if numbered := re.fullmatch(r"(.+)-\d{5}-of-(\d{5})(\..+)", name):
            names |= {f"{numbered[1]}-{at:05d}-of-{numbered[2]}{numbered[3]}" for at in range(1, int(numbered[2]) + 1)}
    file = folder / "model.safetensors.index.json"
    if file.exists():
        index = _read_json(file)
        weight_map = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(weight_map, dict):
            raise StorageError(f"{file}: no weight_map; copy the model again")
        names |= {str(name) for name in weight_map.values()}
    return names


def _shapes(file: Path) -> list[list[int]]:
    """Of the tensors in a safetensors file; its header is compared with the file's length on the way."""
    try:
        with safetensors.safe_open(file, "np") as tensors:
            return [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise StorageError(f"{file}: not whole safetensors ({error}); copy the model again") from None
