import errno
import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from safetensors import SafetensorError

from llm4msr import storage
from llm4msr.errors import FullDiskError, StorageError
from llm4msr.storage import StageOutput, StageResult

TABLE = pa.table({"a": [1, 2, 3], "b": ["x", "y", None]})


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path):
    return storage.path(tmp_path / "out" if request.param == "local" else f"memory://{uuid.uuid4()}/out")


def build(folder) -> StageResult:
    storage.write_table(folder / "train/p=00000.parquet", TABLE)
    return StageResult(
        files={"train/p=00000.parquet": 3}, rows=3, failed=1, skipped=2, info={"metrics": {"auc": 0.5}, "other": 1}
    )


def publish(folder, work=build, **options) -> StageOutput:
    return storage.publish(folder, "prepare", 7, {"key": "value"}, {"source": "abc"}, work, **options)


def test_digest_keeps_the_boundaries_of_its_parts():
    assert storage.digest("ab", "c") != storage.digest("a", "bc")
    assert storage.digest("ab") != storage.digest("ab", "")
    assert storage.digest("é") == storage.digest("é".encode())
    assert len(storage.digest()) == 32


def test_digest_of_does_not_depend_on_the_order_of_keys():
    assert storage.digest_json({"a": 1, "b": 2}) == storage.digest_json({"b": 2, "a": 1})
    assert storage.digest_json({"a": 1}) != storage.digest_json({"a": 2})


def test_table_survives_writing_and_reading(folder):
    storage.write_table(folder / "deep" / "t.parquet", TABLE)
    assert storage.read_table(folder / "deep" / "t.parquet").equals(TABLE)
    assert storage.read_table(folder / "deep" / "t.parquet", ["b"]).column_names == ["b"]


def test_row_groups_have_the_wanted_size(folder):
    storage.write_table(folder / "t.parquet", TABLE, rows_per_group=2)
    with storage.open_parquet(folder / "t.parquet") as parquet:
        assert [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)] == [2, 1]


def test_write_bytes_replaces_and_leaves_nothing_beside(folder):
    storage.write_bytes(folder / "f.bin", b"old and long")
    storage.write_bytes(folder / "f.bin", b"new")
    assert storage.read_bytes(folder / "f.bin") == b"new"
    assert [file.name for file in folder.iterdir()] == ["f.bin"]


def test_write_bytes_keeps_the_old_file_if_it_cannot_finish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = storage.path(tmp_path / "f.bin")
    storage.write_bytes(file, b"old")

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(file), "replace", full)
    with pytest.raises(StorageError, match=r"f\.bin: no space left on its disk"):
        storage.write_bytes(file, b"new")
    assert file.read_bytes() == b"old"


def test_write_below_a_file_names_the_place(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match=r"file/below: cannot be written"):
        storage.write_bytes(storage.path(tmp_path / "file" / "below"), b"x")


def test_reading_what_is_absent_names_it(folder):
    with pytest.raises(StorageError, match=r"absent\.bin: cannot be read"):
        storage.read_bytes(folder / "absent.bin")
    with pytest.raises(StorageError, match=r"absent\.parquet: not a readable Parquet"):
        storage.read_table(folder / "absent.parquet")


def test_damaged_parquet_is_refused(folder):
    storage.write_table(folder / "t.parquet", TABLE)
    data = storage.read_bytes(folder / "t.parquet")
    storage.write_bytes(folder / "t.parquet", data[:-20])
    with pytest.raises(StorageError, match=r"t\.parquet: not a readable Parquet"):
        storage.read_table(folder / "t.parquet")


def test_parquet_damaged_in_its_middle_is_refused(folder):
    table = pa.table({"a": list(range(5000))})
    storage.write_table(folder / "t.parquet", table)
    data = bytearray(storage.read_bytes(folder / "t.parquet"))
    data[2000:6000] = bytes(4000)
    storage.write_bytes(folder / "t.parquet", bytes(data))
    with pytest.raises(StorageError, match=r"t\.parquet: "):
        storage.read_table(folder / "t.parquet")


def test_remove_deletes_a_folder_and_forgives_its_absence(folder):
    storage.write_bytes(folder / "a" / "b", b"x")
    storage.remove(folder)
    assert not folder.exists()
    storage.remove(folder)


def test_publish_writes_a_manifest_that_says_what_it_is(folder):
    out = publish(folder)
    assert not out.reused
    found = storage.open_output(folder)
    assert found is not None
    m = found.manifest
    assert m == out.manifest
    assert (m.stage, m.seed, m.config, m.inputs) == ("prepare", 7, {"key": "value"}, {"source": "abc"})
    assert (m.rows, m.failed, m.skipped, m.fingerprint) == (3, 1, 2, "out")
    data = storage.read_bytes(folder / "train/p=00000.parquet")
    part = m.files["train/p=00000.parquet"]
    assert (part.rows, part.bytes, part.digest) == (3, len(data), storage.digest(data))
    assert {"numpy", "pyarrow", "torch"} <= set(m.libraries)
    assert m.seconds >= 0


def test_publish_finds_what_is_finished(folder):
    publish(folder)

    def never(folder) -> StageResult:
        raise AssertionError("built again")

    again = publish(folder, never)
    assert again.reused
    summary = again.summary()
    assert (summary["rows"], summary["failed"], summary["skipped"], summary["seconds"]) == (3, 1, 3, 0.0)


def test_summary_of_a_fresh_output(folder):
    summary = publish(folder).summary()
    assert summary["stage"] == "prepare"
    assert summary["uri"] == str(folder)
    assert summary["skipped"] == 2
    assert summary["metrics"] == {"auc": 0.5}
    assert "other" not in summary
    json.dumps(summary)


@pytest.mark.parametrize("resumable", [False, True])
def test_publish_clears_leftovers_unless_it_can_go_on_with_them(folder, resumable: bool):
    storage.write_bytes(folder / "leftover.bin", b"x")
    publish(folder, resumable=resumable)
    assert (folder / "leftover.bin").exists() == resumable


def test_a_build_that_fails_publishes_nothing(folder):
    def fail(folder) -> StageResult:
        storage.write_bytes(folder / "half.bin", b"x")
        raise RuntimeError("died")

    with pytest.raises(RuntimeError, match="died"):
        publish(folder, fail)
    assert storage.open_output(folder) is None
    assert not publish(folder).reused
    assert not (folder / "half.bin").exists()


def test_open_output_of_nothing_is_none(folder):
    assert storage.open_output(folder) is None


def test_open_output_notices_a_missing_file(folder):
    publish(folder)
    (folder / "train/p=00000.parquet").unlink()
    with pytest.raises(StorageError, match=r"p=00000\.parquet: missing; delete .* run stage 'prepare' again"):
        storage.open_output(folder)


def test_open_output_notices_a_truncated_file(folder):
    size = publish(folder).manifest.files["train/p=00000.parquet"].bytes
    data = storage.read_bytes(folder / "train/p=00000.parquet")
    storage.write_bytes(folder / "train/p=00000.parquet", data[:-1])
    with pytest.raises(StorageError, match=rf"p=00000\.parquet: {size - 1} bytes, not {size}"):
        storage.open_output(folder)


@pytest.mark.parametrize("make", [os.mkfifo, lambda place: place.symlink_to("/dev/full")])  # zeros without end
def test_a_manifest_that_has_no_end_is_not_read(tmp_path: Path, make: Callable[[Path], None]):
    folder = storage.path(tmp_path / "prepare" / "0123456789ab")
    publish(folder)
    (folder / "manifest.json").unlink()
    make(folder / "manifest.json")
    with pytest.raises(StorageError, match=r"manifest\.json: damaged manifest"):
        storage.open_output(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"stage": "x"}'])
def test_open_output_notices_a_damaged_manifest(folder, text: str):
    publish(folder)
    storage.write_bytes(folder / "manifest.json", text.encode())
    with pytest.raises(StorageError, match=r"manifest\.json: damaged manifest"):
        publish(folder)


def test_others_have_no_access_to_outputs_whatever_the_umask(tmp_path: Path):
    def work(at) -> StageResult:
        storage.write_bytes(at / "a" / "b.bin", b"x")
        with storage.create(at / "c.bin") as stream:
            stream.write(b"x")
        (at / "foreign").mkdir()
        (at / "foreign" / "d.bin").write_bytes(b"x")  # as libraries write
        (at / "foreign" / "link").symlink_to(at / "nowhere")
        return build(at)

    before = os.umask(0)
    try:
        output = publish(storage.path(tmp_path / "runs" / "stage" / "out"), work)
    finally:
        os.umask(before)
    places = [tmp_path / "runs", *(tmp_path / "runs").rglob("*")]
    assert len(places) == 12
    assert [place for place in places if not place.is_symlink() and place.stat().st_mode & 0o007] == []
    assert output.folder.stat().st_mode & 0o770 == 0o770, "the group's access is the umask's matter"


@pytest.mark.parametrize("resumable", [False, True])
def test_what_killed_writers_left_goes_and_is_no_file_of_an_output(folder, resumable: bool):
    storage.write_bytes(folder / "deep" / ".half.parquet.0123.tmp", b"x")
    assert storage.files_below(folder) == {}

    def work(at) -> StageResult:
        if isinstance(at, Path):
            assert not list(at.rglob("*.tmp"))
            (at / ".lost.tmp").write_bytes(b"of a worker that was killed")
        return build(at)

    output = publish(folder, work, resumable=resumable)
    assert not output.manifest.continued
    assert set(storage.files_below(folder)) == {*output.manifest.files, "manifest.json"}
    if isinstance(folder, Path):
        assert not list(folder.rglob("*.tmp"))


def test_a_stream_that_fails_leaves_nothing(folder):
    def fail() -> None:
        with storage.create(folder / "f.bin") as stream:
            stream.write(b"half")
            raise RuntimeError("died")

    with pytest.raises(RuntimeError, match="died"):
        fail()
    assert storage.files_below(folder, temporary=True) == {}


def text(file: Path) -> None:
    file.write_text("x")


def array(file: Path) -> None:
    with file.open("wb") as stream:
        np.save(stream, np.zeros(100_000))


def tensors(file: Path) -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def quota(file: Path) -> None:
    raise OSError(errno.EDQUOT, "Disk quota exceeded", str(file))


@pytest.mark.parametrize("work", [text, array, tensors, quota])
def test_a_full_disk_is_one_message_whoever_finds_it(tmp_path: Path, work):
    def build_on_full_disk(at) -> StageResult:
        work(Path("/dev/full"))
        raise AssertionError("written")

    with pytest.raises(FullDiskError, match=r"(out|/dev/full): no space left on its disk; free some and run the same"):
        publish(storage.path(tmp_path / "out"), build_on_full_disk)
    assert not publish(storage.path(tmp_path / "out")).reused


def test_other_errors_are_no_full_disk():
    for error in (OSError(errno.EACCES, "denied"), ValueError("os error 280"), StorageError("No space left on device")):
        with pytest.raises(type(error)) as raised, storage.full_disk_errors("here"):
            raise error
        assert raised.value is error
