"""The explorer behind Ray Serve, below /explore: an application of its own beside the ranker's.

The LLM, where an edited history is asked of it, has a replica of its own and opens in the background, since one looks
around before one edits.
"""

import asyncio
import logging
import threading
from typing import Any

import numpy as np
from fastapi import FastAPI

from llm4msr import ray_session
from llm4msr.arrays import Singles
from llm4msr.config import Config
from llm4msr.errors import ConfigError
from llm4msr.explain.explorer.histories import asks_llm
from llm4msr.explain.explorer.routes import explorer_app
from llm4msr.explain.explorer.view import View
from llm4msr.knowledge import number_format
from llm4msr.knowledge.engines import Engine, Tokenizer, open_engine, open_tokenizer
from llm4msr.knowledge.engines.tokens import ControlTokenError, PromptTooLongError
from llm4msr.knowledge.extract import check_same_model
from llm4msr.serve import api_token
from llm4msr.serve.app import APP, EVENTS
from llm4msr.serve.event_log import LoggedEvent
from llm4msr.storage import StageOutput
from llm4msr.training.trained import TrainedModel

log = logging.getLogger("ray.serve")

NAME, LLM, PREFIX = "explorer", "llm", "/explore"
WAIT_S = 180.0
"""Seconds that a request waits for the LLM, which may still be opening."""
EVENTS_S, MOST_EVENTS = 5.0, 50
"""Seconds that a request waits for the log of events, and how many it shows of a user."""


class FrozenLLM:
    """The LLM that read the run's users; it turns a prompt into a vector."""

    def __init__(self, config: Config, extracted: StageOutput):
        self._config, self._extracted = number_format.as_made(config, extracted), extracted
        self._lock = threading.Lock()
        self._llm: tuple[Tokenizer, Engine] | None = None
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


def application(model: TrainedModel, plain: TrainedModel | None, token_required: bool, calibrated: bool = False) -> Any:
    """The Ray Serve application; Ray must be connected. The LLM is started where an edited history is asked of it.

    Args:
        model: whose rankings are explored.
        plain: the model without knowledge beside it, where it is trained.
        token_required: whether each process must have an API token.
        calibrated: whether the bundle that is served calibrates its scores.
    """
    import ray
    from ray import serve

    def page() -> FastAPI:
        api_token.check_node(token_required)
        config = model.config.serve
        told = read_events if config.events else None
        return explorer_app(View(model, plain, _read_prompt, told, calibrated), config)

    explorer: Any = serve.deployment(name=NAME, ray_actor_options={"num_cpus": 0})(serve.ingress(page)())
    if not asks_llm(model.config):
        return explorer.bind()
    options = {"num_cpus": 1, "num_gpus": int(ray.cluster_resources().get("GPU", 0) >= 1)}
    llm: Any = serve.deployment(name=LLM, ray_actor_options=options)(FrozenLLM)
    return explorer.bind(llm.bind(model.config, model.extracted))


@ray_session.unwrap_errors
def _read_prompt(prompt: str) -> Singles:
    from ray import serve

    llm = serve.get_deployment_handle(LLM, app_name=NAME)
    vector: Singles = llm.read.remote(prompt).result(timeout_s=WAIT_S)
    return vector


def read_events(user_id: str) -> list[LoggedEvent] | None:
    """Of the log that the endpoint beside it keeps; None where it does not answer."""
    from ray import serve

    try:
        event_log = serve.get_deployment_handle(EVENTS, app_name=APP)
        events: list[LoggedEvent] = event_log.of.remote(user_id, MOST_EVENTS).result(timeout_s=EVENTS_S)
    except Exception as error:  # it is being restarted, its disk is damaged, or its queue is full
        log.error(f"a user without newer events: {type(error).__name__}: {error}"[:1000])
        return None
    return events
