"""The log of requests, of a replica without Ray."""

import asyncio
import json
import os
import stat
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from llm4msr import Ranker, storage
from llm4msr.bundle import request_rows
from llm4msr.config import LogConfig, ServeConfig
from llm4msr.serve import request_log
from llm4msr.serve.metrics import ServeMetrics
from llm4msr.serve.replica import Replica
from llm4msr.serve.request_log import RequestLog
from tests.support.bundles import rank_request
from tests.support.matching import publish_matching
from tests.unit.serve.conftest import Served

DAY = 86_400.0


pytestmark = pytest.mark.usefixtures("replica_process")


def run(bundle: object, steps: Callable[[Replica], Coroutine[Any, Any, None]], **log: Any) -> None:
    async def all_steps() -> None:
        replica = Replica(ServeConfig.model_validate({"follow_s": 0, "log": {"share": 1} | log}), False)
        await replica.reconfigure({"bundle": str(bundle)})
        await steps(replica)

    asyncio.run(all_steps())


def rows(folder: Path) -> list[dict[str, Any]]:
    return pa.concat_tables(request_rows.read_each(storage.path(folder))).to_pylist()


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir()) if folder.exists() else []


class Counts(ServeMetrics):
    """Keeps what Prometheus would be told of the log."""

    def __init__(self) -> None:
        self.all: Counter[str] = Counter()

    def logged(self, version: str, result: str, requests: int) -> None:
        assert version
        self.all[result] += requests


async def serve(folder: Path, bundle: Path, requests: int, counts: Counts, **config: Any) -> RequestLog:
    """A log that has been told of some requests."""
    made = RequestLog(LogConfig.model_validate({"folder": str(folder), "share": 1} | config), counts)
    tell(made, Ranker.load(str(bundle)), requests)
    return made


def tell(told: RequestLog, ranker: Ranker, requests: int, **changes: Any) -> None:
    scored: list[Any] = []
    asked = [rank_request(**changes)] * requests
    told.add(asked, ranker.rank_many(asked, [""] * requests, scored=scored), scored, ranker)


def test_a_row_has_what_was_asked_read_and_answered(served: Served, tmp_path: Path) -> None:
    folder = tmp_path / "log"

    async def steps(replica: Replica) -> None:
        asked = [rank_request(items=["i3", "odd", "i1"], top_k=1), rank_request(user_id="nobody", scenario="nowhere")]
        before = time.time()
        responses = await replica.respond(asked, "my-id")
        assert replica.log is not None
        assert names(folder) == []
        await replica.log.flush()
        one, other = rows(folder)
        assert (one["history_mode"], other["context"]) == ("extend", [("device", "tv")])
        assert before <= one["time"].timestamp() <= time.time()
        (user,) = (one["user_id"],)
        assert (one["request_id"], user, one["scenario"], one["items"]) == ("my-id", "u1", "home", asked[0].items)
        assert (one["model_version"], one["knowledge_version"], one["knowledge"]) == ("b1", "b1", "stored")
        assert one["context"] == [("device", "tv")]
        best = responses[0].ranked[0]
        assert one["scores"][one["items"].index(best.item_id)] == pytest.approx(best.score, abs=1e-7)
        assert max(one["scores"]) == pytest.approx(best.score, abs=1e-7)
        ranker = replica.live.ranker
        place = ranker.users.find("u1")
        assert place is not None
        assert one["user_slots"] == ranker.users.numbers("slots", place).tolist()
        code = ranker.knowledge.codes.find("u1")
        assert code is not None
        assert np.array_equal(np.float16(one["code"]), ranker.knowledge.codes.numbers("code", code))
        assert (other["user_id"], other["knowledge"], other["code"]) == ("nobody", "none", None)
        assert len(other["scores"]) == 3
        assert stat.S_IMODE(next(folder.iterdir()).stat().st_mode) & 0o007 == 0
        assert stat.S_IMODE(folder.stat().st_mode) & 0o007 == 0

    run(served.bundle, steps, folder=str(folder))


def test_events_are_those_that_the_model_read(tmp_path: Path) -> None:
    made = publish_matching(tmp_path / "matching", pooled=True, knowledge="both")
    history = [{"item_id": "i7", "scenario": "search", "liked": False}, {"item_id": "odd", "scenario": "home"}]

    async def steps(replica: Replica) -> None:
        assert replica.log is not None
        asked = [rank_request(user_id=user, items=["i1"], history=history, context={}) for user in ("u3", "new")]
        await replica.respond(asked, "")
        await replica.respond([rank_request(user_id="u3", context={})], "")
        await replica.log.flush()
        known, new, stored = rows(tmp_path / "log")
        told = {"item_id": "i7", "scenario": "search", "liked": False}
        kept = [dict(zip(("item_id", "scenario", "liked"), event, strict=True)) for event in made.events["u3"]]
        assert known["events"] == [*kept, told][-8:]
        assert (new["events"], new["knowledge"]) == ([told], "request")
        assert stored["events"] == kept[-8:]

    run(made.output.folder, steps, folder=str(tmp_path / "log"))


def test_only_a_share_is_logged_and_nothing_where_it_is_off(served: Served, tmp_path: Path) -> None:
    async def sample() -> int:
        made = await serve(tmp_path / "log", served.bundle, 2_000, Counts(), share=0.1)
        return len(made._held)

    assert asyncio.run(sample()) == pytest.approx(200, abs=60)

    async def steps(replica: Replica) -> None:
        assert replica.log is None
        await replica.respond([rank_request()], "")

    run(served.bundle, steps, folder="")


def test_what_there_is_no_room_for_is_dropped_and_counted(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def by_rows(counts: Counts) -> None:
        made = await serve(tmp_path / "rows", served.bundle, 25, counts, file_rows=10)
        assert (len(made._held), made._is_full.is_set()) == (20, True)
        await made.flush()
        assert (len(made._held), made._bytes, made._is_full.is_set()) == (0, 0, False)

    async def by_bytes(counts: Counts) -> None:
        monkeypatch.setattr(request_log, "HELD_BYTES", 100_000)
        made = await serve(tmp_path / "bytes", served.bundle, 0, counts)
        tell(made, Ranker.load(str(served.bundle)), 9, items=["x" * 8_000] * 2)
        assert len(made._held) == 6
        assert made._bytes <= 100_000
        await made.flush()

    for steps, expected in ((by_rows, {"written": 20, "dropped": 5}), (by_bytes, {"written": 6, "dropped": 3})):
        counts = Counts()
        asyncio.run(steps(counts))
        assert counts.all == expected


def test_a_file_is_written_when_there_are_rows_enough_and_when_the_replica_ends(served: Served, tmp_path: Path) -> None:
    async def steps() -> None:
        made = await serve(tmp_path / "log", served.bundle, 0, Counts(), file_rows=3)
        made.start()
        ranker = Ranker.load(str(served.bundle))
        tell(made, ranker, 2)
        await asyncio.sleep(0.01)
        assert names(tmp_path / "log") == []
        tell(made, ranker, 1)
        async with asyncio.timeout(30):
            while not names(tmp_path / "log"):
                await asyncio.sleep(0.01)
        tell(made, ranker, 1)
        made.close()

    asyncio.run(steps())
    assert len(rows(tmp_path / "log")) == 4


def test_old_files_go_then_the_oldest_and_foreign_ones_stay(served: Served, tmp_path: Path) -> None:
    folder, now = tmp_path / "log", time.time()
    folder.mkdir()
    ours = [request_rows.file_name(now - age * DAY, f"{age:012x}") for age in (8, 6, 5, 4)]
    unfinished = [f".{request_rows.file_name(now - age, '0' * 12)}.{'a' * 12}.tmp" for age in (60, 2 * 3_600)]
    foreign = ["precious.parquet", "20200101T000000Z-.parquet", ".hidden.tmp", "20200101T000000Z-0123456789ab.csv"]
    for name in [*ours, *unfinished, *foreign]:
        (folder / name).write_bytes(b"x" * 30_000)

    async def steps() -> None:
        made = await serve(folder, served.bundle, 3, Counts(), days=7, max_bytes=100_000)
        await made.flush()

    asyncio.run(steps())
    left = set(names(folder))
    assert left >= {*foreign, unfinished[0], ours[3]}
    assert not left & {ours[0], ours[1], ours[2], unfinished[1]}
    assert len(left) == len(foreign) + 3
    total = sum(file.bytes for file in request_rows.files(storage.path(folder)))
    assert total <= 100_000


def test_a_full_disk_loses_rows_of_the_log_and_no_answer(
    served: Served, disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    there, ballast = os.statvfs(disk), disk / "ballast"
    ballast.write_bytes(bytes(there.f_bavail * there.f_frsize - (4 << 10)))
    counts = Counts()

    async def steps(replica: Replica) -> None:
        assert replica.log is not None
        replica.log._metrics = counts
        for _ in range(2):
            assert (await replica.respond([rank_request()] * 200, ""))[0].ranked
            await replica.log.flush()
        assert names(disk / "log") == []
        assert counts.all == {"failed": 400}
        ballast.unlink()
        await replica.respond([rank_request()], "")
        await replica.log.flush()
        assert counts.all == {"failed": 400, "written": 1}

    with caplog.at_level("ERROR", "ray.serve"):
        run(served.bundle, steps, folder=str(disk / "log"))
    assert [record.message for record in caplog.records if "no space left" in record.message][1:] == []
    assert len(rows(disk / "log")) == 1


def test_a_folder_that_is_a_file_loses_rows_and_no_answer(served: Served, tmp_path: Path) -> None:
    (tmp_path / "log").write_text("no folder")

    async def steps(replica: Replica) -> None:
        assert replica.log is not None
        replica.log._metrics = counts = Counts()
        assert (await replica.respond([rank_request()], ""))[0].ranked
        await replica.log.flush()
        assert counts.all == {"failed": 1}

    run(served.bundle, steps, folder=str(tmp_path / "log"))


def test_hostile_texts_are_written_as_they_came(served: Served, tmp_path: Path) -> None:
    texts = ["\0", "é漢\U0001f600", "'; DROP TABLE", "../../etc/passwd", "", "\r\n", "x" * 8_192]

    async def steps(replica: Replica) -> None:
        assert replica.log is not None
        for text in texts:
            request = rank_request(user_id=text, scenario=text, items=[text, "i1"], context={"device": text})
            await replica.respond([request], text[:100])
        await replica.log.flush()

    run(served.bundle, steps, folder=str(tmp_path / "log"))
    found = rows(tmp_path / "log")
    assert [row["user_id"] for row in found] == texts
    assert [row["items"][0] for row in found] == texts
    assert [row["context"][0][1] for row in found] == texts


def test_who_is_forgotten_is_in_no_file(served: Served, tmp_path: Path) -> None:
    folder = tmp_path / "log"

    async def steps() -> None:
        made = await serve(folder, served.bundle, 2, Counts())
        await made.flush()
        tell(made, Ranker.load(str(served.bundle)), 3, user_id="stays")
        await made.flush()

    asyncio.run(steps())
    whole = {name: (folder / name).read_bytes() for name in names(folder)}
    gone, at = pa.array(["u1", "nobody"]), storage.path(folder)
    assert request_rows.forget(at, gone, dry_run=True) == 2
    assert {name: (folder / name).read_bytes() for name in names(folder)} == whole
    assert request_rows.forget(at, gone) == 2
    assert [row["user_id"] for row in rows(folder)] == ["stays"] * 3
    assert sum((folder / name).read_bytes() == data for name, data in whole.items()) == 1
    assert request_rows.forget(at, gone) == 0
    assert request_rows.forget(storage.path(tmp_path / "absent"), gone) == 0


def test_the_log_of_an_object_store_is_the_same(served: Served) -> None:
    uri = "memory://request-log/rows"

    async def steps(replica: Replica) -> None:
        assert replica.log is not None
        await replica.respond([rank_request()], "")
        await replica.log.flush()

    run(served.bundle, steps, folder=uri)
    (table,) = request_rows.read_each(storage.path(uri))
    assert json.dumps(table["user_id"].to_pylist()) == '["u1"]'
    assert request_rows.forget(storage.path(uri), pa.array(["u1"])) == 1
