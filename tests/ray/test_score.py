"""Lists for the users of several partitions, as tasks of Ray."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from llm4msr import pipeline, storage
from llm4msr.config import Config
from llm4msr.storage import MANIFEST, StageOutput, lock
from tests.support.bundles import publish_bundle
from tests.support.data import config_of, prepare_and_make_knowledge, write_data
from tests.support.experiments import ROOT, kill_all, own_ray, wait_until
from tests.support.fault_proxy import FaultProxy
from tests.support.partitioned import in_partitions

PARTITIONS = 8
CODE = "import sys; from llm4msr import Config, pipeline; pipeline.score(Config.model_validate_json(sys.argv[1]))"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Prepared data in one partition, and a bundle."""
    config = config_of(write_data(tmp_path_factory.mktemp("score")), split={"by": "user"}, score={"top_k": 5})
    world = (config, *prepare_and_make_knowledge(config))
    bundle = publish_bundle(world, tmp_path_factory.mktemp("bundle")).output
    return config.model_copy(update={"serve": config.serve.model_copy(update={"bundle": str(bundle.folder)})})


def in_parts(config: Config, root: str) -> Config:
    return in_partitions(config, pipeline.prepared(config), PARTITIONS, root)[0]


def lists_of(output: StageOutput) -> pa.Table:
    files = [name for name in output.manifest.files if name.startswith("lists/")]
    table = pa.concat_tables(storage.read_table(output.folder / name) for name in files)
    columns = {name: table[name].cast(pa.string()) for name in ("user_id", "scenario", "item_id")}
    plain = pa.table({**columns, "rank": table["rank"], "score": table["score"]})
    return plain.sort_by([(name, "ascending") for name in ("user_id", "scenario", "rank")]).combine_chunks()


def assert_same_lists(output: StageOutput, other: StageOutput) -> None:
    """Of the same items in the same order; the last digits of a score may be another process's."""
    assert output.manifest.rows == other.manifest.rows > 0
    ours, theirs = lists_of(output), lists_of(other)
    assert ours.drop_columns("score").equals(theirs.drop_columns("score"))
    assert ours["score"].to_pylist() == pytest.approx(theirs["score"].to_pylist(), abs=1e-6)


def test_users_in_partitions_have_the_lists_of_one(config: Config, tmp_path: Path, ray_session: None) -> None:
    whole, parts = (pipeline.score(one) for one in (config, in_parts(config, str(tmp_path))))
    assert len(parts.manifest.files) == 1 + PARTITIONS
    assert_same_lists(parts, whole)


def test_killed_and_continued_it_has_the_lists_of_an_undisturbed_run(
    config: Config, s3: str, tmp_path: Path, ray_session: None
) -> None:
    undisturbed = pipeline.score(in_parts(config, str(tmp_path)))
    root, passing = f"{s3}/killed-in-score", 3
    parts = in_parts(config, root)
    hold = f"/killed-in-score/score/[^/]+/(?!{re.escape(lock.NAME)})lists/"
    log = (tmp_path / "log").open("w")
    with FaultProxy(os.environ["AWS_ENDPOINT_URL"], share=0, hold=hold, passing=passing) as proxy, log:
        command = [sys.executable, "-c", CODE, parts.model_dump_json()]
        environment = own_ray() | {"AWS_ENDPOINT_URL": proxy.endpoint}
        process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=log)
        wait_until(proxy.held.is_set, process)
        kill_all(process)
    (folder,) = storage.path(f"{root}/score").iterdir()
    left = {name: folder.fs.modified((folder / name).path) for name in storage.files_below(folder) if "lists" in name}
    assert len(left) >= passing
    assert not (folder / MANIFEST).exists()

    output = pipeline.score(parts)
    assert output.folder == folder
    assert output.manifest.continued
    assert {name: folder.fs.modified((folder / name).path) for name in left} == left, "scored again"
    assert_same_lists(output, undisturbed)
