"""`llm4msr init`: a config file from data files, never over one that is there."""

from pathlib import Path

import pytest

from llm4msr.config import load
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
    given = shapes.stars_with_semicolons(tmp_path)
    assert call(monkeypatch, "init", *given, "--out", str(tmp_path / "c.toml")) == 0
    line = last_line(capsys)
    assert [decision.split(":")[0] for decision in line["decide"]] == ["scenario"]
    assert line["unsure"] == ["scenario"]
