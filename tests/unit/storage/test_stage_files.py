"""Manifests that name other files than their stage's own."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from llm4msr import storage
from llm4msr.errors import StorageError
from llm4msr.knowledge.work import Work
from llm4msr.storage import StageResult, outputs, stage_files

HOSTILE = [
    "../outside.parquet",
    "vectors/../../outside.parquet",
    "/etc/passwd",
    "//host/share",
    "C:\\train.parquet",
    "c:train.parquet",
    "..\\train.parquet",
    "train.parquet\0",
    "train.parquet\n",
    "\0",
    "",
    ".",
    "..",
    "./train.parquet",
    "train.parquet/",
    "vectors/users-0.parquet",
    "manifest.json",
    "net.safetensors",
    "~/train.parquet",
    "s3://bucket/train.parquet",
    "träin.parquet",
    "TRAIN.parquet",
]


def made(folder: Path) -> Path:
    def build(at: Path) -> StageResult:
        storage.write_table(storage.path(at / "train/p=00000.parquet"), pa.table({"a": [1]}))
        return StageResult(files={"train/p=00000.parquet": 1}, rows=1)

    (folder.parent / "outside.parquet").write_bytes(b"outside")
    storage.publish(storage.path(folder), "prepare", 1, {}, {}, build)
    return folder


def changed(folder: Path, **values: object) -> None:
    file = folder / storage.MANIFEST
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def refused(folder: Path, match: str) -> str:
    with pytest.raises(StorageError, match=match) as caught:
        storage.open_output(storage.path(folder))
    return str(caught.value)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_that_is_no_file_of_the_stage_is_refused_and_nothing_is_to_be_deleted(tmp_path: Path, name: str) -> None:
    folder = made(tmp_path / "out")
    changed(folder, files={name: {"rows": 1, "bytes": 7, "digest": "0" * 32}})
    said = refused(folder, r"manifest\.json: names '.*', which is no file of stage 'prepare'")
    assert "delete" not in said
    assert "outside.parquet" not in said.partition("names")[0]


def test_a_stage_that_is_none_of_ours_is_refused(tmp_path: Path) -> None:
    folder = made(tmp_path / "out")
    changed(folder, stage="anything")
    refused(folder, r"names no stage of this package \('anything'\)")


@pytest.mark.parametrize("values", [{"rows": -1}, {"bytes": -1}, {"digest": "x"}, {"digest": "0" * 33}])
def test_numbers_that_nothing_can_have_are_refused(tmp_path: Path, values: dict[str, object]) -> None:
    folder = made(tmp_path / "out")
    part = {"rows": 1, "bytes": 7, "digest": "0" * 32} | values
    changed(folder, files={"train/p=00000.parquet": part})
    refused(folder, "damaged manifest")


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "a\0", "x" * 300])
def test_a_fingerprint_that_is_no_name_is_refused(tmp_path: Path, name: str) -> None:
    folder = made(tmp_path / "out")
    changed(folder, fingerprint=name)
    refused(folder, "damaged manifest")


def test_links_that_leave_the_output_are_refused(tmp_path: Path) -> None:
    folder = made(tmp_path / "out")
    file = folder / "train/p=00000.parquet"
    file.rename(tmp_path / "moved.parquet")
    file.symlink_to(tmp_path / "moved.parquet")
    said = refused(folder, r"names 'train/p=00000\.parquet', which is a link to a file elsewhere")
    assert "delete" not in said


def test_a_folder_of_links_is_refused_and_a_link_to_the_whole_output_is_not(tmp_path: Path) -> None:
    def build(at: Path) -> StageResult:
        storage.write_table(storage.path(at / "vectors" / "users-0.parquet"), pa.table({"a": [1]}))
        return StageResult(files={"vectors/users-0.parquet": 1}, rows=1)

    folder = tmp_path / "out"
    storage.publish(storage.path(folder), "extract", 1, {}, {}, build)
    (tmp_path / "link").symlink_to(folder)
    assert storage.open_output(storage.path(tmp_path / "link")) is not None
    (folder / "vectors").rename(tmp_path / "elsewhere")
    (folder / "vectors").symlink_to(tmp_path / "elsewhere")
    refused(folder, "which is a link to a file elsewhere")


def test_a_folder_in_place_of_a_file_is_missing(tmp_path: Path) -> None:
    folder = made(tmp_path / "out")
    (folder / "train/p=00000.parquet").unlink()
    (folder / "train/p=00000.parquet").mkdir()
    refused(folder, r"p=00000\.parquet: missing")


def test_a_manifest_too_long_or_too_deep_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made(tmp_path / "out")
    changed(folder, info={"deep": 1})
    text = (folder / storage.MANIFEST).read_text()
    (folder / storage.MANIFEST).write_text(text.replace('"deep": 1', '"deep": ' + "[" * 100_000 + "]" * 100_000))
    refused(folder, "damaged manifest")
    (folder / storage.MANIFEST).write_text(text)
    assert storage.open_output(storage.path(folder)) is not None
    monkeypatch.setattr(outputs, "MAX_BYTES", len(text) - 1)
    refused(folder, "damaged manifest")


HOSTILE_PLANS: list[dict[str, object]] = [
    {"shards": [{"name": "../../x.parquet", "kind": "users", "todo": "users-0.parquet", "group": 0, "rows": 1}]},
    {"shards": [{"name": "users-0.parquet", "kind": "users", "todo": "/etc/passwd", "group": 0, "rows": 1}]},
    {"shards": [{"name": "users-0.parquet", "kind": "../x", "todo": "users-0.parquet", "group": 0, "rows": 1}]},
    {"shards": [{"name": "users-0.parquet", "kind": "users", "todo": "users-0.parquet", "group": -1, "rows": 1}]},
    {"buckets": [["../../users", 0, 1]]},
    {"bases": ["../elsewhere"]},
    {"bases": ["a/b"]},
]


@pytest.mark.parametrize("values", [{}, *HOSTILE_PLANS])
def test_a_plan_that_names_files_elsewhere_counts_as_none(tmp_path: Path, values: dict[str, object]) -> None:
    reader = {"revision": "r", "frame": "f", "reads": "r", "writes": {}}
    plan = {"readers": {"users": reader}, "bases": ["one"], "planned": True, "buckets": [["users", 0, 1]]} | values
    storage.write_bytes(storage.path(tmp_path / "work" / "work.json"), json.dumps(plan).encode())
    assert (Work.load(storage.path(tmp_path)) is None) == bool(values)


def test_a_stage_cannot_publish_what_nobody_could_read(tmp_path: Path) -> None:
    def build(at: Path) -> StageResult:
        storage.write_bytes(storage.path(at / "notes.txt"), b"x")
        return StageResult(files={"notes.txt": 1}, rows=1)

    with pytest.raises(ValueError, match=r"names 'notes\.txt', which is no file of stage 'prepare'"):
        storage.publish(storage.path(tmp_path / "out"), "prepare", 1, {}, {}, build)
    assert not (tmp_path / "out" / storage.MANIFEST).exists()


@pytest.mark.parametrize(
    "name", ["../vectors/users-0.parquet", "a/vectors/../users-0.parquet", "/vectors/users-0.parquet"]
)
def test_shards_are_below_a_version(name: str) -> None:
    assert stage_files.SHARD.fullmatch("0ab12/vectors/users-00000-of-00001-0123456789ab.parquet")
    assert not stage_files.SHARD.fullmatch(name)
