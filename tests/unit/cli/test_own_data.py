"""`llm4msr init` writes a config file from data files, and `llm4msr check` shows what it makes of them."""

import json
from pathlib import Path

import pytest

from llm4msr.config import load
from tests.support.data import write_csv
from tests.unit.cli.test_main import call, last_line
from tests.unit.draft import shapes


def test_init_writes_a_config_and_ends_with_one_json_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    given = shapes.reviews_with_stars(tmp_path / "shop")
    out = str(tmp_path / "my shop.toml")
    assert call(monkeypatch, "init", *given, "--out", out) == 0
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1
    assert '"decide": [], "unsure": []' in captured.out
    assert "scenario           domain" in captured.err
    assert f"next: llm4msr check '{out}'" in captured.err
    assert load(out).source.table.user == "reviewerID"


def test_init_overwrites_nothing_unless_it_is_forced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    given = shapes.usual(tmp_path / "shop")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.toml").write_text("mine")
    assert call(monkeypatch, "init", *given) == 2
    assert "config.toml: exists already; give another --out, or --force" in capsys.readouterr().err
    assert (tmp_path / "config.toml").read_text() == "mine"
    assert call(monkeypatch, "init", *given, "--force") == 0
    assert load(str(tmp_path / "config.toml")).name == "shop"


def test_init_says_what_is_left_to_decide(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    given = shapes.times_as_people_write_them(tmp_path)
    assert call(monkeypatch, "init", *given, "--out", str(tmp_path / "c.toml")) == 0
    assert [decision.split(":")[0] for decision in last_line(capsys)["decide"]] == ["order"]


def test_init_says_of_which_guess_it_is_not_sure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    given = shapes.stars_with_semicolons(tmp_path)
    assert call(monkeypatch, "init", *given, "--out", str(tmp_path / "c.toml")) == 0
    line = last_line(capsys)
    assert line["decide"] == []
    assert line["unsure"] == ["scenario"]


def test_check_shows_the_report_and_a_whole_prompt_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    given = shapes.usual(tmp_path / "shop")
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "init", *given) == 0
    before = {*tmp_path.rglob("*")}
    capsys.readouterr()
    assert call(monkeypatch, "check", "config.toml", "--set", "split.by=user") == 0
    captured = capsys.readouterr()
    assert {*tmp_path.rglob("*")} == before
    *report, line = captured.out.splitlines()
    counts = {"rows": 600, "users": 30, "items": 24, "scenarios": 3}
    assert {name: json.loads(line)[name] for name in counts} == counts
    assert "600 rows of 30 users with 24 items" in report[0]
    prompt = "\n".join(text.partition("| ")[2] for text in report if "| " in text)
    assert prompt == "Blue cup no. 2. Kitchen, Blue"
    assert "warning: 75 of 600 rows have the user, item and scenario of an earlier row" in captured.err
    assert len(json.loads(line)["warnings"]) == captured.err.count("warning: ")


def test_check_names_a_bad_cell_and_shows_hostile_titles_as_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    given = shapes.usual(tmp_path)
    out = str(tmp_path / "c.toml")
    write_csv(tmp_path / "items.csv", ["item_id", "title"], [[f"i{i}", f"\x1b[2J\u202etitle {i}"] for i in range(24)])
    assert call(monkeypatch, "init", *given, "--out", out) == 0
    assert call(monkeypatch, "check", out) == 0
    captured = capsys.readouterr()
    assert "\x1b" not in captured.out + captured.err
    assert "\u202e" not in captured.out + captured.err
    assert call(monkeypatch, "check", out, "--set", "source.table.label=timestamp") == 2
    assert "a label lies between 0 and 1" in capsys.readouterr().err
