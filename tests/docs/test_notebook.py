"""The notebook of the docs runs from its first cell to its last, and shows what a reader sees in it."""

import os
from pathlib import Path

import pytest

from tests.support.experiments import ROOT

NOTEBOOK = ROOT / "docs" / "notebook.ipynb"


def test_the_notebook_runs_and_shows_a_table_and_a_ranking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("nbformat", "nbclient", "ipykernel"):
        pytest.importorskip(library)
    import nbclient
    import nbformat

    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    shown = [
        "".join(output.get("data", {}).get(kind, ""))
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        for kind in ("text/markdown", "text/plain")
    ]
    assert any("| **all** |" in text for text in shown)
    assert any("user-1" in text and "none-1" in text for text in shown), "logits of both models"
    assert any("Toy Story" in text for text in shown)
