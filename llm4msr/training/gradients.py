"""Gradients of several workers, added up: all numbers of small parameters, of large tables the rows that were touched.

Shape suffixes: W workers, N rows of a worker, M of all, E embedding width, X one more.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn


def add_up(parameters: Sequence[nn.Parameter]) -> None:
    """Make each gradient its sum over all workers, bit for bit the same on each; one that a worker lacks counts as 0.

    Takes two exchanges, the second where there are sparse gradients; of these there may be one.
    """
    dense = [parameter for parameter in parameters if parameter.grad is None or not parameter.grad.is_sparse]
    sparse = [parameter for parameter in parameters if parameter.grad is not None and parameter.grad.is_sparse]
    rows = [gradient.coalesce() for parameter in sparse if (gradient := parameter.grad) is not None]
    count_W = torch.zeros(dist.get_world_size(), device=dense[0].device)
    count_W[dist.get_rank()] = sum(len(gradient.values()) for gradient in rows)
    whole = torch.cat([count_W, *(_numbers(parameter) for parameter in dense)])
    dist.all_reduce(whole)
    counts, *sums = whole.split([len(count_W), *(parameter.numel() for parameter in dense)])
    for parameter, numbers in zip(dense, sums, strict=True):
        parameter.grad = numbers.view_as(parameter)
    for parameter, gradient in zip(sparse, rows, strict=True):
        parameter.grad = _add_rows(gradient, [int(count) for count in counts])


def _numbers(parameter: nn.Parameter) -> Tensor:
    return (torch.zeros_like(parameter) if parameter.grad is None else parameter.grad).flatten()


def _add_rows(gradient: Tensor, counts: list[int]) -> Tensor:
    """The sum of the workers' gradients, each with so many rows; a row that several have stands there as often."""
    values_NE = gradient.values()
    width = values_NE.shape[1]
    sent_NX = values_NE.new_zeros(max(counts), width + 1)  # the last column is the row's number, as bits
    sent_NX[: len(values_NE), :width] = values_NE
    sent_NX.view(torch.int32)[: len(values_NE), width] = gradient.indices()[0].int()
    received_MX = sent_NX.new_empty(len(counts) * len(sent_NX), width + 1)
    dist.all_gather_into_tensor(received_MX, sent_NX)
    parts = zip(received_MX.split(len(sent_NX)), counts, strict=True)
    all_MX = torch.cat([part_NX[:count] for part_NX, count in parts])
    row_M = all_MX.view(torch.int32)[:, width].long()
    return torch.sparse_coo_tensor(row_M[None], all_MX[:, :width], gradient.shape, check_invariants=False)
