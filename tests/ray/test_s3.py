"""Config, data, model and every stage's output on an object store (moto's S3 server)."""

import os
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest
from upath import UPath

import llm4msr
from llm4msr import Ranker, RankRequest, pipeline, storage
from llm4msr.knowledge.engines import models
from tests.support.experiments import Experiment, MakeExperiment
from tests.support.fault_proxy import FAULTS, FaultProxy
from tests.support.fixtures import Spine


@pytest.fixture(scope="module")
def run_on_s3(
    s3: str, spine: Spine, table: Path, experiment: MakeExperiment
) -> tuple[str, list[llm4msr.storage.StageOutput]]:
    """Storage URI of a run of the spine's config with everything but the LLM on S3, and its outputs."""
    changes = {"source.path": f"{s3}/data", "storage": f"{s3}/run", "evaluate.variants": [], "extract.answers": "none"}
    local: Experiment = experiment(changes)
    bucket = fsspec.filesystem("s3")
    for file in table.iterdir():
        bucket.put(str(file), f"{s3}/data/{file.name}")
    bucket.put(str(local.file), f"{s3}/configs/small.toml")
    return f"{s3}/run", pipeline.run(llm4msr.load(f"{s3}/configs/small.toml"))


def test_every_stage_is_published_on_s3(run_on_s3: tuple[str, list[llm4msr.storage.StageOutput]]) -> None:
    root, outputs = run_on_s3
    assert [output.manifest.stage for output in outputs] == ["prepare", "extract", "train", "evaluate", "export"]
    bucket = fsspec.filesystem("s3")
    for output in outputs:
        assert str(output.folder).startswith(root)
        for name, part in output.manifest.files.items():
            assert bucket.size(f"{output.folder}/{name}") == part.bytes
    (train,) = [output for output in outputs if output.manifest.stage == "train"]
    assert bucket.glob(f"{train.folder}/tensorboard/events.out.tfevents.*")
    assert not bucket.exists(f"{train.folder}/checkpoints")


def test_same_seed_gives_the_same_weights_and_metrics_as_the_local_run(
    spine: Spine, run_on_s3: tuple[str, list[llm4msr.storage.StageOutput]]
) -> None:
    for output in run_on_s3[1]:
        stage = output.manifest.stage
        here = spine.one(stage).manifest
        assert not output.reused
        assert output.manifest.info.get("metrics") == here.info.get("metrics")
        if stage in ("prepare", "train", "export"):
            assert {n: p.digest for n, p in output.manifest.files.items() if n != "README.md"} == {
                n: p.digest for n, p in here.files.items() if n != "README.md"
            }


def test_the_bundle_on_s3_ranks_like_the_local_one(
    spine: Spine, run_on_s3: tuple[str, list[llm4msr.storage.StageOutput]]
) -> None:
    request = RankRequest(user_id="user-1", scenario="films", items=[f"item-{i}" for i in range(20)])
    there = Ranker.load(str(run_on_s3[1][-1].folder)).rank(request)
    here = Ranker.load(str(spine.folder("export"))).rank(request)
    assert there.ranked == here.ranked
    assert there.knowledge == "stored"


def test_running_again_on_s3_finds_everything_finished(
    s3: str, run_on_s3: tuple[str, list[llm4msr.storage.StageOutput]]
) -> None:
    again = pipeline.run(llm4msr.load(f"{s3}/configs/small.toml"))
    assert all(output.reused for output in again)


def test_a_model_on_s3_is_fetched_once(s3: str, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM4MSR_CACHE", str(tmp_path))
    fsspec.filesystem("s3").put(str(llama), f"{s3}/models/tiny", recursive=True)
    folder = models.resolve(f"{s3}/models/tiny")
    assert models.revision(folder) == models.revision(llama)
    stamp = (folder / "config.json").stat().st_mtime_ns
    assert models.resolve(f"{s3}/models/tiny") == folder
    assert (folder / "config.json").stat().st_mtime_ns == stamp


def test_a_missing_model_on_s3_says_so(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM4MSR_CACHE", str(tmp_path))
    with pytest.raises(llm4msr.errors.StorageError, match=r"s3://.*no-such-model: the model cannot be read"):
        models.resolve(f"{s3}/no-such-model")
    with pytest.raises(llm4msr.errors.StorageError, match=r"no-such-config.toml: cannot be read"):
        llm4msr.load(f"{s3}/no-such-config.toml")


def test_storage_gets_over_503_and_cut_connections(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file is written and read as it should be, though a fifth of the requests goes wrong."""
    from s3fs import S3FileSystem

    with FaultProxy(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        S3FileSystem.clear_instance_cache()
        try:
            folder = storage.path(f"{s3}/faults")
            for number in range(30):
                storage.write_table(folder / f"t{number}.parquet", pa.table({"a": [number] * 1000}))
            assert len(storage.files_below(folder)) == 30
            for number in range(30):
                assert storage.read_table(folder / f"t{number}.parquet")["a"].to_pylist() == [number] * 1000
            output = storage.publish(folder / "out", "prepare", 1, {}, {}, lambda at: _one_table(at))
            assert storage.open_output(output.folder) is not None
        finally:
            S3FileSystem.clear_instance_cache()
    assert all(proxy.faults[fault] for fault in FAULTS), proxy.faults


def _one_table(folder: UPath) -> storage.StageResult:
    storage.write_table(folder / "train/p=00000.parquet", pa.table({"a": [1]}))
    return storage.StageResult(files={"train/p=00000.parquet": 1}, rows=1)
