import threading
from collections.abc import Iterator

import pytest

from llm4msr.training.ahead import ahead


@pytest.mark.parametrize("depth", [1, 3])
def test_items_come_in_their_order(depth: int):
    assert list(ahead(iter(range(10)), depth)) == list(range(10))
    assert list(ahead(iter(range(1)), depth)) == [0]
    assert list(ahead(iter(range(0)), depth)) == []


def test_the_next_item_is_made_while_the_reader_has_one_and_no_more():
    made, second = [], threading.Event()

    def items() -> Iterator[int]:
        for number in range(5):
            made.append(number)
            if number == 1:
                second.set()
            yield number

    reader = ahead(items())
    assert next(reader) == 0
    assert second.wait(10), "the second is made though nobody has asked for it"
    reader.close()
    assert made == [0, 1]


def test_an_error_is_raised_where_the_item_would_be():
    def items() -> Iterator[int]:
        yield 1
        raise KeyError("here")

    reader = ahead(items(), 4)
    assert next(reader) == 1
    with pytest.raises(KeyError, match="here"):
        next(reader)
    assert list(reader) == []
