"""The quality benchmark: its grids, and a small one end to end, which continues and gives the same numbers again."""

import sys
from pathlib import Path

import pandas as pd
import pytest

from benchmarks import quality
from llm4msr import config
from tests.support.experiments import MakeExperiment


def test_a_grid_runs_continues_and_repeats_itself(
    ray_session: None, experiment: MakeExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = experiment({"name": "small", "train.epochs": 2})
    (tmp_path / "small.toml").write_text(Path(str(small)).read_text())
    monkeypatch.setattr(quality, "CONFIGS", tmp_path)
    monkeypatch.setitem(quality.GRIDS, "small", quality.Grid(("small",), ("star",), ("none", "both"), 2))
    root, results = tmp_path / "runs", tmp_path / "results"
    monkeypatch.setattr(sys, "argv", ["quality", "small", "--root", str(root), "--results", str(results)])
    quality.main()
    first = pd.read_parquet(results / "quality-small.parquet")
    assert len(first) == 2 * 2
    assert first["test_auc"].between(0, 1).all()
    assert first["read_auc"].notna().all()
    assert (first["test_rows"] > first["read_rows"]).all()  # one user liked nothing, so the LLM read nothing
    files = {file: file.stat().st_mtime_ns for file in (root / "runs").glob("*.json")}
    assert len(files) == 4 + 2 * 2  # every run, and two trials for each cell
    deleted = min(files)
    deleted.unlink()
    quality.main()
    assert all(file.stat().st_mtime_ns == time for file, time in files.items() if file != deleted)
    second = pd.read_parquet(results / "quality-small.parquet")
    pd.testing.assert_frame_equal(
        first.drop(columns="train_cpu_seconds"), second.drop(columns="train_cpu_seconds"), check_exact=True
    )


@pytest.mark.parametrize("name", sorted(quality.GRIDS))
def test_every_cell_of_a_grid_is_a_config(name: str) -> None:
    grid = quality.GRIDS[name]
    cells = list(quality.cells_of(grid, "runs"))
    assert {cell.backbone for cell in cells} == set(grid.backbones) <= set(config.BACKBONES)
    keys = {
        (cell.data, quality.run_key(quality.with_settings(cell.config, trial), True))
        for cell in cells
        for trial in quality.TRIALS
    }
    assert len(keys) == len(cells) * len(quality.TRIALS)


def test_the_quality_grids_name_every_backbone() -> None:
    assert set(quality.GRIDS["plain"].backbones) == set(config.BACKBONES)


@pytest.mark.parametrize("file", sorted(quality.CONFIGS.glob("*.toml")), ids=lambda file: file.stem)
def test_every_config_of_the_benchmarks_loads_and_names_itself(file: Path) -> None:
    assert config.load(str(file)).name == file.stem
    assert quality.description_of(file.stem).endswith(".")
