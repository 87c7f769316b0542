"""The swap of the model in service: whole, or not at all."""

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from llm4msr import storage
from llm4msr.bundle.files import latest_codes
from llm4msr.errors import StorageError
from llm4msr.serve.live_model import LiveModel
from tests.support.bundles import rank_request
from tests.unit.serve.conftest import Served, count_refusals, versions


def test_newer_codes_come_and_go_and_a_taken_ranker_stays_as_it_was(served: Served):
    async def steps(live: LiveModel) -> None:
        await live.load(str(served.bundle))
        first = live.ranker
        before = first.rank(rank_request(), "a")
        served.refresh("n1", "u1")
        await live.take_latest_codes()
        assert live.ranker.rank(rank_request(), "a").knowledge_version == "n1"
        assert live.ranker.rank(rank_request(), "a").ranked != before.ranked
        assert first.rank(rank_request(), "a") == before
        await live.take_latest_codes()
        assert live.ranker.knowledge_version == "n1"
        (served.codes / "latest.json").unlink()
        await live.take_latest_codes()
        assert live.ranker is first

    assert count_refusals(steps) == 0


def test_a_replica_that_starts_later_takes_the_latest_codes(served: Served):
    served.refresh("n1", "u1")

    async def steps(live: LiveModel) -> None:
        await live.load(str(served.bundle))
        assert live.ranker.knowledge_version == "n1"

    assert count_refusals(steps) == 0


def test_a_new_bundle_and_its_newest_codes_come_together(served: Served):
    served.refresh("n1", "u1", bundle="b2")
    second = str(served.copy("b2"))

    async def steps(live: LiveModel) -> None:
        await live.load(str(served.bundle))
        seen = {versions(live)}
        loading = asyncio.create_task(live.load(second))
        while not loading.done():
            seen.add(versions(live))
            await asyncio.sleep(0)
        assert seen | {versions(live)} == {("b1", "b1"), ("b2", "n1")}

    assert count_refusals(steps) == 0


def test_a_new_bundle_whose_codes_are_damaged_waits_for_them(served: Served):
    served.refresh("n1", "u1", bundle="b2")
    second = served.copy("b2")
    damaged = served.root / "codes" / "b2" / "n1" / "codes.arrow"
    good = damaged.read_bytes()
    damaged.write_bytes(b"x")

    async def steps(live: LiveModel) -> None:
        await live.load(str(served.bundle))
        await live.load(str(second))
        assert versions(live) == ("b1", "b1")
        assert "codes.arrow" in live.problem
        damaged.write_bytes(good)
        await live.take_latest_codes()
        assert (live.problem, *versions(live)) == ("", "b2", "n1")

    assert count_refusals(steps) == 1


def test_damaged_codes_do_not_keep_a_replica_from_starting(served: Served):
    served.point_to("absent")

    async def steps(live: LiveModel) -> None:
        await live.load(str(served.bundle))
        assert versions(live) == ("b1", "b1")
        assert "not a finished set of codes" in live.problem
        (served.codes / "latest.json").unlink()
        await live.take_latest_codes()
        assert live.problem == ""

    assert count_refusals(steps) == 1


POINTERS = ["[]", "", "{", "null", '{"codes": 1}', '{"codes": ""}', "[" * 100_000]
POINTERS += [f'{{"codes": "{name}"}}' for name in ("..", "../b2/n1", "/etc", "a/b", r"a\\b", "s3://other/codes")]


@pytest.mark.parametrize("text", POINTERS, ids=lambda text: text[:20])
def test_a_pointer_names_a_folder_beside_it(served: Served, text: str):
    served.point_to("n1")
    (served.codes / "latest.json").write_text(text)
    with pytest.raises(StorageError, match=r"latest\.json: damaged; run `llm4msr refresh` again"):
        latest_codes(str(served.bundle))


@pytest.mark.parametrize("spoil", ["pointer", "codes", "absent"])
def test_what_cannot_be_loaded_leaves_the_old_one_in_service(served: Served, spoil: str):
    async def steps(live: LiveModel) -> None:
        await live.load(str(served.bundle))
        first = live.ranker
        served.refresh("n1", "u1")
        if spoil == "pointer":
            (served.codes / "latest.json").write_text("[]")
        if spoil == "codes":
            (served.codes / "n1" / "codes.arrow").write_bytes(b"x")
        if spoil == "absent":
            served.point_to("n2")
        await live.take_latest_codes()
        assert live.ranker is first
        assert "StorageError: " in live.problem
        served.refresh("n3", "u1")
        await live.take_latest_codes()
        assert (live.problem, live.ranker.knowledge_version) == ("", "n3")
        await live.load(str(served.bundle) + "-gone")
        assert live.ranker.knowledge_version == "n3"
        assert "not a finished bundle" in live.problem

    assert count_refusals(steps) == 2


def test_a_disk_too_full_for_a_bundle_leaves_the_old_one_in_service(
    served: Served, disk: Path, monkeypatch: pytest.MonkeyPatch
):
    for file in served.copy("b2").iterdir():
        storage.write_bytes(storage.path("memory://full/export/b2") / file.name, file.read_bytes())
    monkeypatch.setenv("LLM4MSR_CACHE", str(disk / "cache"))
    there, ballast = os.statvfs(disk), disk / "ballast"
    ballast.write_bytes(bytes(there.f_bavail * there.f_frsize - (16 << 10)))

    async def steps(live: LiveModel) -> None:
        await live.load(str(served.bundle))
        await live.load("memory://full/export/b2")
        assert versions(live) == ("b1", "b1")
        assert "the cache cannot be written (No space left on device); make room there" in live.problem
        ballast.unlink()
        await live.take_latest_codes()
        assert (live.problem, *versions(live)) == ("", "b2", "b2")

    assert count_refusals(steps) == 1


def test_a_problem_ends_with_its_cause(served: Served):
    gone = str(served.bundle) + "-gone"

    async def steps(live: LiveModel) -> None:
        served.refresh("n1", "u1")
        await live.load(str(served.bundle))
        first = live.ranker
        served.point_to("n2")
        await live.take_latest_codes()
        assert live.problem
        served.point_to("n1")  # back to those in service
        await live.take_latest_codes()
        assert (live.problem, live.ranker) == ("", first)
        await live.load(gone)
        assert live.problem
        await live.load(str(served.bundle))  # back to the one in service
        assert (live.problem, live.ranker) == ("", first)
        await live.load(gone)
        served.copy("b1-gone")  # the wanted one is there at last
        await live.take_latest_codes()
        assert (live.problem, *versions(live)) == ("", "b1-gone", "b1-gone")

    assert count_refusals(steps) == 3


def test_the_bundle_in_service_is_not_loaded_again(served: Served):
    async def steps(live: LiveModel) -> None:
        assert await live.load(str(served.bundle))
        first = live.ranker
        shutil.rmtree(served.bundle)  # so that it could not be
        assert not await live.load(str(served.bundle))
        assert (live.problem, live.ranker) == ("", first)

    assert count_refusals(steps) == 0


def test_the_first_bundle_must_load(tmp_path: Path):
    live = LiveModel(on_refusal=lambda _: None)
    with pytest.raises(StorageError, match="not a finished bundle"):
        asyncio.run(live.load(str(tmp_path)))


def test_codes_are_looked_for_again_and_again(served: Served):
    async def scenario() -> str:
        live = LiveModel(on_refusal=lambda _: None)
        await live.load(str(served.bundle))
        live.follow(0.02)
        served.refresh("n1", "u1")
        for _ in range(500):
            await asyncio.sleep(0.01)
            if live.ranker.knowledge_version == "n1":
                break
        return live.ranker.knowledge_version

    assert asyncio.run(scenario()) == "n1"
