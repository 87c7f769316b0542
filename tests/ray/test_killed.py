"""The driver is killed in the middle of a stage, at a moment that S3 chooses, and the stage started again.

Extraction is killed in test_extract.py, and on S3 in benchmarks/extract_chaos.py.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest

from llm4msr import pipeline, storage
from llm4msr.storage import MANIFEST, StageOutput, lock
from tests.support.experiments import ROOT, MakeExperiment, kill_all, own_ray, wait_until
from tests.support.fault_proxy import FaultProxy
from tests.support.fixtures import Spine

BEFORE = {
    "prepare": (),
    "train": ("prepare", "extract"),
    "evaluate": ("prepare", "extract", "train"),
    "export": ("prepare", "extract", "train"),
}
"""What stands finished when a stage begins."""
HELD = {
    "prepare": ("", 1),
    "train": (r"checkpoints/.*/progress\.json", 2),
    "evaluate": ("", 1),
    "export": ("", 1),
}
"""Files of a stage, and how many of them are written before the driver is killed in the middle of the next."""


@pytest.mark.parametrize("stage", BEFORE)
def test_a_driver_killed_in_a_stage_continues(
    stage: str, s3: str, spine: Spine, experiment: MakeExperiment, tmp_path: Path
) -> None:
    root = f"{s3}/killed-in-{stage}"
    made = experiment({"storage": root, "evaluate.variants": []})
    for before in BEFORE[stage]:
        whole = spine.folder(before)
        fsspec.filesystem("s3").put(f"{whole}/", f"{root}/{before}/{whole.name}/", recursive=True)
    files, passing = HELD[stage]
    hold = f"/killed-in-{stage}/{stage}/[^/]+/(?!{re.escape(lock.NAME)}){files}"
    log = (tmp_path / "log").open("w")
    with FaultProxy(os.environ["AWS_ENDPOINT_URL"], share=0, hold=hold, passing=passing) as proxy, log:
        command = [sys.executable, "-m", "llm4msr", stage, str(made)]
        environment = own_ray() | {"AWS_ENDPOINT_URL": proxy.endpoint}
        process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=log)
        wait_until(proxy.held.is_set, process)
        kill_all(process)
    (folder,) = storage.path(f"{root}/{stage}").iterdir()
    left = storage.files_below(folder)
    assert left
    assert MANIFEST not in left

    output: StageOutput = getattr(pipeline, stage)(made.config)
    assert output.folder == folder
    assert output.manifest.continued
    there = {name for name in storage.files_below(folder) if not name.startswith("tensorboard/")}
    assert there == {*output.manifest.files, MANIFEST}, "files of two runs"
    info, whole_info = output.manifest.info, spine.one(stage).manifest.info
    if stage == "train":
        assert [start["epoch"] for start in info["starts"]] == [0, passing]
        history = json.loads(storage.read_bytes(folder / "history.json"))
        assert [epoch["epoch"] for epoch in history] == list(range(1, 13))
    assert info.get("metrics") == whole_info.get("metrics")
    if stage != "evaluate":
        assert digests(output) == digests(spine.one(stage))


def digests(output: StageOutput) -> dict[str, str]:
    return {name: part.digest for name, part in output.manifest.files.items() if name != "README.md"}
