"""What do steps on the rows of a batch save? A step's CPU time as the embedding table grows, on one and two workers.

    python -m benchmarks.train_tables

Each case runs in processes of its own, joined by gloo where there are two. The loop is the real one, on made-up rows
with two ids drawn evenly over the table, which is the worst case for sparse gradients: hardly a row comes twice in a
batch. Writes benchmarks/results/train-tables.md.
"""

import argparse
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

import numpy as np
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from benchmarks._machine import describe
from benchmarks._random_rows import open_dataset, peak_memory, write_rows
from llm4msr import Config
from llm4msr.training.batches import RowReader
from llm4msr.training.dataset import Dataset
from llm4msr.training.loop import fit
from llm4msr.training.row_files import Rows

RESULT = Path(__file__).parent / "results" / "train-tables.md"
TABLES = (10**4, 10**5, 10**6, 10**7)
BATCH, STEPS = 4096, 20
KINDS = (("dense", 1), ("sparse", 1), ("dense", 2), ("sparse", 2))
TOO_LARGE = [(10**7, "dense", 2)]
"""Two workers with four dense tables and their buckets each: more memory than this machine should give."""


def main() -> None:
    tables = parser().parse_args().tables
    results: dict[tuple[int, str, int], tuple[float, float]] = {}
    for values, (kind, workers) in itertools.product(tables, KINDS):
        if (case := (values, kind, workers)) not in TOO_LARGE:
            results[case] = measure(*case)
            print(case, results[case], file=sys.stderr, flush=True)
    RESULT.write_text(report(tables, results))
    print(RESULT.read_text())


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=int, nargs="+", default=TABLES, help="rows of each")
    return parser


def measure(values: int, kind: str, workers: int) -> tuple[float, float]:
    """CPU milliseconds of a step, and peak resident GiB, of a worker."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(work, (workers, folder, values, kind == "sparse"), nprocs=workers)
        spent = [file.read_text().split() for file in Path(folder).glob("spent*")]
    milliseconds, peaks = ([float(value) for value in column] for column in zip(*spent, strict=True))
    return mean(milliseconds), max(peaks)


class Clocked(RowReader):
    """Notes the process's CPU-seconds whenever the loop asks for rows."""

    marks: list[float]

    def batches(self, *args: Any, **kwargs: Any) -> Iterator[tuple[Rows, int]]:
        self.marks = []
        for batch in super().batches(*args, **kwargs):
            self.marks.append(time.process_time())
            yield batch


class ClockedDataset(Dataset):
    """Its training rows are clocked."""

    train: Clocked

    def rows(self, part: str) -> RowReader:
        if part != "train":
            return super().rows(part)
        self.train = Clocked(self.prepared, part)
        return self.train


def work(rank: int, workers: int, folder: str, values: int, sparse: bool) -> None:
    """One worker: trains some steps, writes the median of their CPU time and its peak memory."""
    torch.set_num_threads(1)
    if workers > 1:
        dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=workers)
    users, root = int(0.7 * values), Path(folder) / str(rank)
    write_rows(root, {"train": STEPS * BATCH, "valid": 1000}, users, values - users)
    data = ClockedDataset(**vars(open_dataset(root, users, values - users)))
    settings = {"epochs": 1, "batch_size": BATCH, "sparse": sparse, "checkpoint_batches": 0}
    source = {"kind": "table", "path": "made up"}
    document = {"name": "tables", "source": source, "model": {"knowledge": "none"}, "train": settings}
    fit(Config.model_validate(document), data)
    peak = peak_memory() / (1 << 30)
    Path(folder, f"spent{rank}").write_text(f"{1000 * median(np.diff(data.train.marks)[2:])} {peak}")


def report(tables: Sequence[int], results: dict[tuple[int, str, int], tuple[float, float]]) -> str:
    """The page of results."""
    heads = [f"{kind}, {workers} worker{'s' * (workers > 1)}" for kind, workers in KINDS]
    lines = []
    for values in tables:
        cells = [results.get((values, *kind)) for kind in KINDS]
        shown = [f"{cell[0]:.0f} ms, {cell[1]:.1f} GiB" if cell else "not tried" for cell in cells]
        lines.append(f"| {values:,} | {' | '.join(shown)} |")
    return f"""# Large embedding tables

CPU time of a step and peak memory, each of one worker: our default model without knowledge (MMoE), two ids a row drawn
evenly over the table, embeddings of 16, global batch {BATCH:,}, medians of {STEPS - 3} steps. Sparse is
`train.sparse = true`.

| rows of the table | {" | ".join(heads)} |
| ---: | {" | ".join(["---:"] * len(heads))} |
{chr(10).join(lines)}

`python -m benchmarks.train_tables` on {describe(("torch", "numpy", "pyarrow"))}, one thread a worker.
"""


if __name__ == "__main__":
    main()
