"""Gradients of several workers, added up: all numbers of small parameters; of a large table, rows go to their owners.

Shape suffixes: W workers, N rows of a worker, M rows that come from all, E embedding width, X one more.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from llm4msr.training import owners


def add_up(parameters: Sequence[nn.Parameter]) -> None:
    """Make each gradient its sum over all workers, bit for bit the same on each.

    One that a worker lacks counts as 0 there, and one that all lack stays away. Of a sparse one, a worker gets the
    rows that it owns, a row as often as workers have it. Takes two exchanges, the second where there is a sparse
    gradient; each worker has as many of these, one at most.
    """
    sparse = [parameter for parameter in parameters if parameter.grad is not None and parameter.grad.is_sparse]
    dense = [parameter for parameter in parameters if parameter.grad is None or not parameter.grad.is_sparse]
    rank, workers = owners.place()
    rows = [_by_owner(gradient) for parameter in sparse if (gradient := parameter.grad) is not None]
    count_WW = torch.zeros(workers, workers, device=dense[0].device)
    for _, count_W in rows:
        count_WW[rank] = count_W
    having = torch.tensor([float(parameter.grad is not None) for parameter in dense], device=dense[0].device)
    whole = torch.cat([count_WW.flatten(), having, *(_numbers(parameter) for parameter in dense)])
    dist.all_reduce(whole)
    counts, having, *numbers = whole.split([workers**2, len(dense), *(parameter.numel() for parameter in dense)])
    for parameter, has, number_N in zip(dense, having.tolist(), numbers, strict=True):
        parameter.grad = number_N.view_as(parameter) if has else None
    count_WW = counts.view(workers, workers).long()
    for parameter, (sent_NX, _) in zip(sparse, rows, strict=True):
        received_MX = owners.exchange(sent_NX, count_WW[rank].tolist(), count_WW[:, rank].tolist())
        row_M = received_MX.view(torch.int32)[:, -1].long()
        parameter.grad = torch.sparse_coo_tensor(
            row_M[None], received_MX[:, :-1], parameter.shape, check_invariants=False
        )


def _numbers(parameter: nn.Parameter) -> Tensor:
    return (torch.zeros_like(parameter) if parameter.grad is None else parameter.grad).flatten()


def _by_owner(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of a gradient [N, X] in the order of their owners, the last column a row's number as bits; and counts
    [W]."""
    row_N, value_NE = owners.add_repeated(gradient._indices()[0], gradient._values())
    order_N, count_W = owners.by_owner(row_N)
    sent_NX = value_NE.new_empty(len(value_NE), value_NE.shape[1] + 1)
    sent_NX[:, :-1] = value_NE.index_select(0, order_N)
    sent_NX.view(torch.int32)[:, -1] = row_N.index_select(0, order_N).int()
    return sent_NX, count_W
