"""The made-up data, the meter of processes, and whether the peers do what `prepare` does."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import _peer_prepare, _process_meter, _skewed_rows
from benchmarks.data_scale import write_config
from llm4msr import load
from llm4msr.pipeline import prepare
from tests.support.experiments import ROOT

ROWS = 20_000


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _skewed_rows.write_source(tmp_path_factory.mktemp("source"), ROWS)


def test_a_block_is_the_same_whichever_came_before(source: Path) -> None:
    block = _skewed_rows.interactions(0, ROWS, ROWS, seed=1)
    assert block.equals(pq.read_table(source / "interactions" / "00000.parquet"))
    assert not block.equals(_skewed_rows.interactions(0, ROWS, ROWS, seed=2))


def test_rows_are_skewed_as_told(source: Path) -> None:
    rows = pq.read_table(source / "interactions").to_pandas()
    per_user = rows["user"].value_counts()
    assert per_user.mean() == pytest.approx(_skewed_rows.ROWS_PER_USER, rel=0.1)
    assert per_user.max() > 10 * per_user.median()
    assert rows["scenario"].nunique() == _skewed_rows.SCENARIOS
    assert rows["time"].is_monotonic_increasing
    assert set(rows["user"].str.len()) == set(rows["item"].str.len()) == {12}
    items = pq.read_table(source / "items.parquet").to_pandas()
    assert items["item"].is_unique
    assert set(rows["item"]) <= set(items["item"])


def test_likes_follow_from_the_item_and_the_users_shelf() -> None:
    rows = _skewed_rows.interactions(0, 200_000, 200_000, seed=1).to_pandas()
    likes = rows.groupby("item")["like"].agg(["mean", "size"])
    often = likes[likes["size"] > 100]["mean"]
    assert often.std() > 0.1


def test_the_meter_counts_children_and_what_outlives_them(tmp_path: Path) -> None:
    spin = "import time\nwhile time.process_time() < .5: pass"
    hold = "import time\nheld = bytearray(200_000_000)\ntime.sleep(1)"
    program = tmp_path / "program.py"
    program.write_text(
        f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {spin!r}])\n"
        f"subprocess.Popen([sys.executable, '-c', {hold!r}])\n"
    )
    usage = _process_meter.Usage(**json.loads(measure([sys.executable, str(program)])))
    assert usage.cpu_seconds >= 0.5
    assert usage.peak > 190e6
    assert usage.largest_other > 190e6
    assert usage.first_peak < 190e6


def test_the_meter_shows_what_a_command_that_fails_said() -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        measure([sys.executable, "-c", "raise SystemExit('no such luck')"])
    assert "no such luck" in caught.value.stderr


def measure(command: list[str]) -> str:
    """By a process without other children, since the meter waits for all that it has: here Ray could be one."""
    program = (
        "import json, sys; from benchmarks._process_meter import run; print(json.dumps(run(sys.argv[1:])._asdict()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *command], check=True, capture_output=True, text=True, cwd=ROOT
    )
    return done.stdout


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pa.Table]:
    work = tmp_path_factory.mktemp("ours")
    one_file = "source.table.interactions=interactions/00000.parquet"
    return tables_of(prepare(load(str(write_config(work, ROWS)), [one_file])).folder)


def tables_of(folder: Any) -> dict[str, pa.Table]:
    """Each table, of one file or of the files of its folder."""
    names = ("users", "items", "histories", "seen", "train", "valid", "test")
    return {name: pq.read_table(str(next(folder.glob(f"{name}*")))) for name in names}


@pytest.mark.parametrize("program", _peer_prepare.PROGRAMS)
def test_a_peer_makes_the_tables_that_prepare_makes(
    program: str, source: Path, ours: dict[str, pa.Table], tmp_path: Path
) -> None:
    _peer_prepare.PROGRAMS[program](source, tmp_path)
    theirs = tables_of(tmp_path)
    for name in ("train", "valid", "test"):
        assert raw_rows(theirs, name) == raw_rows(ours, name)
    assert histories(theirs) == histories(ours)
    assert [row["item_id"] for row in theirs["items"].to_pylist()] == ours["items"]["item_id"].to_pylist()[1:]


def raw_rows(tables: dict[str, pa.Table], name: str) -> list[Any]:
    """User, item, scenario and label of each row by their ids, in order; users and items count from 1 here."""
    users, items = ({r[s]: r[f"{s}_id"] for r in tables[f"{s}s"].to_pylist()} for s in ("user", "item"))
    numbers = (
        [row[column] for column in ("user", "item", "scenario", "label", "seen")] for row in tables[name].to_pylist()
    )
    named = ((users.get(user, ""), items.get(item, ""), *rest, seen > 0) for user, item, *rest, seen in numbers)
    return sorted(named)


def histories(tables: dict[str, pa.Table]) -> dict[str, Any]:
    """Rows and liked titles of each user."""
    rows = tables["histories"].to_pylist()
    return {row["user_id"]: (row["interactions"], row["history"] or []) for row in rows}
