import numpy as np
import pytest

from llm4msr.arrays import Array
from llm4msr.data.partitioned_rows import PartitionedRows


def rows_of(sizes: list[int], width: int = 3, kept: int = 64) -> tuple[PartitionedRows, Array, list[int]]:
    """Rows in partitions of these sizes, all of them in one matrix, and the partitions that were opened."""
    offset_P, opened = np.cumsum([0, *sizes]), list[int]()
    whole = np.random.default_rng(0).integers(1 << 30, size=(int(offset_P[-1]), width)).astype(np.int32)

    def open_partition(number: int) -> Array:
        opened.append(number)
        return whole[offset_P[number] : offset_P[number + 1]]

    return PartitionedRows(offset_P, open_partition, kept), whole, opened


@pytest.mark.parametrize("sizes", [[50], [20, 30], [0, 7, 0, 0, 40, 3, 0, 0], [1] * 16])
def test_rows_come_by_numbers_that_count_over_all_partitions(sizes: list[int]):
    rows, whole, _ = rows_of(sizes)
    number_B = np.random.default_rng(1).integers(len(whole), size=200)
    found = rows.take(number_B)
    np.testing.assert_array_equal(found, whole[number_B])
    assert found.dtype == whole.dtype
    assert len(rows) == len(whole)


@pytest.mark.parametrize("sizes", [[5], [0, 5]])
def test_no_number_gives_no_row(sizes: list[int]):
    rows, whole, _ = rows_of(sizes)
    assert rows.take(np.zeros(0, np.int64)).shape == whole[:0].shape


def test_only_the_partitions_that_are_needed_are_opened_and_the_last_ones_kept():
    rows, _, opened = rows_of([10, 10, 10, 10], kept=2)
    rows.take(np.array([35, 12, 39, 12]))
    assert opened == [1, 3]
    rows.take(np.array([11, 31]))
    assert opened == [1, 3]
    rows.take(np.array([0]))
    rows.take(np.array([30]))
    assert opened == [1, 3, 0]
    rows.take(np.array([15]))
    assert opened == [1, 3, 0, 1]


@pytest.mark.parametrize("sizes", [[5], [3, 2]])
@pytest.mark.parametrize("number", [5, 100])
def test_a_number_beyond_the_rows_is_an_error(sizes: list[int], number: int):
    rows, _, _ = rows_of(sizes)
    with pytest.raises(IndexError):
        rows.take(np.array([0, number]))


def test_a_negative_number_is_an_error_among_several_partitions():
    rows, _, _ = rows_of([3, 2])
    with pytest.raises(IndexError):
        rows.take(np.array([-1, 0]))
