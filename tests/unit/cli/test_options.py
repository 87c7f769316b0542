"""What holds for every verb: version, how much is shown, completion; and the commands about the config itself."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import llm4msr
from llm4msr import progress
from llm4msr.config import Config, load
from tests.support.data import write_data
from tests.unit.cli.test_main import CONFIG, call
from tests.unit.test_imports import COMMAND


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(progress, "_level", progress.level())  # so that other tests find it as it was
    write_data(tmp_path)
    (tmp_path / "config.toml").write_text(CONFIG.format(folder=tmp_path))
    return str(tmp_path / "config.toml")


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    assert call(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"llm4msr {llm4msr.__version__}\n"


@pytest.mark.parametrize("is_behind", [False, True])
def test_quiet_shows_warnings_and_the_result_alone(
    config: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, is_behind: bool
):
    words = ["prepare", config]
    assert call(monkeypatch, *(["prepare", config, "--quiet"] if is_behind else ["--quiet", *words])) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["rows"] == 1000
    lines = captured.err.splitlines()
    assert lines
    assert all(line.startswith("warning: ") for line in lines)
    assert call(monkeypatch, *words) == 0
    assert progress.level() == progress.Level.USUAL


def test_verbose_shows_where_an_error_arose_and_what_it_stands_for(
    config: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    words = ["prepare", config, "--set", "train.epochs=0"]
    assert call(monkeypatch, *words) == 2
    usual = capsys.readouterr().err
    assert usual.startswith("error: ")
    assert call(monkeypatch, *words, "--verbose") == 2
    verbose = capsys.readouterr().err
    assert "Traceback" in verbose
    assert "pydantic_core" in verbose
    assert verbose.endswith(usual)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["pre"], ["prepare"]),
        (["knowledge", "pr"], ["prune"]),
        (["train", "--dr"], ["--dry-run"]),
        (["train", "x.toml", "--set", "split.neg"], ["split.negatives=", "split.negatives_by="]),
        (["train", ""], []),
    ],
)
def test_a_shell_completes_verbs_options_and_keys(words: list[str], expected: list[str]):
    asked = {"COMP_WORDS": " ".join(["llm4msr", *words]), "COMP_CWORD": str(len(words))}
    environment = os.environ | asked | {"_LLM4MSR_COMPLETE": "complete_bash"}
    code = COMMAND.format(arguments=[])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split() == expected


def test_config_show_prints_every_key_and_loads_as_the_same(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    assert call(monkeypatch, "config", "show", config, "--set", "train.epochs=7") == 0
    shown = capsys.readouterr().out
    assert Config.model_validate(tomllib.loads(shown)) == load(config, ["train.epochs=7"])
    assert "epochs = 7\n" in shown
    assert "patience = 3  # default\n" in shown


def test_config_show_hides_passwords(config: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    assert call(monkeypatch, "config", "show", config, "--set", "storage=ftp://me:secret@host/x") == 0
    shown = capsys.readouterr().out
    assert "secret" not in shown
    assert 'storage = "ftp://***@host/x"' in shown


def test_config_schema_prints_json_alone(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    assert call(monkeypatch, "config", "schema") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["properties"]["seed"]["description"].startswith("Decides the initial weights")
    assert captured.err == ""
