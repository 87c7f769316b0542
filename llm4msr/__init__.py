"""LLM4MSR on Ray: a frozen LLM's knowledge, extracted once offline, in a small fast multi-scenario ranker.

The stages are functions of `llm4msr.pipeline`, from a config to an output. What is named here is loaded when it is
first used, so that a client, or the command line's help, loads neither torch nor Ray.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm4msr.bundle.messages import RankRequest, RankResponse
    from llm4msr.bundle.ranker import Ranker
    from llm4msr.config import Config, load
    from llm4msr.errors import LLM4MSRError
    from llm4msr.pipeline import run
    from llm4msr.run_result import RunResult
    from llm4msr.serve.client import RankClient

__version__ = "0.1.0"
__all__ = [
    "Config",
    "LLM4MSRError",
    "RankClient",
    "RankRequest",
    "RankResponse",
    "Ranker",
    "RunResult",
    "__version__",
    "load",
    "run",
]

_HOMES = {
    "Config": "config",
    "LLM4MSRError": "errors",
    "RankClient": "serve.client",
    "RankRequest": "bundle.messages",
    "RankResponse": "bundle.messages",
    "Ranker": "bundle.ranker",
    "RunResult": "run_result",
    "load": "config",
    "run": "pipeline",
}
_MOVED = {"prepare", "extract", "train", "evaluate", "refresh"}
"""Functions of this package until version 0.1."""


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    moved = f"; it is llm4msr.pipeline.{name} now" if name in _MOVED else ""
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{moved}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
