"""What docs/data.md shows of `init` and `check` is what they do, from the data that it speaks of."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.support.documents import blocks, shell_lines
from tests.support.experiments import ROOT
from tests.unit.draft import shapes

GUIDE = ROOT / "docs" / "data.md"


def run(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("llm4msr")), *words[1:]]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    shapes.usual(folder / "data" / "shop")
    return folder


def shown(*verbs: str) -> list[list[str]]:
    return [words for words in shell_lines(GUIDE) if words[0] == "llm4msr" and words[1] in verbs and len(words) > 2]


def test_eight_lines_lead_from_files_to_a_ranked_list() -> None:
    (first, *_) = blocks(GUIDE, "bash")
    lines = first.replace("\\\n", " ").splitlines()
    assert len(lines) == 8
    assert lines[0].startswith("llm4msr init ")
    assert "/v1/rank" in lines[-1]


def test_what_init_is_shown_to_write_is_what_it_writes(shop: Path) -> None:
    (init,) = shown("init")
    run(init, shop)
    written = (shop / "shop.toml").read_text()
    assert tomllib.loads(written)["name"] == "shop"
    part = blocks(GUIDE, "toml")[0].splitlines()
    assert len(part) > 10
    assert [line for line in part if line and line not in written.splitlines()] == []


def test_check_and_show_run_on_what_init_wrote(shop: Path) -> None:
    (check,), (show,) = shown("check"), [words for words in shown("config") if words[2] == "show"]
    assert json.loads(run(check, shop).stdout.splitlines()[-1])["rows"] == 600
    assert tomllib.loads(run(show, shop).stdout)["source"]["table"]["user"] == "user_id"
    assert not (shop / "runs").exists()


def test_the_schema_is_written_as_config_md_says(shop: Path) -> None:
    (schema,) = [words for words in shell_lines(ROOT / "docs" / "config.md") if words[1:3] == ["config", "schema"]]
    assert schema[3:] == [">", "config.schema.json"]
    assert json.loads(run(schema[:3], shop).stdout)["title"] == "llm4msr"
