"""Codes of users that leave for other models."""

from pathlib import Path

import numpy as np
import pyarrow.dataset
import pytest

from llm4msr.errors import ConfigError
from llm4msr.export import code_files
from llm4msr.storage.vectors import to_matrix
from tests.support.bundles import publish_bundle, read_codes
from tests.unit.conftest import World


def test_codes_leave_by_raw_id_as_the_bundle_has_them(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code_files, "ROWS", 7)
    bundle = publish_bundle(world, tmp_path).output
    output = code_files.export(bundle, str(tmp_path / "to"))
    assert output.folder == tmp_path / "to" / bundle.folder.name
    table = pyarrow.dataset.dataset(tmp_path / "to" / bundle.folder.name / "codes").to_table().sort_by("id")
    codes = read_codes(bundle.folder)
    assert len(table) == len(codes) == output.manifest.rows > 7
    assert table["id"].to_pylist() == codes["id"].to_pylist()
    np.testing.assert_array_equal(to_matrix(table["vector"]), to_matrix(codes["code"]).astype(np.float32))
    assert code_files.export(bundle, str(tmp_path / "to")).reused
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset(str(output.folder), "codes", split="train", cache_dir=str(tmp_path / "cache"))
    assert sorted(loaded["id"]) == codes["id"].to_pylist()


def test_a_model_without_codes_says_so(world: World, tmp_path: Path) -> None:
    bundle = publish_bundle(world, tmp_path, knowledge="none").output
    with pytest.raises(ConfigError, match="the model 'none' keeps no codes of users"):
        code_files.export(bundle, str(tmp_path / "to"))
