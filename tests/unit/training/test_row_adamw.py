from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from llm4msr.training import owners, row_adamw
from llm4msr.training.gradients import add_up
from llm4msr.training.row_adamw import RowAdamW

ROWS, WIDTH = 300, 6


def random_gradient(size: float) -> Tensor:
    """Of a few rows, some of them several times; low numbers come often, high ones hardly ever."""
    row_N = (torch.rand(20) ** 3 * ROWS).long()
    return torch.sparse_coo_tensor(row_N[None], size * torch.randn(20, WIDTH), (ROWS, WIDTH), check_invariants=True)


@pytest.mark.parametrize(("size", "near"), [(1.0, 3e-6), (1e-3, 3e-6), (1e-6, 4e-4)])
@pytest.mark.parametrize("decay", [0.0, 1e-5, 3.0])
@pytest.mark.parametrize("period", [7, 1024])
def test_rows_that_rest_end_where_plain_adamw_brings_them(
    size: float, near: float, decay: float, period: int, monkeypatch: pytest.MonkeyPatch
):
    """Which is beyond `near` only where gradients are hardly larger than the `eps` of 1e-8."""
    monkeypatch.setattr(row_adamw, "PERIOD", period)
    monkeypatch.setattr(owners, "CHUNK", 64)
    torch.manual_seed(0)
    begin = torch.randn(ROWS, WIDTH) / 10
    plain, rows = nn.Parameter(begin.clone()), nn.Parameter(begin.clone())
    optimizer = torch.optim.AdamW([plain], lr=1e-3, weight_decay=decay)
    by_rows = RowAdamW(rows, 1e-3, decay)
    for _ in range(200):
        rows.grad = random_gradient(size)
        plain.grad = rows.grad.to_dense()
        read_N = rows.grad.coalesce().indices()[0]
        by_rows.read(torch.cat([read_N, read_N]))
        torch.testing.assert_close(rows[read_N], plain[read_N], atol=near, rtol=3e-6)
        optimizer.step()
        by_rows.step()
    assert (rows - plain).abs().max() > 1e-3  # some rest still
    by_rows.catch_up()
    torch.testing.assert_close(rows, plain, atol=near, rtol=3e-6)
    assert (rows - begin).abs().mean() > 1e-3
    ours, theirs = by_rows.state, optimizer.state[plain]
    assert ours.keys() == theirs.keys()
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], atol=0 if name == "step" else 1e-30, rtol=1e-4)


def test_a_row_that_is_not_touched_does_not_move():
    table = nn.Parameter(torch.randn(5, 3))
    begin, optimizer = table.detach().clone(), RowAdamW(table, 0.1, 0.0)
    for _ in range(3):
        table.grad = torch.sparse_coo_tensor(torch.tensor([[1, 3]]), torch.ones(2, 3), (5, 3), check_invariants=True)
        optimizer.step()
    optimizer.catch_up()
    assert [bool(same) for same in (table == begin).all(1)] == [True, False, True, False, True]


def work(rank: int, workers: int, folder: Path) -> None:
    """One of several workers, each with a part of every gradient; stops halfway and goes on from the first's state."""
    dist.init_process_group("gloo", f"file://{folder / 'store'}", rank=rank, world_size=workers)
    torch.manual_seed(0)
    table = nn.Parameter(torch.randn(ROWS, WIDTH))
    dense = nn.Parameter(torch.zeros(1))
    optimizer = RowAdamW(table, 1e-3, 1e-5)
    for step in range(40):
        whole = random_gradient(1.0)
        rows, values = whole._indices()[:, rank::workers], whole._values()[rank::workers]
        optimizer.read(rows[0])
        torch.save(table[rows[0]], folder / f"read-{step}-{rank}.pt")
        table.grad = torch.sparse_coo_tensor(rows, values, whole.shape, check_invariants=True)
        add_up([dense, table])
        optimizer.step()
        if step == 20:
            optimizer.catch_up()
            state = [optimizer.whole_state()]
            dist.broadcast_object_list(state)
            assert state[0]["exp_avg"].shape == table.shape
            optimizer = RowAdamW(table, 1e-3, 1e-5)
            for name, value in state[0].items():
                optimizer.load(name, value)
    optimizer.catch_up()
    torch.save((table.detach(), optimizer.whole_state()), folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("workers", [2, 3])
def test_several_workers_move_a_table_as_one_does(workers: int, tmp_path: Path):
    """Each reads the weights that one worker has then; at the end all have all rows, and the first the averages."""
    torch.multiprocessing.spawn(work, (workers, tmp_path), nprocs=workers)
    torch.manual_seed(0)
    table = nn.Parameter(torch.randn(ROWS, WIDTH))
    optimizer = RowAdamW(table, 1e-3, 1e-5)
    for step in range(40):
        table.grad = random_gradient(1.0)
        row_N = table.grad._indices()[0]
        optimizer.read(row_N)
        for rank in range(workers):
            read = torch.load(tmp_path / f"read-{step}-{rank}.pt", weights_only=True)
            torch.testing.assert_close(read, table[row_N[rank::workers]].detach(), atol=1e-6, rtol=1e-5)
        optimizer.step()
    optimizer.catch_up()
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(workers)]
    assert all(torch.equal(weights, found[0][0]) for weights, _ in found)
    torch.testing.assert_close(found[0][0], table.detach(), atol=1e-6, rtol=1e-5)
    for name, value in optimizer.whole_state().items():
        torch.testing.assert_close(found[0][1][name], value, atol=1e-7, rtol=1e-4)
        assert name == "step" or len(found[1][1][name]) == len(range(1, ROWS, workers))
