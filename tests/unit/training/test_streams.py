import numpy as np
import pytest

from llm4msr.training.streams import Streams, stream_count

CASES = [
    ([1000], 16),
    ([1], 4096),
    ([0], 64),
    ([3, 5, 0, 2], 5000),
    ([10**9, 10**9], 4096),
    ([7 * p % 50 for p in range(128)], 256),
    ([0] * 255 + [1000], 4096),
    ([5, 10**6], 64),
    ([10**10 + p for p in range(8)], 1 << 20),
]


@pytest.mark.parametrize(
    ("batch_size", "streams"), [(1, 1), (7, 1), (8, 2), (15, 2), (16, 4), (255, 32), (256, 64), (1 << 20, 64)]
)
def test_small_batches_have_fewer_streams(batch_size: int, streams: int):
    assert stream_count(batch_size) == streams


@pytest.mark.parametrize(("rows_P", "size"), CASES)
@pytest.mark.parametrize("order", [0, 1])
def test_streams_hold_every_row_of_every_partition_once(rows_P: list[int], size: int, order: int):
    streams = Streams(rows_P, size)
    stretches = sorted(stretch for v in range(streams.count) for stretch in streams.stretches(v, order))
    for partition, rows in enumerate(rows_P):
        own = [stretch for stretch in stretches if stretch.partition == partition and stretch.first < stretch.end]
        assert [stretch.first for stretch in own] == [0, *(stretch.end for stretch in own)][: len(own)]
        assert (own[-1].end if own else 0) == rows


@pytest.mark.parametrize(("rows_P", "size"), CASES)
def test_batches_take_from_all_streams_in_proportion_until_all_end_together(rows_P: list[int], size: int):
    streams, rows = Streams(rows_P, size), sum(rows_P)
    length_V = np.array([sum(end - first for _, first, end in streams.stretches(v, 0)) for v in range(streams.count)])
    ends = sorted({*range(0, rows, max(rows // 300, 1)), rows})
    taken_TV = np.array([streams.rows_of_each(end) for end in ends])
    assert (taken_TV.sum(axis=1) == ends).all()
    assert (np.diff(taken_TV, axis=0) >= 0).all()
    assert (taken_TV[-1] == length_V).all()
    for end, taken_V in zip(ends, taken_TV, strict=True):
        assert np.abs(taken_V - end * (length_V / max(rows, 1))).max() <= 7


def test_partitions_go_by_the_epochs_order_and_stay_in_their_stream():
    streams = Streams([10] * 128, 64)
    assert streams.count == 16
    orders = [[stretch.partition for stretch in streams.stretches(5, order)] for order in range(4)]
    assert all(sorted(order) == list(range(5, 128, 16)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
