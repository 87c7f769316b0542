"""Bundles that are damaged, of another version, or elsewhere."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from llm4msr import Ranker, storage
from llm4msr.bundle import files
from llm4msr.bundle.self_test import SelfTest
from llm4msr.errors import StorageError
from tests.support.bundles import Published, scores
from tests.unit.conftest import World


@pytest.fixture
def bundle(published: Published, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(str(published.output.folder), tmp_path / "copy"))


def replace(bundle: Path, name: str, data: bytes) -> None:
    """Change a file, and let the manifest agree with it, so that later checks are reached."""
    (bundle / name).write_bytes(data)
    manifest = json.loads((bundle / "manifest.json").read_text())
    digest = storage.digest_file(storage.path(bundle / name))
    manifest["files"][name] |= {"bytes": len(data), "digest": digest}
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def refusal(bundle: Path) -> str:
    with pytest.raises(StorageError) as caught:
        Ranker.load(str(bundle))
    return str(caught.value)


def test_another_version_is_refused(bundle: Path):
    description = json.loads((bundle / "bundle.json").read_text()) | {"version": 99}
    replace(bundle, "bundle.json", json.dumps(description).encode())
    expected = f"{bundle}/bundle.json: bundle version 99, this package reads {files.VERSION}; export again"
    assert refusal(bundle) == expected


def test_a_bundle_of_an_earlier_release_is_refused_by_its_version(bundle: Path):
    description = json.loads((bundle / "bundle.json").read_text()) | {"version": 4}
    replace(bundle, "bundle.json", json.dumps(description).encode())
    (bundle / files.ITEMS).rename(bundle / "items.parquet")
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"]["items.parquet"] = manifest["files"].pop(files.ITEMS)
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    assert (
        refusal(bundle) == f"{bundle}/bundle.json: bundle version 4, this package reads {files.VERSION}; export again"
    )


@pytest.mark.parametrize("total", [0, 2])
def test_items_must_be_one_partition(bundle: Path, total: int):
    with pa.ipc.open_file(str(bundle / files.ITEMS)) as reader:
        batch = reader.get_batch(0)
    file = bundle / "other.arrow"
    with pa.ipc.new_file(str(file), batch.schema) as writer:
        for _ in range(total):
            writer.write_batch(batch)
    replace(bundle, files.ITEMS, file.read_bytes())
    assert f"{bundle}/{files.ITEMS}: no items, or more than one partition of them" in refusal(bundle)


@pytest.mark.parametrize("text", ["", "{", '{"version": 1}', '{"version": 1, "surprise": 2}', "[1]"])
def test_damaged_bundle_json_is_refused(bundle: Path, text: str):
    replace(bundle, "bundle.json", text.encode())
    assert refusal(bundle).startswith(f"{bundle}/bundle.json: ")


def test_truncated_weights_are_refused(bundle: Path):
    weights = (bundle / files.NET).read_bytes()
    (bundle / files.NET).write_bytes(weights[:-100])
    assert f"{bundle}/{files.NET}: {len(weights) - 100} bytes, not {len(weights)}" in refusal(bundle)
    replace(bundle, files.NET, weights[:-100])
    assert refusal(bundle).startswith(f"{bundle}/{files.NET}: does not fit bundle.json")


@pytest.mark.parametrize("change", [{"code_dim": 5}, {"backbone": "star"}, {"knowledge": "none"}])
def test_weights_of_another_model_are_refused(bundle: Path, change: dict[str, Any]):
    description = json.loads((bundle / "bundle.json").read_text())
    description["model"] |= change
    replace(bundle, "bundle.json", json.dumps(description).encode())
    assert refusal(bundle).startswith(f"{bundle}/{files.NET}: does not fit bundle.json")


def test_a_changed_byte_is_named(bundle: Path):
    data = bytearray((bundle / files.CODES).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / files.CODES).write_bytes(data)
    assert f"{bundle}/{files.CODES}: damaged, its checksum is not the manifest's" in refusal(bundle)


def test_other_scores_than_at_export_are_refused(bundle: Path):
    test = SelfTest.model_validate_json((bundle / files.SELF_TEST).read_text())
    test.cases[-1].scores[0] += 1e-3
    replace(bundle, files.SELF_TEST, test.model_dump_json().encode())
    assert f"{bundle}: the self-test of user '" in refusal(bundle)
    assert "is off by 0.001, allowed is 1e-05" in refusal(bundle)


@pytest.mark.parametrize("name", [files.USERS, files.CODES, files.ITEMS, files.SELF_TEST])
def test_a_missing_or_damaged_file_is_named(bundle: Path, name: str):
    replace(bundle, name, b"no table")
    assert refusal(bundle).startswith(f"{bundle}/{name}: ")
    (bundle / name).unlink()
    assert refusal(bundle).startswith(f"{bundle}/{name}: missing")


def test_a_foreign_folder_is_refused(tmp_path: Path, world: World):
    (tmp_path / "README.md").write_text("hello")
    for folder in (tmp_path, tmp_path / "absent"):
        assert refusal(folder) == f"{folder}: not a finished bundle; give the uri that `llm4msr export` printed"
    assert "not a finished bundle" in refusal(Path(str(world.data.folder)))


def test_a_bundle_can_lie_on_an_object_store_and_is_copied_once(
    published: Published, ranker: Ranker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("LLM4MSR_CACHE", str(tmp_path / "cache"))
    remote = storage.path("memory://bundles/one")
    for file in Path(str(published.output.folder)).iterdir():
        storage.write_bytes(remote / file.name, file.read_bytes())
    assert scores(Ranker.load("memory://bundles/one")) == scores(ranker)
    (copy,) = (f for f in (tmp_path / "cache" / "bundles").iterdir() if f.is_dir())
    assert not copy.parent.stat().st_mode & 0o007  # where the cache itself is open to all
    before = (copy / files.NET).stat().st_mtime_ns
    Ranker.load("memory://bundles/one")
    assert (copy / files.NET).stat().st_mtime_ns == before
