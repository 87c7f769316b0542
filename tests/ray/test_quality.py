"""The quality benchmark end to end on a small table: resumable, and the same seed gives the same numbers."""

import sys
from pathlib import Path

import pandas as pd
import pytest

from benchmarks import quality
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
    again = min(files)
    again.unlink()
    quality.main()
    assert all(file.stat().st_mtime_ns == time for file, time in files.items() if file != again)
    second = pd.read_parquet(results / "quality-small.parquet")
    pd.testing.assert_frame_equal(
        first.drop(columns="train_cpu_seconds"), second.drop(columns="train_cpu_seconds"), check_exact=True
    )
