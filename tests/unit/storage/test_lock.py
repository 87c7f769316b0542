"""One run at a time in an output folder, on a disk and on an object store."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from upath import UPath

from llm4msr import storage
from llm4msr.errors import StorageError
from llm4msr.storage import MANIFEST, StageOutput, StageResult, lock
from llm4msr.storage.lock import base, lock_for
from llm4msr.storage.lock.holder import Holder
from tests.support.experiments import ROOT

RUN = """
import sys, time
from llm4msr import storage
from llm4msr.storage import lock
from tests.unit.storage.test_lock import counted

def work():
    print("at work", flush=True)
    time.sleep(600)

lock.base.POLL_SECONDS = 0.05
print("ready", flush=True)
sys.stdin.readline()
output = storage.publish(storage.path(sys.argv[1]), "evaluate", 1, {}, {}, counted(work), resumable=True)
print(output.reused, output.manifest.files["metrics.json"].digest, flush=True)
"""


def counted(work: Callable[[], object]) -> Callable[[UPath], StageResult]:
    """Work that leaves a file for each time that it is done."""

    def build(at: UPath) -> StageResult:
        number = len([name for name in storage.files_below(at) if name.startswith("asked")])
        storage.write_bytes(at / f"asked-{number}", b"")
        work()
        storage.write_bytes(at / "metrics.json", b"result")
        return StageResult(files={"metrics.json": 1}, rows=1)

    return build


pytestmark = pytest.mark.filterwarnings("ignore:UPath 'plain' filesystem")


@pytest.fixture(params=["disk", "s3", "memory", "plain"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> UPath:
    """An output's folder: on a disk, an S3 store, another store, and one that knows no conditional writes."""
    for name, seconds in (("POLL_SECONDS", 0.02), ("SETTLE_SECONDS", 0.1)):
        monkeypatch.setattr(base, name, seconds)
    if request.param == "disk":
        return storage.path(tmp_path / "out")
    root = request.getfixturevalue("s3") if request.param == "s3" else f"{request.param}://"
    return storage.path(f"{root}/{uuid.uuid4().hex}/out")


class Plain(MemoryFileSystem):
    """A store that overwrites whatever it is told."""

    protocol = "plain"

    def pipe_file(self, path, value, mode="overwrite", **options):
        if mode != "overwrite":
            raise NotImplementedError(mode)
        super().pipe_file(path, value)


fsspec.register_implementation("plain", Plain, clobber=True)


def build(at: UPath) -> StageResult:
    storage.write_bytes(at / "metrics.json", b"result")
    return StageResult(files={"metrics.json": 1}, rows=1)


def publish(at: UPath, work: Callable[[UPath], StageResult] = build) -> StageOutput:
    return storage.publish(at, "evaluate", 1, {}, {}, work, resumable=True)


def other(**changes: object) -> bytes:
    """What a holder on another machine left."""
    return (
        Holder.this_process()
        .model_copy(update={"boot": "b", "host": "far", "pid": 7} | changes)
        .model_dump_json()
        .encode()
    )


@pytest.fixture
def process(folder: UPath) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Start another process that publishes in the folder, and works until it is killed; it waits for a line."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with ExitStack() as stack:

        def run() -> subprocess.Popen[str]:
            command = [sys.executable, "-c", RUN, str(folder)]
            started = stack.enter_context(subprocess.Popen(command, text=True, cwd=ROOT, **pipes))
            stack.callback(started.kill)
            assert started.stdout.readline() == "ready\n"
            return started

        yield run


def begin(process: subprocess.Popen[str]) -> None:
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.mark.parametrize("folder", ["disk", "s3"], indirect=True)
def test_of_two_runs_one_works_and_the_other_takes_its_result(
    folder: UPath, process: Callable[[], subprocess.Popen[str]]
):
    other, told = process(), []

    def until_the_other_waits() -> None:
        begin(other)
        told.append(other.stderr.readline())

    mine = publish(folder, counted(until_the_other_waits))
    theirs = other.communicate(timeout=60)[0]
    assert f"{folder}: another run works here (process {os.getpid()} on " in told[0]
    assert theirs.splitlines()[-1].split() == ["True", mine.manifest.files["metrics.json"].digest]
    assert set(storage.files_below(folder, temporary=True)) == {"asked-0", "metrics.json", MANIFEST}


@pytest.mark.parametrize("folder", ["disk", "s3"], indirect=True)
def test_a_killed_run_is_replaced_at_once(
    folder: UPath, process: Callable[[], subprocess.Popen[str]], capfd: pytest.CaptureFixture[str]
):
    first = process()
    begin(first)
    assert first.stdout.readline() == "at work\n"
    assert lock.is_held(folder)
    storage.write_bytes(folder / ".half.tmp", b"of a killed writer")
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(publish, folder, counted(list))
        while "another run works" not in (told := capfd.readouterr().err):
            time.sleep(0.02)
        first.send_signal(signal.SIGKILL)  # and nobody looks at its end yet
        output = second.result(timeout=60)
    assert f"(process {first.pid} on " in told
    assert output.manifest.continued
    assert not output.reused
    assert not lock.is_held(folder)
    left = set(storage.files_below(folder, temporary=isinstance(folder, Path)))
    assert left == {"asked-0", "asked-1", "metrics.json", MANIFEST}


def test_the_lock_goes_with_the_run_also_if_it_fails(folder: UPath):
    def fail(at: UPath) -> StageResult:
        assert lock.is_held(at)
        assert lock.NAME in storage.files_below(at, temporary=True)
        assert lock.NAME not in storage.files_below(at)
        raise RuntimeError("died")

    with pytest.raises(RuntimeError, match="died"):
        publish(folder, fail)
    assert not storage.files_below(folder, temporary=True)
    assert not publish(folder).manifest.continued


def test_threads_wait_for_each_other_and_a_thread_not_for_itself(folder: UPath):
    order = []

    def work(number: int) -> None:
        with lock.hold(folder) as mine, lock.hold(folder) as again:
            assert again is mine
            order.append(number)
            time.sleep(0.2)
            order.append(number)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, range(3)))
    assert order[::2] == order[1::2]


def test_a_lock_whose_file_was_just_deleted_is_none(tmp_path: Path):
    inside, worst = [0], [0]

    def work(_: int) -> None:
        for _ in range(30):
            one = lock_for(storage.path(tmp_path))
            while one.take():
                pass
            inside[0] += 1
            time.sleep(0.001)
            worst[0] = max(worst[0], inside[0])
            inside[0] -= 1
            one.release()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert worst == [1]


def test_other_outputs_are_not_waited_for(folder: UPath):
    with lock.hold(folder), ThreadPoolExecutor(1) as pool:
        assert not pool.submit(publish, folder.parent / "other").result(timeout=30).reused


def test_a_holder_elsewhere_is_dead_once_it_no_longer_renews(folder: UPath, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(base, "DEAD_SECONDS", 0)
    waiting = lock_for(folder)
    for beat in range(3):
        storage.write_bytes(folder / lock.NAME, other(id="x", beat=beat))
        assert "process 7 on far, since " in waiting.take()
    monkeypatch.setattr(base, "DEAD_SECONDS", 1e9)
    assert "process 7 on far, since " in waiting.take()
    monkeypatch.setattr(base, "DEAD_SECONDS", 0)
    assert not waiting.take()
    waiting.release()


def test_what_a_lock_says_is_shown_harmlessly(folder: UPath):
    assert str(Holder.parse(other(host="far\x1b[2J" + "x" * 1000))).startswith("process 7 on far\ufffd[2Jxxx")


def test_a_process_number_that_another_process_has_now_is_no_holder(folder: UPath):
    storage.write_bytes(folder / lock.NAME, other(boot=Holder.this_process().boot, pid=os.getpid(), start="1"))
    assert not publish(folder).reused


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"pid": "x"}'])
def test_a_lock_that_is_not_whole_holds_nobody_up(folder: UPath, text: bytes):
    storage.write_bytes(folder / lock.NAME, text)
    assert not publish(folder).reused


def test_one_of_many_gets_a_dead_ones_lock(folder: UPath):
    for _ in range(5):
        storage.write_bytes(folder / lock.NAME, other(boot=Holder.this_process().boot, pid=2**22, start="1"))
        many = [lock_for(folder) for _ in range(8)]
        with ThreadPoolExecutor(8) as pool:
            got = list(pool.map(lambda one: one.take(), many))
        assert got.count("") == 1
        many[got.index("")].release()


def test_who_was_taken_for_dead_publishes_nothing(folder: UPath):
    def slow(at: UPath) -> StageResult:
        with (at / lock.NAME).open("wb") as stream:
            stream.write(other())
        return build(at)

    with pytest.raises(StorageError, match=r"another run took this output over.*run the same command again"):
        publish(folder, slow)
    assert storage.open_output(folder) is None
    assert b'"far"' in storage.read_bytes(folder / lock.NAME), "the other's lock stays"


def test_a_lock_that_was_deleted_is_made_again(folder: UPath):
    def deleted(at: UPath) -> StageResult:
        (at / lock.NAME).unlink()
        return build(at)

    assert not publish(folder, deleted).reused
    assert not publish(folder.parent / "next").reused


def test_a_holder_gives_signs_of_life(folder: UPath, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(base, "BEAT_SECONDS", 0.05)
    with lock.hold(folder):
        first = json.loads(storage.read_bytes(folder / lock.NAME))
        time.sleep(0.5)
        second = json.loads(storage.read_bytes(folder / lock.NAME))
    assert second["beat"] > first["beat"]
    assert second["id"] == first["id"]


@pytest.mark.parametrize("place", ["/proc/nope/runs", "/dev/null/runs", "https://127.0.0.1:9/runs"])
def test_storage_that_cannot_be_written_is_told_before_the_work(place: str):
    def never(at: UPath) -> StageResult:
        raise AssertionError("worked")

    with pytest.raises(StorageError, match=r"cannot be (written|read) \(.*check the path"):
        publish(storage.path(place) / "out", never)
