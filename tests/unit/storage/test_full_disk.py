"""A disk that fills up while `prepare` writes, or a model is fetched: one message; once there is room, it is done."""

import os
from pathlib import Path

import pytest

from llm4msr import pipeline, storage
from llm4msr.errors import FullDiskError
from llm4msr.knowledge.engines import models
from llm4msr.storage import MANIFEST, lock
from tests.support.data import config_of, write_data


def test_prepare_on_a_full_disk_says_so_and_goes_on_once_there_is_room(disk: Path, tmp_path: Path):
    data = write_data(tmp_path / "data")
    whole = pipeline.prepare(config_of(data, storage_at=str(tmp_path / "runs")))
    config = config_of(data, storage_at=str(disk / "runs"))
    for room in (0, 8 << 10, 40 << 10):
        there = os.statvfs(disk)
        (disk / "ballast").write_bytes(bytes(there.f_bavail * there.f_frsize - room))
        with pytest.raises(FullDiskError, match=r"no space left on its disk; free some and run the same command again"):
            pipeline.prepare(config)
        (disk / "ballast").unlink()
        assert not list(disk.rglob(MANIFEST))
    output = pipeline.prepare(config)
    assert output.manifest.files == whole.manifest.files
    assert not [place for place in disk.rglob("*") if place.suffix == ".tmp" or place.name == lock.NAME]


def test_a_cache_without_room_for_a_model_is_named(llama: Path, disk: Path, monkeypatch: pytest.MonkeyPatch):
    for file in llama.iterdir():
        storage.write_bytes(storage.path("memory://models/full") / file.name, file.read_bytes())
    monkeypatch.setenv("LLM4MSR_CACHE", str(disk / "cache"))
    there = os.statvfs(disk)
    (disk / "ballast").write_bytes(bytes(there.f_bavail * there.f_frsize - (200 << 10)))
    with pytest.raises(FullDiskError, match=f"^{disk}/cache: no space left on its disk; free some and run"):
        models.resolve("memory://models/full")
    assert [place.suffix for place in (disk / "cache").iterdir()] == [".lock"]
    (disk / "ballast").unlink()
    assert models.revision(models.resolve("memory://models/full")) == models.revision(llama)
