"""The quality benchmark: its grids, and a small one end to end, which continues and gives the same numbers again."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import quality, quality_grids, quality_significance
from llm4msr import config
from llm4msr.pipeline import prepare
from tests.support.data import config_of, write_data
from tests.support.experiments import MakeExperiment


def test_a_grid_runs_continues_and_repeats_itself(
    ray_session: None, experiment: MakeExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = experiment({"name": "small", "train.epochs": 2})
    (tmp_path / "small.toml").write_text(Path(str(small)).read_text())
    monkeypatch.setattr(quality_grids, "CONFIGS", tmp_path)
    monkeypatch.setitem(quality_grids.SETS, "small", ("small", ()))
    systems = ("none", "din", "match@words", "match@random")
    monkeypatch.setitem(
        quality.GRIDS, "small", quality_grids.Grid(("small",), ("star",), systems, 2, quality_grids.ITEMS)
    )
    root, results = tmp_path / "runs", tmp_path / "results"
    monkeypatch.setattr(sys, "argv", ["quality", "small", "--root", str(root), "--results", str(results)])
    quality.main()
    first = pd.read_parquet(results / "quality-small.parquet")
    assert len(first) == 4 * 2
    assert first["test_auc"].between(0, 1).all()
    assert "| match@words |" in (results / "quality-small.md").read_text()
    files = {file: file.stat().st_mtime_ns for file in (root / "runs").glob("*.json")}
    assert len(files) == 4 * 2 + 4 * 2  # every run, and two trials for each cell
    deleted = min(files)
    deleted.unlink()
    quality.main()
    assert all(file.stat().st_mtime_ns == time for file, time in files.items() if file != deleted)
    second = pd.read_parquet(results / "quality-small.parquet")
    pd.testing.assert_frame_equal(
        first.drop(columns="train_cpu_seconds"), second.drop(columns="train_cpu_seconds"), check_exact=True
    )


def test_a_grid_of_readings_never_looks_at_the_test_rows(
    ray_session: None, experiment: MakeExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = experiment({"name": "small", "train.epochs": 1})
    (tmp_path / "small.toml").write_text(Path(str(small)).read_text())
    monkeypatch.setattr(quality_grids, "CONFIGS", tmp_path)
    monkeypatch.setitem(quality_grids.SETS, "small", ("small", ()))
    grid = quality_grids.Grid(("small",), ("star",), ("none", "match@words"), 1, quality_grids.ITEMS, validation=True)
    monkeypatch.setitem(quality.GRIDS, "small", grid)
    results = tmp_path / "results"
    command = ["quality", "small", "--root", str(tmp_path / "runs"), "--results", str(results), "--trials", "0"]
    monkeypatch.setattr(sys, "argv", command)
    quality.main()
    runs = pd.read_parquet(results / "quality-small.parquet")
    assert {*runs["system"]} == {"none", "match@words"}
    assert runs["valid_auc"].between(0, 1).all()
    assert not [name for name in runs.columns if "test" in name or "slice" in name]


@pytest.mark.parametrize("name", sorted(quality_grids.GRIDS))
def test_every_cell_of_a_grid_is_a_config(name: str) -> None:
    grid = quality_grids.GRIDS[name]
    cells = list(quality_grids.cells_of(grid, "runs"))
    assert {cell.backbone for cell in cells} == set(grid.backbones) <= set(config.BACKBONES)
    keys = {
        (cell.data, quality.run_key(quality.with_settings(cell.config, trial), True))
        for cell in cells
        for trial in quality_grids.TRIALS
    }
    assert len(keys) == len(cells) * len(quality_grids.TRIALS)


def test_the_quality_grids_name_every_backbone_and_every_system_has_controls_in_its_grid() -> None:
    grids = quality_grids.GRIDS
    assert set(grids["plain"].backbones) == set(config.BACKBONES)
    systems = grids["grid"].systems
    assert len({*systems}) == len(systems)
    for system in systems:
        assert system in ("none", "din") or {*quality_significance.controls_of(system)} & {*systems} or "@" in system


def test_sets_are_chosen_by_name_and_by_what_they_are_cut_from() -> None:
    grid = quality_grids.GRIDS["curve"]
    assert quality_grids.sets_of(grid, []) == grid.sets
    cut = quality_grids.sets_of(grid, ["ml-100k-implicit"])
    assert cut == tuple(f"ml-100k-implicit-first-{length}" for length in quality_grids.LENGTHS)
    assert quality_grids.sets_of(grid, ["beauty-implicit-first-3"]) == ("beauty-implicit-first-3",)


@pytest.mark.parametrize("file", sorted(quality_grids.CONFIGS.glob("*.toml")), ids=lambda file: file.stem)
def test_every_config_of_the_benchmarks_loads_and_names_itself(file: Path) -> None:
    assert config.load(str(file)).name == file.stem


@pytest.mark.parametrize("data", sorted(quality_grids.SETS))
def test_every_data_set_is_described(data: str) -> None:
    settings = quality_grids.SETS[data][1]
    text = quality_grids.description_of(data)
    assert text.endswith(".")
    assert all(setting in text for setting in settings)


def test_a_run_is_named_by_its_code_and_its_settings_and_a_plain_one_by_no_vectors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cells = {cell.system: cell.config for cell in quality_grids.cells_of(quality_grids.GRIDS["smoke"], "runs")}
    plain, ours = cells["none"], cells["match@words"]
    other = plain.model_copy(update={"extract": plain.extract.model_copy(update={"pool_dim": 3})})
    assert quality.run_key(plain, True) == quality.run_key(other, True) != quality.run_key(plain, False)
    changed = ours.model_copy(update={"extract": ours.extract.model_copy(update={"pool_dim": 3})})
    assert quality.run_key(ours, True) != quality.run_key(changed, True)
    before = quality.run_key(plain, True)
    monkeypatch.setattr(quality, "code_version", lambda: "another")
    assert quality.run_key(plain, True) != before


def test_slices_are_the_test_rows_of_rare_items_and_users_and_of_users_new_to_the_scenario(tmp_path: Path) -> None:
    """`b` has taken less than `a`, and meets `search` in the test rows for the first time; `i0` is common."""
    rows = [["a", f"i{at % 2}", "home", 1, at, "tv"] for at in range(8)]
    rows += [["b", "i0", "home", 1, 8, "tv"], ["b", "i0", "home", 1, 9, "tv"]]
    rows += [["a", "i0", "search", 1, 10, "tv"], ["b", "i0", "home", 1, 11, "tv"]]  # train: 12 rows of 20
    rows += [["a", "i0", "home", 1, 20, "tv"]] * 4  # valid
    rows += [["b", "i0", "search", 1, 30, "tv"], ["b", "i1", "home", 1, 31, "tv"]]
    rows += [["a", "i0", "search", 1, 32, "tv"], ["a", "i0", "home", 1, 33, "tv"]]
    write_data(tmp_path, rows)
    data = prepare(config_of(tmp_path, split={"valid": 0.2, "test": 0.2}))
    found = {name: rows_B.tolist() for name, rows_B in quality.slices_of(data).items()}
    assert found == {
        "cold items": [False, True, False, False],
        "cold users": [True, True, False, False],
        "new to the scenario": [True, False, False, False],
    }
    assert all(isinstance(rows_B, np.ndarray) for rows_B in quality.slices_of(data).values())
