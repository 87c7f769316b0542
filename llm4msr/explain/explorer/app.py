"""The explorer behind Ray Serve, below /explore: an application of its own beside the ranker's.

The LLM has a replica of its own and opens in the background, since one looks around before one edits a history.
"""

import asyncio
import threading
from typing import Any

import numpy as np
from fastapi import FastAPI

from llm4msr import ray_session
from llm4msr.arrays import Singles
from llm4msr.config import Config
from llm4msr.errors import ConfigError
from llm4msr.explain.explorer.routes import explorer_app
from llm4msr.explain.explorer.view import View
from llm4msr.knowledge import number_format
from llm4msr.knowledge.engines import Engine, PromptTokenizer, open_engine, open_tokenizer
from llm4msr.knowledge.engines.tokens import ControlTokenError, PromptTooLongError
from llm4msr.knowledge.extract import check_same_model
from llm4msr.serve import api_token
from llm4msr.storage import StageOutput
from llm4msr.training.trained import TrainedModel

NAME, LLM, PREFIX = "explorer", "llm", "/explore"
WAIT_S = 180.0
"""Seconds that a request waits for the LLM, which may still be opening."""


class FrozenLLM:
    """The LLM that read the run's users; it turns a prompt into a vector."""

    def __init__(self, config: Config, extracted: StageOutput):
        self._config, self._extracted = number_format.as_made(config, extracted), extracted
        self._lock = threading.Lock()
        self._llm: tuple[PromptTokenizer, Engine] | None = None
        threading.Thread(target=self._vector, daemon=True).start()

    async def read(self, prompt: str) -> Singles:
        """The prompt's vector, float32 [Z].

        Raises:
            ConfigError: the prompt is too long, or holds a control token.
        """
        return await asyncio.to_thread(self._vector, prompt)

    def _vector(self, prompt: str = "") -> Singles:
        with self._lock:
            if self._llm is None:
                check_same_model(self._config, self._extracted)
                self._llm = open_tokenizer(self._config.extract), open_engine(self._config.extract)
            tokenizer, engine = self._llm
            try:
                tokens = tokenizer(prompt or "ready")
            except (PromptTooLongError, ControlTokenError) as error:
                raise ConfigError(f"history: {error}") from None
            return np.asarray(engine.vectors([tokens])[0])


def application(model: TrainedModel, token_required: bool) -> Any:
    """The Ray Serve application; Ray must be connected."""
    import ray
    from ray import serve

    def page() -> FastAPI:
        api_token.check_node(token_required)

        @ray_session.unwrap_errors
        def read_prompt(prompt: str) -> Singles:
            llm = serve.get_deployment_handle(LLM, app_name=NAME)
            vector: Singles = llm.read.remote(prompt).result(timeout_s=WAIT_S)
            return vector

        return explorer_app(View(model, read_prompt), model.config.serve)

    options = {"num_cpus": 1, "num_gpus": int(ray.cluster_resources().get("GPU", 0) >= 1)}
    llm: Any = serve.deployment(name=LLM, ray_actor_options=options)(FrozenLLM)
    explorer: Any = serve.deployment(name=NAME, ray_actor_options={"num_cpus": 0})(serve.ingress(page)())
    return explorer.bind(llm.bind(model.config, model.extracted))
