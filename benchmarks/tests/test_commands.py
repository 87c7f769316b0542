"""The commands of benchmarks that documents show parse, and the cluster's benchmark runs the README's command."""

import importlib
import json

import pytest

from benchmarks import _cluster, cluster_run
from tests.support.documents import DOCUMENTS, shell_lines
from tests.support.experiments import ROOT


def documented_commands() -> list[tuple[str, list[str]]]:
    """Module and arguments of each `python -m benchmarks.MODULE ...` that a document shows."""
    lines = [words for document in DOCUMENTS for words in shell_lines(document)]
    pairs = [(words, at) for words in lines for at, word in enumerate(words[:-1]) if word == "-m"]
    commands = [(words[at + 1], words[at + 2 :]) for words, at in pairs]
    return [(module, arguments) for module, arguments in commands if module.startswith("benchmarks.")]


@pytest.mark.parametrize(("module", "arguments"), documented_commands())
def test_documented_commands_parse(module: str, arguments: list[str]) -> None:
    importlib.import_module(module).parser().parse_args(arguments)


def test_the_cluster_test_gives_the_command_of_the_readme() -> None:
    readme = (ROOT / "cluster" / "README.md").read_text()
    assert f"--runtime-env-json '{json.dumps({'excludes': _cluster.EXCLUDED})}'" in readme
    assert f"-- python -m llm4msr run {cluster_run.CONFIG} --set storage=" in readme
    assert "-m benchmarks.cluster_run" in (ROOT / "Makefile").read_text()
