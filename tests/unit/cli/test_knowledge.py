"""`llm4msr knowledge export` as a user calls it."""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.dataset
import pytest

from llm4msr.cli import main
from llm4msr.config import load
from llm4msr.knowledge.rows import good_rows
from tests.support.bundles import publish_bundle, read_codes
from tests.support.data import prepare_and_make_knowledge, write_data
from tests.support.versions import read_users
from tests.unit.cli.test_main import CONFIG


def export(monkeypatch: pytest.MonkeyPatch, config: Path, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["llm4msr", "knowledge", "export", str(config), *arguments])
    with pytest.raises(SystemExit) as ended:
        main.main()
    return int(ended.value.code or 0)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = write_data(tmp_path) / "config.toml"
    file.write_text(CONFIG.format(folder=tmp_path))
    return file


def test_vectors_of_the_configs_own_version_lie_where_the_last_line_says(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    _, version = prepare_and_make_knowledge(load(str(config)))
    assert export(monkeypatch, config, "--to", str(tmp_path / "to")) == 0
    line = json.loads(capsys.readouterr().out)
    assert line["stage"] == "vectors"
    assert Path(line["uri"]) == tmp_path / "to" / version.folder.name
    users = pyarrow.dataset.dataset(f"{line['uri']}/users").to_table()
    kept = np.array(good_rows(read_users(version)))
    assert len(users) == kept.sum() < len(kept)
    assert set(users["id"].to_pylist()) <= set(read_users(version)["raw_id"].to_pylist())
    assert "load_dataset" in (Path(line["uri"]) / "README.md").read_text()


def test_codes_are_those_of_the_bundle_that_is_served(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    loaded = load(str(config))
    bundle = publish_bundle((loaded, *prepare_and_make_knowledge(loaded)), tmp_path).output
    settings = "--set", f"serve.bundle={bundle.folder}"
    assert export(monkeypatch, config, "--to", str(tmp_path / "to"), "--codes", *settings) == 0
    line = json.loads(capsys.readouterr().out)
    assert line["stage"] == "codes"
    assert (
        len(pyarrow.dataset.dataset(f"{line['uri']}/codes").to_table())
        == line["rows"]
        == len(read_codes(bundle.folder))
    )


def test_before_an_extraction_it_says_what_to_run(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    assert export(monkeypatch, config, "--to", str(tmp_path / "to")) == 2
    assert "run `llm4msr prepare` first" in capsys.readouterr().err
    assert export(monkeypatch, config) == 2
    assert "--to" in capsys.readouterr().err
    assert not (tmp_path / "to").exists()
