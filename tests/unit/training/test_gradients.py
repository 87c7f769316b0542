from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from llm4msr.training.gradients import add_up


def gradients(rank: int) -> list[nn.Parameter]:
    """Of a small parameter, two that the second worker and all lack, and a table of which the third touches no row."""
    small, lacking, unused, table = (nn.Parameter(torch.zeros(shape)) for shape in ((3, 2), (2,), (5,), (10, 4)))
    small.grad = torch.full((3, 2), 10.0**rank)
    lacking.grad = None if rank == 1 else torch.ones(2)
    rows = [[1, 9, 1], [9, 0], []][rank]
    table.grad = torch.sparse_coo_tensor(torch.tensor([rows]).long(), torch.full((len(rows), 4), 10.0**rank), (10, 4))
    return [small, lacking, unused, table]


def work(rank: int, workers: int, folder: Path) -> None:
    """One of several workers; leaves its gradients as a file."""
    dist.init_process_group("gloo", f"file://{folder / 'store'}", rank=rank, world_size=workers)
    parameters = gradients(rank)
    add_up(parameters)
    found = [parameter.grad for parameter in parameters]
    assert [one is None for one in found] == [False, False, True, False]
    torch.save([one.to_dense() for one in found if one is not None], folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_every_worker_gets_the_sum_of_all_gradients_and_of_a_table_that_of_its_own_rows(tmp_path: Path):
    torch.multiprocessing.spawn(work, (3, tmp_path), nprocs=3)
    for rank, own in enumerate([[10, 0, 0, 11], [2, 0, 0], [0, 0, 0]]):
        small, lacking, table = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert (small == 111).all()
        assert (lacking == 2).all()
        assert table[rank::3, 0].tolist() == own
        assert table.sum() == 4 * sum(own)
