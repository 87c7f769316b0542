"""The command line as far as it needs no Ray; `main` is called in this process."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from llm4msr.cli import main
from tests.support.data import write_data

CONFIG = """
name = "tiny"
storage = "{folder}/out"
[source]
kind = "table"
path = "{folder}"
[source.table]
interactions = "interactions.csv"
items = "items.csv"
label = "label"
order = "ts"
title = "title"
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    write_data(tmp_path)
    (tmp_path / "config.toml").write_text(CONFIG.format(folder=tmp_path))
    return str(tmp_path / "config.toml")


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str, verb: str = "") -> int:
    """The exit code of `llm4msr ...`, or of one verb's own entry point."""
    monkeypatch.setattr(sys, "argv", ["llm4msr", *arguments])
    with pytest.raises(SystemExit) as ended:
        main.main(verb)
    return int(ended.value.code or 0)


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_prepare_ends_with_one_json_line(
    config: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    assert call(monkeypatch, "prepare", config) == 0
    first = last_line(capsys)
    assert first["stage"] == "prepare"
    assert (first["rows"], first["failed"], first["skipped"]) == (1000, 0, 0)
    assert (Path(first["uri"]) / "manifest.json").exists()
    assert call(monkeypatch, "prepare", config) == 0
    assert last_line(capsys) == first | {"skipped": 1000, "seconds": 0.0}


def test_a_job_is_its_verb(config: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    assert call(monkeypatch, config, verb="prepare") == 0
    assert last_line(capsys)["stage"] == "prepare"


def test_set_changes_the_config(config: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    uris = []
    for extra in ([], ["--set", "split.test=0.2", "--set", "split.valid=0.2"]):
        assert call(monkeypatch, "prepare", config, *extra) == 0
        uris.append(last_line(capsys)["uri"])
    assert uris[0] != uris[1]


@pytest.mark.parametrize("verb", ["prepare", "extract", "train", "evaluate", "export", "explain", "serve", "run"])
def test_dry_run_prints_a_plan_and_does_nothing(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, verb: str
):
    assert call(monkeypatch, verb, config, "--dry-run") == 0
    line = last_line(capsys)
    assert line["stage"] == verb
    assert line["dry_run"] is True
    assert ("prompts" in line) == (verb in ("extract", "run"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "absent.toml"], "absent.toml: cannot be read"),
        (["prepare", "CONFIG", "--set", "split.vlaid=0.1"], "unknown key 'split.vlaid'; did you mean 'valid'?"),
        (["prepare", "CONFIG", "--set", "source.table.label=likes"], "column 'likes' is missing"),
        (["train", "CONFIG", "--set", "model.knowledge=none"], "run `llm4msr prepare` first"),
        (["extract", "CONFIG"], "run `llm4msr prepare` first"),
        (["evaluate", "CONFIG"], "run `llm4msr prepare` first"),
        (["export", "CONFIG"], "run `llm4msr prepare` first"),
        (["explain", "CONFIG"], "run `llm4msr prepare` first"),
        (["explain", "CONFIG", "--set", "model.knowledge=none"], "nothing to explain; set it to both"),
        (["serve", "CONFIG"], "run `llm4msr prepare` first"),
    ],
)
def test_what_the_user_can_mend_is_one_message_and_code_2(
    config: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
):
    given = [config if argument == "CONFIG" else argument for argument in arguments]
    assert call(monkeypatch, *given) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert "Traceback" not in captured.err


def test_an_unknown_verb_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    assert call(monkeypatch, "prepair", "x") == 2
    assert "prepair" in capsys.readouterr().err


def test_help_lists_the_verbs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    assert call(monkeypatch, "--help") == 0
    shown = capsys.readouterr().out
    assert all(
        verb in shown for verb in ("prepare", "extract", "train", "evaluate", "export", "explain", "serve", "run")
    )


def test_a_search_of_one_trial_is_refused(
    config: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    assert call(monkeypatch, "tune", config, "--trials", "1") == 2
    assert "'tune.trials'" in capsys.readouterr().err
