import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from llm4msr.errors import ConfigError
from llm4msr.training import side_by_side


@pytest.mark.parametrize("places", [1, 2, 9])
def test_what_comes_back_is_in_the_order_of_the_items(places: int):
    later = threading.Event()

    def work(item: int) -> int:
        if places > 1 and item == 0:
            assert later.wait(10), "another item begins meanwhile"
        if item == 1:
            later.set()
        return item * item

    assert list(side_by_side.each(work, range(5), places)) == [0, 1, 4, 9, 16]


def test_no_more_than_the_places_are_taken_at_once():
    lock, meeting = threading.Lock(), threading.Barrier(3)
    now = most = 0

    def work(item: int) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        meeting.wait(10)  # three work at the same time
        with lock:
            now -= 1

    list(side_by_side.each(work, range(9), 3))
    assert most == 3


def test_after_a_failure_those_before_it_count_and_none_begins():
    begun, go_on = [], threading.Event()

    def work(item: str) -> str:
        begun.append(item)
        if item == "slow":
            assert go_on.wait(10)
        if item == "bad":
            raise ConfigError("the loss is not finite")
        return item

    def outcomes() -> Iterator[str]:
        yield from side_by_side.each(work, ["slow", "bad", "never"], 2)

    results = outcomes()
    timer = threading.Timer(0.2, go_on.set)
    timer.start()
    assert next(results) == "slow"
    with pytest.raises(ConfigError, match="the loss is not finite"):
        next(results)
    assert sorted(begun) == ["bad", "slow"]


def test_a_reader_who_leaves_ends_it():
    begun, first, go_on = [], threading.Event(), threading.Event()

    def work(item: int) -> int:
        begun.append(item)
        if item > 0:
            first.set()
            go_on.wait(10)
        return item

    before = {*threading.enumerate()}
    with closing(side_by_side.each(work, range(9), 2)) as results:
        assert next(results) == 0
        assert first.wait(10)
    go_on.set()
    for thread in {*threading.enumerate()} - before:
        assert thread.daemon, "the process need not wait for it"
        thread.join(10)
    assert len(begun) <= 3
