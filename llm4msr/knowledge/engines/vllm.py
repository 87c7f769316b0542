"""The fast engine: vLLM, on a GPU or with its CPU build. The only module that imports vLLM."""

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal

import numpy as np
from filelock import FileLock

from llm4msr.arrays import Singles
from llm4msr.errors import MissingExtraError
from llm4msr.knowledge.engines import models
from llm4msr.knowledge.engines.base import REPETITION_PENALTY, Billed, JsonSchema, Pooling, Task
from llm4msr.storage import cache

if TYPE_CHECKING:
    from vllm import LLM, SamplingParams

# The engine runs inside our actor's process: Ray already isolates it, and start-up is four times shorter.
# Threads follow OMP_NUM_THREADS, which Ray sets from the actor's CPUs.
for _name, _value in {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}.items():
    os.environ.setdefault(_name, _value)

PREFIX_BLOCK = 32
"""Tokens per block of the prefix cache: small blocks share more of the instruction."""
GPU_MEMORY = 0.92
"""Share of a GPU's memory that engines take, as vLLM has it."""


class VllmEngine:
    """An `Engine`. vLLM either pools or generates: the other task loads the model anew."""

    def __init__(
        self,
        folder: Path,
        pooling: Pooling,
        dtype: str,
        max_tokens: int,
        task: Task,
        gpus: float = 1,
        quantization: str = "",
    ):
        """Load the model in `folder` for this task; `max_tokens` are the most of a prompt and its answer.

        Its weights are spread over so many `gpus`, or it has a part of one.

        Raises:
            MissingExtraError: vLLM is not installed.
        """
        try:
            import vllm
            import vllm.config.pooler
        except ImportError as error:
            raise MissingExtraError(
                f"engine 'vllm': {error}; install it with `pip install 'llm4msr[gpu]'` (on CPUs see docs/knowledge.md) "
                "or use extract.engine = 'transformers'"
            ) from None
        self._vllm: ModuleType = vllm
        self._folder, self._pooling, self._dtype, self._max_tokens = folder, pooling, dtype, max_tokens
        self._weights: dict[str, object] = {
            "tensor_parallel_size": max(1, round(gpus)),
            "quantization": quantization or None,
        }
        self._shares_gpu = gpus < 1
        if self._shares_gpu:
            self._weights["gpu_memory_utilization"] = GPU_MEMORY * gpus
        self.cached_tokens, self.billed, self.refused = 0, Billed(), dict[int, str]()
        self._runner = ""
        self._llm: LLM | None = None
        self._load("generate" if task == "answers" else "pooling")

    @property
    def width(self) -> int:
        """Width D of the hidden state."""
        return int(self._load("pooling").model_config.get_hidden_size())

    def vectors(self, tokens: Sequence[list[int]]) -> Singles:
        """Pooled hidden states, float32 [N, D]; the prompts' common prefix is computed once.

        vLLM ends a request for them with its prefill: it schedules one token (`vllm.v1.request`), and decodes none.

        What earlier calls left in the prefix cache is dropped, so that the last bits of a shard's vectors do not
        depend on which shards this actor had before.
        """
        llm = self._load("pooling")
        llm.reset_prefix_cache()
        outputs = llm.embed([{"prompt_token_ids": ids} for ids in tokens], use_tqdm=False)
        self.cached_tokens = sum(output.num_cached_tokens for output in outputs)
        return np.asarray([output.outputs.embedding for output in outputs], dtype=np.float32)

    def answers(
        self, tokens: Sequence[list[int]], max_tokens: int, schemas: Sequence[JsonSchema] | None = None
    ) -> list[str]:
        """Greedy answers, held to their schemas."""
        prompts = [{"prompt_token_ids": ids} for ids in tokens]
        plain = self._greedy(max_tokens)
        params = plain if schemas is None else [self._greedy(max_tokens, schema) for schema in schemas]
        outputs = self._load("generate").generate(prompts, params, use_tqdm=False)
        self.cached_tokens = sum(output.num_cached_tokens or 0 for output in outputs)
        return [output.outputs[0].text.strip() for output in outputs]

    def _greedy(self, max_tokens: int, schema: JsonSchema | None = None) -> "SamplingParams":
        structured = self._vllm.sampling_params.StructuredOutputsParams(json=schema) if schema is not None else None
        return self._vllm.SamplingParams(
            temperature=0.0,
            max_tokens=max_tokens,
            repetition_penalty=REPETITION_PENALTY,
            structured_outputs=structured,
        )

    def _turn(self) -> AbstractContextManager[object]:
        """On a GPU that is shared, vLLM takes for its own what others claim while it looks how much memory it needs."""
        return FileLock(cache.root() / "engine.lock") if self._shares_gpu else nullcontext()

    def _load(self, runner: Literal["generate", "pooling"]) -> "LLM":
        """The model as it is loaded for `runner`."""
        if self._llm is None or runner != self._runner:
            self._llm = None  # let the other instance's memory go first
            settings: dict[str, object] = {}
            if runner == "pooling":
                kind = {"last": "LAST", "mean": "MEAN"}[self._pooling]
                pooler = self._vllm.config.pooler.PoolerConfig(seq_pooling_type=kind, use_activation=False)
                settings = {"convert": "embed", "pooler_config": pooler}
            else:  # blanks without end would be valid JSON too
                settings = {"structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True}}
            with models.quiet(), self._turn():
                self._llm = self._vllm.LLM(
                    str(self._folder),
                    runner=runner,
                    dtype=self._dtype,
                    max_model_len=self._max_tokens,
                    enforce_eager=True,
                    enable_prefix_caching=self._pooling == "last",
                    block_size=PREFIX_BLOCK,
                    **self._weights,
                    **settings,
                )
            self._runner = runner
        return self._llm
