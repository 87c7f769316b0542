"""Gradients of several workers, added up: all numbers of small parameters, of large tables the rows that were touched.

Shape suffixes: W workers, N rows of a worker, M of all, E embedding width, X one more.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn


def add_up(parameters: Sequence[nn.Parameter]) -> None:
    """Make each gradient its sum over all workers, bit for bit the same on each.

    One that a worker lacks counts as 0 there, and one that all lack stays away. Takes two exchanges, the second where
    there is a sparse gradient; each worker has as many of these, one at most.
    """
    sparse = [parameter for parameter in parameters if parameter.grad is not None and parameter.grad.is_sparse]
    dense = [parameter for parameter in parameters if parameter.grad is None or not parameter.grad.is_sparse]
    rows = [gradient.coalesce() for parameter in sparse if (gradient := parameter.grad) is not None]
    count_W = [0] * dist.get_world_size()
    count_W[dist.get_rank()] = sum(len(gradient.values()) for gradient in rows)
    counts = torch.tensor([*count_W, *(parameter.grad is not None for parameter in dense)], device=dense[0].device)
    whole = torch.cat([counts.float(), *(_numbers(parameter) for parameter in dense)])
    dist.all_reduce(whole)
    sums, *numbers = whole.split([len(counts), *(parameter.numel() for parameter in dense)])
    count_X = [int(count) for count in sums.tolist()]
    for parameter, having, number_N in zip(dense, count_X[len(count_W) :], numbers, strict=True):
        parameter.grad = number_N.view_as(parameter) if having else None
    for parameter, gradient in zip(sparse, rows, strict=True):
        parameter.grad = _add_rows(gradient, count_X[: len(count_W)])


def _numbers(parameter: nn.Parameter) -> Tensor:
    return (torch.zeros_like(parameter) if parameter.grad is None else parameter.grad).flatten()


def _add_rows(gradient: Tensor, counts: list[int]) -> Tensor:
    """The sum of the workers' gradients, each with so many rows; a row that several have stands there as often."""
    values_NE = gradient.values()
    width = values_NE.shape[1]
    sent_NX = values_NE.new_zeros(max(counts), width + 1)  # the last column is the row's number, as bits
    sent_NX[: len(values_NE), :width] = values_NE
    sent_NX.view(torch.int32)[: len(values_NE), width] = gradient.indices()[0].int()
    parts = [torch.empty_like(sent_NX) for _ in counts]
    dist.all_gather(parts, sent_NX)
    all_MX = torch.cat([part_NX[:count] for part_NX, count in zip(parts, counts, strict=True)])
    row_M = all_MX.view(torch.int32)[:, width].long()
    return torch.sparse_coo_tensor(row_M[None], all_MX[:, :width], gradient.shape, check_invariants=False)
