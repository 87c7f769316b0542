"""A disk that fills up in the middle of each stage: one message; and once there is room, the same command goes on."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm4msr import pipeline, storage
from llm4msr.errors import FullDiskError
from llm4msr.storage import MANIFEST, StageOutput, lock
from tests.ray.test_killed import digests
from tests.support.experiments import Experiment, MakeExperiment
from tests.support.fixtures import Spine

STAGES = ("extract", "train", "evaluate", "export", "explain", "refresh")
"""`prepare`, which needs no Ray, has a test of its own."""
PAGE = 1 << 12
"""What a tmpfs counts in."""
FULL = r"^/[^\n]*: no space left on its disk; free some and run the same command again$"


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small disk of its own."""
    folder = tmp_path_factory.mktemp("disk")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", folder], capture_output=True)
    if done.returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture(scope="module")
def whole(spine: Spine, experiment: MakeExperiment, tmp_path_factory: pytest.TempPathFactory) -> dict[str, StageOutput]:
    """Stage -> its output of an undisturbed run; what `llm4msr.pipeline` leaves out is made beside the spine."""
    made = beside(spine, experiment, tmp_path_factory.mktemp("whole") / "runs")
    others = {"explain": pipeline.explain(made.config), "refresh": pipeline.refresh(made.config)}
    return others | {stage: spine.one(stage) for stage in STAGES if stage not in others}


def beside(spine: Spine, experiment: MakeExperiment, root: Path, without: str = "") -> Experiment:
    """The spine's config with a copy of its outputs, but those of one stage."""
    source = spine.experiment.root
    # prepared data has a folder `train` too
    shutil.copytree(source, root, ignore=lambda folder, _: {without} if Path(folder) == Path(source) else set())
    return experiment({"storage": str(root)})


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_whose_disk_is_full_says_so_and_goes_on_once_there_is_room(
    stage: str, disk: Path, spine: Spine, whole: dict[str, StageOutput], experiment: MakeExperiment
) -> None:
    run, undisturbed = getattr(pipeline, stage), whole[stage]
    made = beside(spine, experiment, disk / stage / "runs", without=stage)
    folder = made.root / str(undisturbed.folder).rpartition("/runs/")[2]
    kept = []  # as a notebook keeps an error, and with it all that its frames hold
    for pages in budgets(undisturbed):
        pages += pages_below(folder / "work")  # which an extraction needs besides
        fill(disk, pages - pages_below(folder))
        with pytest.raises(FullDiskError, match=FULL) as caught:
            run(made.config)
        kept.append(caught)
        (disk / "ballast").unlink()
        assert caught.value.exit_code == 2
        assert not (folder / MANIFEST).exists()
    output: StageOutput = run(made.config)
    assert Path(str(output.folder)) == folder
    assert not output.reused
    assert comparable(output) == comparable(undisturbed)
    there = {name for name in storage.files_below(output.folder, temporary=True) if not name.startswith("tensorboard/")}
    assert there == {*output.manifest.files, MANIFEST}
    assert not [place for place in made.root.rglob("*") if place.suffix == ".tmp" or place.name == lock.NAME]
    if stage == "extract":
        assert output.manifest.skipped > 0, "it kept the shards that were finished"
    shutil.rmtree(made.root)


def comparable(output: StageOutput) -> dict[str, str]:
    """The report says when and from what it was made; what its pictures show lies beside it."""
    return {name: digest for name, digest in digests(output).items() if name != "report.html"}


def budgets(undisturbed: StageOutput) -> list[int]:
    """Pages that a stage may fill: with nothing but its lock, with a half, and with all but the last of them."""
    whole = pages_below(Path(str(undisturbed.folder))) + 1  # and the lock
    if undisturbed.manifest.stage == "train":
        checkpoint = 4 * 4 * undisturbed.manifest.info["parameters"]  # net, best net, and two averages of a gradient
        return [1, 3 * checkpoint // (2 * PAGE)]  # it needs room for two of them, more than for all that it publishes
    planned = 16 if undisturbed.manifest.stage == "extract" else 0
    return [1, whole // 2 + planned, whole - 1]


def pages_below(folder: Path) -> int:
    return sum(-(-file.stat().st_size // PAGE) for file in folder.rglob("*") if file.is_file())


def fill(disk: Path, pages: int) -> None:
    """Leave so many pages of the disk."""
    left = os.statvfs(disk)
    with (disk / "ballast").open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, left.f_bavail * left.f_frsize - max(pages, 0) * PAGE)
