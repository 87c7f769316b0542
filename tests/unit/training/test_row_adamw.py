import pytest
import torch
from torch import Tensor, nn

from llm4msr.training import row_adamw
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
    monkeypatch.setattr(row_adamw, "CHUNK", 64)
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
