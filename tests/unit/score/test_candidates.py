import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm4msr.config import Config
from llm4msr.errors import ConfigError, DataError, StorageError
from llm4msr.score import candidates
from llm4msr.score.candidates import Candidates
from tests.support.data import prepared_table
from tests.unit.conftest import World
from tests.unit.score.conftest import Score

KNOWN = ("home", "search")


def find(world: World, **keys: Any) -> dict[str, list[str]]:
    """The ids of each scenario."""
    document = world.config.model_dump(mode="json")
    document["score"] |= keys
    found = candidates.find(Config.model_validate(document), world.data, KNOWN)
    again = Candidates.of(found.to_table())
    assert again.id_U.to_pylist() == found.id_U.to_pylist()
    assert {name: places.tolist() for name, places in again.places.items()} == {
        name: places.tolist() for name, places in found.places.items()
    }
    return {name: candidates.take(found.id_U, places).to_pylist() for name, places in found.places.items()}


def test_without_a_table_they_are_what_the_training_rows_of_each_scenario_like(world: World):
    rows = prepared_table(world.data, "train").to_pylist()
    names, ids = (prepared_table(world.data, f"{side}s")[f"{side}_id"].to_pylist() for side in ("scenario", "item"))
    liked = {name: {ids[r["item"]] for r in rows if names[r["scenario"]] == name and r["label"] > 0} for name in KNOWN}
    assert find(world) == {name: sorted(liked[name] - {""}) for name in KNOWN}


def test_a_table_says_what_counts_in_a_scenario_and_what_in_all(world: World, tmp_path: Path):
    (tmp_path / "items.csv").write_text("item_id,scenario\ni9,home\ni2,\ni10,home\ni9,home\ni1,elsewhere\n")
    assert find(world, candidates=str(tmp_path / "items.csv")) == {"home": ["i10", "i2", "i9"], "search": ["i2"]}
    assert find(world, candidates=str(tmp_path / "items.csv"), scenarios=["search"]) == {"search": ["i2"]}


def test_a_table_can_be_parquet_or_a_packed_csv(world: World, tmp_path: Path):
    pq.write_table(pa.table({"scenario": ["home"], "item_id": [7]}), tmp_path / "one.parquet")
    assert find(world, candidates=str(tmp_path / "one.parquet")) == {"home": ["7"]}
    (tmp_path / "one.csv.gz").write_bytes(gzip.compress(b"scenario,item_id\nhome,i7\n"))
    assert find(world, candidates=str(tmp_path / "one.csv.gz")) == {"home": ["i7"]}


def test_a_scenario_that_the_model_does_not_know_is_refused(world: World):
    with pytest.raises(ConfigError, match="knows no scenario 'hom'; it knows: home, search"):
        find(world, scenarios=["search", "hom"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("item_id\ni1\n", "column 'scenario' is missing"),
        ("scenario,item_id\nelsewhere,i1\n", "no candidates for the scenarios home, search"),
        ("scenario,item_id\nhome,\n", "an id cannot be empty"),
    ],
)
def test_a_table_that_gives_no_candidates_is_refused(world: World, tmp_path: Path, text: str, message: str):
    (tmp_path / "items.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        find(world, candidates=str(tmp_path / "items.csv"))


def test_a_table_that_is_not_there_is_said(world: World, tmp_path: Path):
    with pytest.raises(StorageError, match="cannot be read"):
        find(world, candidates=str(tmp_path / "none.csv"))


def test_candidates_that_the_model_does_not_know_are_counted_and_left_out(
    score: Score, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "items.csv").write_text("scenario,item_id\nhome,i1\nhome,new-1\n,new-2\n")
    output = score(candidates=str(tmp_path / "items.csv"), leave_out="nothing")
    assert (output.manifest.info["unknown_candidates"], output.manifest.info["candidates"]) == (2, {"home": 1})
    assert "2 of 3 candidates are unknown to the model" in capsys.readouterr().err
    (tmp_path / "items.csv").write_text("scenario,item_id\nhome,new-1\n")
    with pytest.raises(ConfigError, match="knows none of the candidates"):
        score(candidates=str(tmp_path / "items.csv"))
