"""LLM4MSR on Ray: a frozen LLM's knowledge, extracted once offline, in a small fast multi-scenario ranker."""

from llm4msr.api import RankRequest, RankResponse
from llm4msr.config import Config, load
from llm4msr.errors import LLM4MSRError
from llm4msr.evaluate import evaluate
from llm4msr.explain import explain
from llm4msr.export import export
from llm4msr.extract import extract
from llm4msr.prepare import prepare
from llm4msr.rank import Ranker
from llm4msr.refresh import refresh
from llm4msr.run import run
from llm4msr.train import train

__all__ = [
    "Config",
    "LLM4MSRError",
    "RankRequest",
    "RankResponse",
    "Ranker",
    "evaluate",
    "explain",
    "export",
    "extract",
    "load",
    "prepare",
    "refresh",
    "run",
    "train",
]
