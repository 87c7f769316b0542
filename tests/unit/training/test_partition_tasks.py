import pytest

from llm4msr.training.partition_tasks import PER_TASK, in_order, run_partitions


def numbers_of(group: list[int]) -> dict[str, list[int]]:
    return {"numbers": group}


@pytest.mark.parametrize("arrival", [[0, 1, 2], [2, 1, 0], [1, 2, 0]])
def test_results_come_in_order_however_they_arrive(arrival: list[int]):
    results = ({"first": PER_TASK * place} for place in arrival)
    ordered = in_order(results, range(2 * PER_TASK + 1))
    assert [result["first"] for result in ordered] == [0, PER_TASK, 2 * PER_TASK]


def test_results_are_given_as_soon_as_those_before_them_have_come():
    arrived: list[int] = []

    def arriving():
        for first in (7, 3, 21, 15):  # of these partitions, four to a task
            arrived.append(first)
            yield {"first": first}

    numbers = [3, 4, 5, 6, 7, 8, 9, 10, 15, 17, 19, 20, 21]
    ordered = in_order(arriving(), numbers)
    assert [next(ordered)["first"], next(ordered)["first"]] == [3, 7]
    assert arrived == [7, 3]
    assert [result["first"] for result in ordered] == [15, 21]


def test_one_partition_is_worked_on_in_this_process():
    assert list(in_order(run_partitions(numbers_of, 1), range(1))) == [{"first": 0, "numbers": [0]}]
