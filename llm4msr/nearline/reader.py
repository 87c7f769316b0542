"""An LLM that is kept open, and the coder of a bundle in service: users' histories -> codes for that bundle."""

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from llm4msr import storage
from llm4msr.arrays import Halves, strings
from llm4msr.bundle import files
from llm4msr.config import Config
from llm4msr.errors import ConfigError, EndpointError
from llm4msr.export.refresh import Served, check_origin
from llm4msr.knowledge import number_format
from llm4msr.knowledge.engines import Engine, open_engine, open_tokenizer
from llm4msr.knowledge.engines.tokens import ControlTokenError, PromptTooLongError
from llm4msr.knowledge.extract import check_same_model
from llm4msr.knowledge.forget import ids_to_forget
from llm4msr.knowledge.prompts import render
from llm4msr.nearline import histories
from llm4msr.serve.event_log import LoggedEvent
from llm4msr.storage import StageOutput
from llm4msr.storage.local_copy import open_local

log = logging.getLogger("ray.serve")


def check(config: Config, served: Served) -> None:
    """Refuse what no LLM reads, or what could not be read again here.

    Raises:
        ConfigError: names the key.
    """
    if not config.serve.events:
        raise ConfigError("serve.nearline: there are no events to read; set serve.events")
    if not served.needs_knowledge:
        raise ConfigError("serve.nearline: no LLM has read the users of this model; leave it out")
    if config.extract.pooling == "answer":
        raise ConfigError("serve.nearline: vectors from answers are not made here; leave it out (extract.pooling)")


class Reader:
    """Reads users again.

    Args:
        config: the run's.
        prepared: what is known of users before their events.
        extracted: the extraction that the served model was trained on, or a newer one by the same LLM.
        served: the bundle.

    Raises:
        ConfigError: the bundle was trained on vectors of another LLM.
        StorageError: the model cannot be loaded, or the bundle is damaged.
    """

    def __init__(self, config: Config, prepared: StageOutput, extracted: StageOutput, served: Served):
        folder, self._prepared = served.output.folder, prepared
        self._config = number_format.as_made(config, extracted)
        check_same_model(self._config, extracted)
        check_origin(config, extracted, served)
        self._tokenizer, self._engine = open_tokenizer(self._config.extract), open_engine(self._config.extract)
        self._code = files.read_coder(folder, served.description, served.output.checksum(files.CODER))
        self._local = open_local(str(folder))  # held as long as its items are mapped
        self._items = files.read_items(self._local.folder)
        self._scenarios = served.description.scenarios[1:]
        self._forget = {*strings(ids_to_forget(config))}
        self.coder = storage.digest_file(folder / files.CODER)
        """Checksum of the bundle's coder, as its codes name it."""
        self.identity = storage.digest_json([self.coder, prepared.manifest.fingerprint, sorted(self._forget)])
        """Of all that decides a code but the events."""

    def codes(self, told: Mapping[str, Sequence[LoggedEvent]]) -> dict[str, Halves]:
        """The code of each user, float16 [K], as far as the events change what is liked and the LLM can read it."""
        stored = histories.read(self._prepared, [user for user in told if user not in self._forget])
        liked = {
            user: histories.extend(stored.get(user, {}), events, self._title, self._scenarios)
            for user, events in told.items()
        }
        users = [user for user, one in liked.items() if one != stored.get(user, {})]
        prompts = strings(render.user_prompts(histories.table([liked[user] for user in users]), self._config)["prompt"])
        tokens = {user: ids for user, prompt in zip(users, prompts, strict=True) if (ids := self._tokens(prompt))}
        if not tokens:
            return {}
        z_NZ = readable_vectors(self._engine, [*tokens.values()], self._tokenizer("a"))
        finite_N = np.asarray(np.isfinite(z_NZ).all(axis=1))
        with torch.inference_mode():
            code_NK = self._code(torch.from_numpy(z_NZ[finite_N]), torch.ones(int(finite_N.sum()), dtype=torch.bool))
        read = [user for user, finite in zip(tokens, finite_N, strict=True) if finite]
        return dict(zip(read, code_NK.half().numpy(), strict=True))

    def _title(self, item_id: str) -> str:
        row = self._items.find(item_id)
        return "" if row < 0 else self._items.texts["title"][row].decode()

    def _tokens(self, prompt: str) -> list[int]:
        """None of a prompt that cannot be read, as extraction counts it as failed."""
        try:
            return self._tokenizer(prompt) if prompt else []
        except (PromptTooLongError, ControlTokenError):
            return []


def readable_vectors(engine: Engine, tokens: Sequence[list[int]], probe: list[int]) -> Halves:
    """Vectors of prompts, float16 [N, Z]; not finite where the LLM fails on a prompt though it can read the `probe`.

    Raises:
        Exception: the engine's, if it cannot read that either.
    """
    try:
        with np.errstate(over="ignore"):
            return engine.vectors(tokens).astype(np.float16)
    except EndpointError:
        raise  # no prompt's fault
    except Exception as error:
        if len(tokens) > 1:
            return np.concatenate([readable_vectors(engine, [one], probe) for one in tokens])
        log.error(f"a user's prompt cannot be read: {type(error).__name__}: {error}"[:1000])
        return np.full_like(engine.vectors([probe]), np.nan, np.float16)
