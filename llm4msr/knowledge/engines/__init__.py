"""The frozen LLM behind one protocol, run by vLLM or by transformers, or by whoever runs an endpoint."""

import importlib.util
from pathlib import Path

from llm4msr.config import ExtractConfig
from llm4msr.errors import ConfigError, LLM4MSRError, StorageError
from llm4msr.knowledge.engines import models, soundness
from llm4msr.knowledge.engines.base import Billed, Engine, Pooling, Task, Tokenizer
from llm4msr.knowledge.engines.letters import Letters
from llm4msr.knowledge.engines.tokens import PromptTokenizer
from llm4msr.text import first_line


def engine_name(config: ExtractConfig) -> str:
    """`auto` is vLLM where it is installed and can give the layer, else transformers."""
    if config.engine != "auto":
        return config.engine
    return "vllm" if not config.layer and importlib.util.find_spec("vllm") else "transformers"


def open_engine(config: ExtractConfig, task: Task = "vectors", encoder: bool = False) -> Engine:
    """Load the configured model, an LLM or an `encoder`, with the configured engine, ready for this task.

    Raises:
        ConfigError: a setting is not the engine's, or prompts may be longer than the model can read.
        MissingExtraError: the engine's package is not installed.
        StorageError: the model cannot be found or loaded, or no endpoint answers.
    """
    if config.engine == "http":
        from llm4msr.knowledge.engines.http import HttpEngine

        return HttpEngine(config, task)
    name, folder = engine_name(config), models.resolve(config.model)
    if name == "transformers" and (config.tensor_parallel > 1 or config.quantization):
        raise ConfigError(
            "extract.tensor_parallel and extract.quantization are vLLM's; the engine here is transformers: "
            "install vLLM (extra gpu or cpu) or leave them out"
        )
    soundness.check_model(folder)
    soundness.check_fit(config, folder)
    try:
        return _load(config, name, folder, task, encoder)
    except LLM4MSRError:
        raise
    except Exception as error:
        raise StorageError(
            f"{folder}: {name} cannot load this model ({type(error).__name__}: {first_line(error)}); "
            "check its files, the memory of this machine, and extract.dtype"
        ) from error


def _load(config: ExtractConfig, name: str, folder: Path, task: Task, encoder: bool) -> Engine:
    assert config.dtype != "auto", "number_format.settle comes before"
    pooling: Pooling = "last" if config.pooling == "answer" else config.pooling
    if name == "vllm":
        from llm4msr.knowledge.engines.vllm import VllmEngine

        max_tokens = soundness.tokens_needed(config)
        gpus = config.tensor_parallel / config.engines_per_gpu
        return VllmEngine(folder, pooling, config.dtype, max_tokens, task, gpus, config.quantization)
    from llm4msr.knowledge.engines.transformers import TransformersEngine

    return TransformersEngine(folder, pooling, config.dtype, config.layer, encoder)


def open_tokenizer(config: ExtractConfig, own_text: bool = False, task: Task = "vectors") -> Tokenizer:
    """The configured model's tokenizer, without its weights; for `own_text` without the chat template.

    An endpoint's chat reads text, and so does its model of vectors unless `http_tokenizer` names its tokenizer.

    Raises:
        StorageError: the model cannot be found, or has no tokenizer that can be used.
    """
    if config.engine == "http":
        from llm4msr.knowledge.engines import http

        if task == "answers" or not config.http_tokenizer:
            return Letters(config.max_prompt_tokens)
        return PromptTokenizer(http.tokenizer_folder(config), config.max_prompt_tokens, framed=not own_text)
    room = config.answer_tokens if config.pooling == "answer" else 0
    return PromptTokenizer(models.resolve(config.model), config.max_prompt_tokens + room, framed=not own_text)


def model_revision(config: ExtractConfig) -> str:
    """Identity of the configured model.

    Raises:
        StorageError: it cannot be found or read.
    """
    if config.engine == "http":
        from llm4msr.knowledge.engines import http

        return http.revision(config)
    return models.revision(models.resolve(config.model))


__all__ = [
    "Billed",
    "Engine",
    "Letters",
    "PromptTokenizer",
    "Task",
    "Tokenizer",
    "engine_name",
    "model_revision",
    "models",
    "open_engine",
    "open_tokenizer",
]
