"""Rows of a table that several workers train: worker r of W owns the rows r, r + W and so on, and alone moves them.

So what a step costs a worker falls with the number of workers, and so does the memory of the rows' averages. (Source:
row-wise sharding, as in TorchRec; and ZeRO, Rajbhandari et al., SC 2020, https://arxiv.org/abs/1910.02054.)

Shape suffixes: W workers, N rows of a worker, M rows that come from all, V rows of the table, E numbers of a row.
"""

import torch
import torch.distributed as dist
from torch import Tensor

CHUNK = 1 << 18
"""Rows that are worked on or sent at once."""


def place() -> tuple[int, int]:
    """This worker's rank, and how many workers there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def by_owner(row_N: Tensor) -> tuple[Tensor, Tensor]:
    """Rows in the order of their owners, as places [N] among the given ones, and how many each has, int64 [W]."""
    _, workers = place()
    owner_N = row_N % workers
    return owner_N.argsort(stable=True), torch.bincount(owner_N, minlength=workers)


def exchange(sent: Tensor, counts_sent: list[int], counts_received: list[int]) -> Tensor:
    """Give so many of the lines to each worker, one worker after the other; gives back what all gave to this one."""
    received = sent.new_empty(sum(counts_received), *sent.shape[1:])
    dist.all_to_all_single(received, sent, counts_received, counts_sent)
    return received


def own(table_VE: Tensor) -> Tensor:
    """The rows that this worker owns, in their order; not a copy."""
    rank, workers = place()
    return table_VE[rank::workers]


def gather(own_NE: Tensor, table_VE: Tensor | None, rows: int) -> None:
    """Write the rows of all owners into a table of so many rows; a worker without one only gives its own."""
    _, workers = place()
    for first in range(0, -(-rows // workers), CHUNK):
        size = min(CHUNK, -(-rows // workers) - first)
        sent = own_NE.new_zeros(size, *own_NE.shape[1:])
        part = own_NE[first : first + size]
        sent[: len(part)] = part
        parts = [torch.empty_like(sent) for _ in range(workers)]
        dist.all_gather(parts, sent)
        if table_VE is not None:
            for owner, part in enumerate(parts):
                here = table_VE[owner::workers][first : first + size]
                here.copy_(part[: len(here)])


def add_repeated(row_M: Tensor, value_ME: Tensor) -> tuple[Tensor, Tensor]:
    """Each row once, in their order, and the sum of its values: what `coalesce` gives, in half of its time."""
    row_N, place_M = row_M.unique(return_inverse=True)
    return row_N, value_ME.new_zeros(len(row_N), value_ME.shape[1]).index_add_(0, place_M, value_ME)
