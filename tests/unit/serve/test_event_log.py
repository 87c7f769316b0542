"""The log of events on a real disk, and what a replica holds of it."""

import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llm4msr.errors import StorageError
from llm4msr.serve.event_log import DAY, FILE, EventLog, LoggedCode, LoggedEvent, Row
from llm4msr.serve.recent_codes import RecentCodes
from llm4msr.serve.recent_events import RecentEvents

NOW = 1_700_000_000.0


def row(name: str, user: str = "u", item: str = "i", time: float = NOW) -> Row:
    return (name, user, item, "home", True, time)


def told(log: EventLog, since: int = 0, now: float = NOW) -> list[tuple[str, str]]:
    return [(event.user_id, event.item_id) for event in log.since(since, 100, now).events]


@pytest.fixture
def log(tmp_path: Path) -> EventLog:
    return EventLog(str(tmp_path / "log"), days=7, most=1_000)


def test_an_event_is_logged_once_however_often_it_is_sent(log: EventLog) -> None:
    assert log.append([row("a"), row("b", item="j"), row("a", item="k")], NOW) == 2
    assert log.append([row("b", item="l"), row("c", "v")], NOW) == 1
    assert log.append([row("a")], NOW) == 0
    assert told(log) == [("u", "i"), ("u", "j"), ("v", "i")]
    first, second, third = log.since(0, 100, NOW).events
    assert first == LoggedEvent(first.sequence, "u", "i", "home", True, NOW, NOW)
    assert told(log, first.sequence) == [("u", "j"), ("v", "i")]
    assert log.since(second.sequence, 1, NOW).events == [third]
    assert told(log, third.sequence) == []


def test_any_text_comes_back_as_it_was(log: EventLog) -> None:
    texts = ["", "é漢", "a\x00b", "'; DROP TABLE events; --", "x" * 8192, " "]
    log.append([row(f"e{text}", text, text) for text in texts], NOW)
    assert told(log) == [(text, text) for text in texts]


def test_a_users_events_come_by_their_time_and_no_others(log: EventLog) -> None:
    times = {"a": 3, "b": 9, "c": 9, "d": 1}
    log.append([row(name, item=name, time=NOW + time) for name, time in times.items()], NOW)
    log.append([row("e", "U", "e", NOW + 99), row("f", "u' OR '1'='1", "f", NOW + 99)], NOW)
    assert [event.item_id for event in log.of("u", 100)] == ["c", "b", "a", "d"]
    assert [event.item_id for event in log.of("u", 2)] == ["c", "b"]
    assert log.of("u", 1) == [LoggedEvent(3, "u", "c", "home", True, NOW + 9, NOW)]
    assert log.of("nobody", 100) == log.of("", 100) == log.of("u", 0) == []
    log.forget(["u"])
    assert log.of("u", 100) == []
    assert [event.item_id for event in log.of("U", 100)] == ["e"]


WRITER = """
import sys
from llm4msr.serve.event_log import EventLog
log = EventLog(sys.argv[1], 7, 100_000)
for number in range(10_000):
    log.append([(f"{number}-{at}", "u", str(number), "s", True, 1.0) for at in range(3)], 2e9)
    print(number, flush=True)
"""


def test_what_was_acknowledged_is_there_after_the_process_was_killed(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    acknowledged = [int(process.stdout.readline()) for _ in range(20)]
    process.kill()
    acknowledged += [int(line) for line in process.stdout.read().split()]
    process.wait()
    log = EventLog(str(tmp_path), 7, 100_000)
    page = log.since(0, 100_000, 2e9).events
    assert {str(number) for number in acknowledged} <= {event.item_id for event in page}
    assert len(page) % 3 == 0, "half a batch was logged"
    assert log.append([("0-0", "u", "0", "s", True, 1.0), row("new")], 2e9) == 1


def test_an_event_goes_when_its_days_are_over(log: EventLog) -> None:
    log.append([row("old")], NOW)
    log.append([row("new", item="j")], NOW + 6 * DAY)
    assert told(log, now=NOW + 6.9 * DAY) == [("u", "i"), ("u", "j")]
    assert told(log, now=NOW + 7.1 * DAY) == [("u", "j")]


def test_who_is_forgotten_is_in_no_file_and_in_no_memory(log: EventLog, tmp_path: Path) -> None:
    recent = RecentEvents(per_user=9, most=99, days=7)
    log.append([row("a", "somebody"), row("b", "another"), row("c", "somebody")], NOW)
    recent.take(log.since(0, 100, NOW), NOW)
    assert len(recent.of("somebody")) == 2
    assert log.forget(["nobody"]) == 0
    assert log.forget(["somebody", "nobody"]) == 2
    for file in (tmp_path / "log").iterdir():
        assert b"somebody" not in file.read_bytes()
    for _ in range(2):
        recent.take(log.since(recent.sequence, 100, NOW), NOW)
    assert (len(recent.of("somebody")), len(recent.of("another")), len(recent)) == (0, 1, 1)


def test_of_many_who_are_forgotten_no_page_keeps_a_scrap(tmp_path: Path) -> None:
    log, draw = EventLog(str(tmp_path), days=7, most=1_000), random.Random(1)
    users = ["." * draw.randrange(200) + f"<user {number}>" for number in range(30_000)]
    for _ in range(60):
        log.append([row(f"{draw.random()}", user) for user in draw.sample(users, 500)], NOW)
    forgotten = draw.sample(users, 3_000)
    log.forget(forgotten)
    content = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert not {user.strip(".").encode() for user in forgotten} & {*re.findall(rb"<user \d+>", content)}


def test_replicas_read_another_log_from_its_beginning(log: EventLog, tmp_path: Path) -> None:
    recent = RecentEvents(per_user=9, most=99, days=7)
    log.append([row(str(number)) for number in range(5)], NOW)
    recent.take(log.since(0, 100, NOW), NOW)
    other = EventLog(str(tmp_path / "other"), days=7, most=1_000)
    other.append([row("a", "v")], NOW)
    for _ in range(2):
        recent.take(other.since(recent.sequence, 100, NOW), NOW)
    assert (len(recent.of("u")), len(recent.of("v"))) == (0, 1)


def test_a_replica_holds_the_latest_events_by_their_time_and_drops_users_of_long_ago(log: EventLog) -> None:
    recent = RecentEvents(per_user=3, most=5, days=7)
    for name, user, time in [("a", "u", 5), ("b", "u", 3), ("c", "v", 1), ("d", "u", 4), ("e", "u", 9), ("f", "v", 2)]:
        log.append([row(name, user, name, NOW + time)], NOW)
        assert recent.take(log.since(recent.sequence, 100, NOW), NOW) == 0
    assert [event.item_id for event in recent.of("u")] == ["d", "a", "e"]
    assert len(recent) == 5
    log.append([row("g", "w")], NOW)
    assert recent.take(log.since(recent.sequence, 100, NOW), NOW) == 1
    assert ([len(recent.of(user)) for user in "uvw"], len(recent)) == ([0, 2, 1], 3)
    log.append([row("h", "w")], NOW + 7.5 * DAY)
    recent.take(log.since(recent.sequence, 100, NOW + 7.5 * DAY), NOW + 7.5 * DAY)
    assert ([len(recent.of(user)) for user in "uvw"], len(recent)) == ([0, 0, 1], 1)


def test_an_event_counts_for_its_days_although_its_user_has_newer_ones(log: EventLog) -> None:
    recent = RecentEvents(per_user=3, most=5, days=7)
    for name, day in [("a", 0), ("b", 6)]:
        log.append([row(name, "u", name)], NOW + day * DAY)
    for day, items in [(6, ["a", "b"]), (8, ["b"]), (14, [])]:
        recent.take(log.since(recent.sequence, 100, NOW + day * DAY), NOW + day * DAY)
        assert [event.item_id for event in recent.of("u")] == items


def test_of_a_long_log_only_the_latest_events_are_read(tmp_path: Path) -> None:
    log = EventLog(str(tmp_path), days=7, most=3)
    assert told(log) == []
    for name in "abcde":
        log.append([row(name, item=name)], NOW)
    assert told(log) == [("u", "c"), ("u", "d"), ("u", "e")]
    assert [event.item_id for event in log.since(4, 100, NOW).events] == ["e"]


def code(log: EventLog, user: str, reader: str = "r", content: bytes = b"c") -> LoggedCode:
    """Made of all events of a user until now."""
    newest = max(log.of(user, 100), key=lambda event: event.sequence)
    return LoggedCode(0, user, newest.sequence, newest.arrived, reader, "coder", content)


def waiting(log: EventLog, sequence: int = 0, users: int = 100, reader: str = "r") -> dict[str, list[str]]:
    events = log.unread(sequence, users, 2, reader).events
    return {user: [event.item_id for event in told] for user, told in events.items()}


def test_who_has_newer_events_than_a_code_waits_once_however_many_these_are(log: EventLog, tmp_path: Path) -> None:
    log.append([row("a", "u", "a"), row("b", "v", "b"), row("c", "u", "c", NOW + 1), row("d", "u", "d", NOW - 1)], NOW)
    assert waiting(log) == {"u": ["c", "a"], "v": ["b"]}
    assert waiting(log, users=1) == {"u": ["c", "a"]}
    log.put_codes([code(log, "u")])
    assert waiting(log) == {"v": ["b"]}
    assert waiting(log, reader="another") == {"u": ["c", "a"], "v": ["b"]}
    late = code(log, "v")
    log.append([row("e", "v", "e", NOW + 2)], NOW + 9)
    log.put_codes([late])
    assert waiting(log) == waiting(EventLog(str(tmp_path / "log"), 7, 1_000)) == {"v": ["e", "b"]}
    unread = log.unread(0, 100, 2, "r")
    assert waiting(log, unread.sequence) == {}
    assert log.unread(unread.sequence, 100, 2, "r").sequence == unread.sequence


def test_a_newer_code_takes_the_place_of_the_older_and_replicas_read_on(log: EventLog) -> None:
    log.append([row("a", "u"), row("b", "v")], NOW)
    log.put_codes([code(log, "u"), code(log, "v", content=b"")])
    held = RecentCodes(most=9)
    held.take(log.since(0, 100, NOW, held.change).codes, NOW - 7 * DAY)
    log.append([row("c", "u")], NOW + DAY)
    log.put_codes([code(log, "u", content=np.float16([1, 2]).tobytes())])
    (newer,) = log.since(0, 100, NOW, held.change).codes
    held.take([newer], NOW - 7 * DAY)
    found = held.of("u", "coder")
    assert found is not None
    assert found.tolist() == [1, 2]
    assert [held.of(*one) for one in (("u", "another"), ("v", "coder"), ("w", "coder"))] == [None] * 3
    assert log.since(0, 100, NOW, held.change).codes == []
    assert [one.user_id for one in log.since(0, 100, NOW + 7.5 * DAY).codes] == ["u"], "expired with its events"
    held.take([], NOW + DAY + 1)
    assert held.of("u", "coder") is None


def test_a_replica_holds_the_newest_codes(log: EventLog) -> None:
    log.append([row(user, user) for user in "abcd"], NOW)
    log.put_codes([code(log, user, content=b"cc") for user in "abcd"])
    held = RecentCodes(most=2)
    held.take(log.since(0, 100, NOW).codes, 0)
    assert [held.of(user, "coder") is not None for user in "abcd"] == [False, False, True, True]
    held.clear()
    assert (held.change, held.of("d", "coder")) == (0, None)


def test_who_is_forgotten_has_no_code_and_gets_none_that_was_being_made(log: EventLog, tmp_path: Path) -> None:
    log.append([row("a", "somebody"), row("b", "another")], NOW)
    made = [code(log, "somebody"), code(log, "another")]
    log.put_codes(made)
    epoch = log.since(0, 100, NOW).epoch
    log.forget(["somebody"])
    log.put_codes(made)
    page = log.since(0, 100, NOW)
    assert [one.user_id for one in page.codes] == ["another"]
    assert page.epoch != epoch
    for file in (tmp_path / "log").iterdir():
        assert b"somebody" not in file.read_bytes()


def test_a_folder_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot keep events there .* set serve\.events"):
        EventLog(str(tmp_path / "file"), 7, 1)
    (tmp_path / FILE).write_bytes(b"no database" * 100)
    with pytest.raises(StorageError, match="file is not a database"):
        EventLog(str(tmp_path), 7, 1)
