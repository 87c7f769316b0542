"""Vectors of a version that leave for other models: by raw id, in files that anything reads."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from llm4msr import storage
from llm4msr.errors import StorageError
from llm4msr.knowledge import item_vectors, vector_files
from llm4msr.knowledge.rows import good_rows
from llm4msr.storage import StageOutput
from llm4msr.storage.vectors import to_matrix
from tests.support.versions import make_version, read_users
from tests.unit.conftest import World


def exported(folder: Path, kind: str) -> pa.Table:
    return pyarrow.dataset.dataset(folder / kind).to_table().sort_by("id")


def test_users_who_have_a_vector_leave_with_it_by_raw_id(world: World, tmp_path: Path) -> None:
    version = make_version(world, tmp_path, "one", 2, failed=("u3",))
    output = vector_files.export(version, world.data, str(tmp_path / "to"))
    table = exported(tmp_path / "to" / "one", "users")
    rows = read_users(version)
    rows = rows.filter(pa.array(good_rows(rows))).sort_by("raw_id")
    assert len(table) == len(rows) == output.manifest.rows > 1
    assert table["id"].to_pylist() == rows["raw_id"].to_pylist()
    assert "u3" not in table["id"].to_pylist()
    assert table.schema.field("vector").type == pa.list_(pa.float32(), 4)
    np.testing.assert_array_equal(to_matrix(table["vector"]), to_matrix(rows["vector"]).astype(np.float32))


def test_each_file_says_whose_vectors_they_are_and_of_which_model(world: World, tmp_path: Path) -> None:
    version = make_version(world, tmp_path, "one", 2)
    output = vector_files.export(version, world.data, str(tmp_path / "to"))
    files = [name for name in output.manifest.files if name.endswith(".parquet")]
    assert files
    for name in files:
        about = json.loads(pq.read_schema(tmp_path / "to" / "one" / name).metadata[b"llm4msr"])
        assert about["kind"] == name.partition("/")[0]
        assert about["model"] == version.manifest.inputs.get("model", "")
        assert about["extract"] == version.manifest.fingerprint


def test_items_leave_as_models_read_them(world: World, tmp_path: Path) -> None:
    version = make_version(world, tmp_path, "one", 2)
    ids = world.data.table("items.parquet", ["item_id"])["item_id"].to_pylist()
    vectors_ID = np.arange(len(ids) * 3, dtype=np.float16).reshape(-1, 3)
    known_I = np.arange(len(ids)) % 2 == 1
    record = item_vectors.write(version.folder, item_vectors.ItemVectors(vectors_ID, known_I))
    files = {**version.manifest.files, item_vectors.FILE: record}
    version = StageOutput(version.folder, version.manifest.model_copy(update={"files": files}))
    vector_files.export(version, world.data, str(tmp_path / "to"))
    table = exported(tmp_path / "to" / "one", "items")
    places = sorted(np.flatnonzero(known_I), key=lambda place: ids[place])
    assert table["id"].to_pylist() == [ids[place] for place in places]
    np.testing.assert_array_equal(to_matrix(table["vector"]), vectors_ID[places].astype(np.float32))


def test_what_an_interrupted_run_has_written_is_not_written_again(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = make_version(world, tmp_path, "one", 2)
    folder = tmp_path / "to" / "one"
    write = storage.write_bytes

    def full(file: Path, *args: object, **kwargs: object) -> None:
        if file.name == "README.md":
            raise StorageError("the disk is full")
        write(file, *args, **kwargs)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_bytes", full)
        with pytest.raises(StorageError, match="full"):
            vector_files.export(version, world.data, str(tmp_path / "to"))
    before = {file.name: file.stat().st_mtime_ns for file in (folder / "users").iterdir()}
    lost = folder / "users" / "000001.parquet"
    lost.unlink()
    output = vector_files.export(version, world.data, str(tmp_path / "to"))
    after = {file.name: file.stat().st_mtime_ns for file in (folder / "users").iterdir()}
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == {lost.name}
    assert vector_files.export(version, world.data, str(tmp_path / "to")).reused
    assert output.manifest.rows == len(exported(folder, "users")) + len(list(_rows(folder, "scenarios")))


def of_revision(version: StageOutput, revision: str) -> StageOutput:
    """The same version as if it had been made anew, since its model is another one."""
    inputs = {**version.manifest.inputs, "revision": revision}
    return StageOutput(version.folder, version.manifest.model_copy(update={"inputs": inputs}))


def test_vectors_of_another_model_are_not_taken_for_those_of_this_one(world: World, tmp_path: Path) -> None:
    version = make_version(world, tmp_path, "one", 2)
    before, now = of_revision(version, "before"), of_revision(version, "now")
    vector_files.export(before, world.data, str(tmp_path / "to"))
    with pytest.raises(StorageError, match=r"one: vectors of revision before, now it is now; delete it, or choose"):
        vector_files.export(now, world.data, str(tmp_path / "to"))
    (tmp_path / "to" / "one" / "manifest.json").unlink()
    vector_files.export(now, world.data, str(tmp_path / "to"))
    for file in sorted((tmp_path / "to" / "one").rglob("*.parquet")):
        assert json.loads(pq.read_schema(file).metadata[b"llm4msr"])["revision"] == "now"


def test_vectors_of_before_failed_rows_were_asked_once_more_are_not_taken_for_all(world: World, tmp_path: Path) -> None:
    failed = make_version(world, tmp_path, "one", 2, failed=("u3",))
    vector_files.export(failed, world.data, str(tmp_path / "to"))
    storage.remove(failed.folder)
    whole = make_version(world, tmp_path, "one", 2)
    with pytest.raises(
        StorageError, match=r"one: vectors as they were before some were asked anew; delete it, or choose"
    ):
        vector_files.export(whole, world.data, str(tmp_path / "to"))
    storage.remove(storage.path(tmp_path / "to" / "one"))
    vector_files.export(whole, world.data, str(tmp_path / "to"))
    assert "u3" in exported(tmp_path / "to" / "one", "users")["id"].to_pylist()


def test_a_folder_that_holds_something_else_is_refused_and_stays(world: World, tmp_path: Path) -> None:
    version = make_version(world, tmp_path, "one", 2)
    before = storage.files_below(version.folder)
    with pytest.raises(StorageError, match=r"one: holds the output of stage 'extract'; choose another folder"):
        vector_files.export(version, world.data, str(tmp_path))
    assert storage.files_below(version.folder) == before


def _rows(folder: Path, kind: str) -> list[str]:
    return exported(folder, kind)["id"].to_pylist() if (folder / kind).exists() else []


def test_datasets_loads_a_table_by_its_name(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    version = make_version(world, tmp_path, "one", 2)
    vector_files.export(version, world.data, str(tmp_path / "to"))
    folder = tmp_path / "to" / "one"
    loaded = datasets.load_dataset(str(folder), "users", split="train", cache_dir=str(tmp_path / "cache"))
    assert sorted(loaded["id"]) == exported(folder, "users")["id"].to_pylist()
    assert len(loaded[0]["vector"]) == 4
