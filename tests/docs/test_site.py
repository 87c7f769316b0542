"""The site builds strictly: a link that leads nowhere, a file that is not there or a docstring that is no RST fails."""

import subprocess
import sys
from pathlib import Path

from tests.support.experiments import ROOT


def test_the_site_builds(tmp_path: Path) -> None:
    strict = ["--quiet", "--fail-on-warning", "--keep-going", "-c", "docs", ".", str(tmp_path)]
    done = subprocess.run([sys.executable, "-m", "sphinx", *strict], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    config = (tmp_path / "docs" / "config.html").read_text()
    assert "rows_per_shard" in config, "every key of the TOML file"
    assert "quality-core-ml-100k.png" in (tmp_path / "benchmarks" / "results" / "quality-core-ml-100k.html").read_text()
