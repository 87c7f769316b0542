"""What do sparse gradients save? A step's CPU time as the embedding table grows, on one and two workers.

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
import pyarrow as pa
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from benchmarks._machine import described
from llm4msr import Config, storage
from llm4msr.model.embedding import Field
from llm4msr.storage import StageResult
from llm4msr.training.batches import RowReader, Rows
from llm4msr.training.dataset import Dataset
from llm4msr.training.feature_tables import FeatureTables
from llm4msr.training.loop import fit

RESULT = Path(__file__).parent / "results" / "train-tables.md"
TABLES = (10**4, 10**5, 10**6, 10**7)
BATCH, STEPS = 4096, 20
KINDS = (("dense", 1), ("sparse", 1), ("dense", 2), ("sparse", 2))
TOO_LARGE = [(10**7, "dense", 2)]
"""Two workers with four dense tables and their buckets each: more memory than this machine should give."""


def main() -> None:
    tables = parser().parse_args().tables
    found: dict[tuple[int, str, int], tuple[float, float]] = {}
    for values, (kind, workers) in itertools.product(tables, KINDS):
        if (case := (values, kind, workers)) not in TOO_LARGE:
            found[case] = measure(*case)
            print(case, found[case], file=sys.stderr, flush=True)
    RESULT.write_text(report(tables, found))
    print(RESULT.read_text())


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    wanted = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    wanted.add_argument("--tables", type=int, nargs="+", default=TABLES, help="rows of each")
    return wanted


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

    def batches(self, *given: Any, **named: Any) -> Iterator[tuple[Rows, int]]:
        self.marks = []
        for batch in super().batches(*given, **named):
            self.marks.append(time.process_time())
            yield batch


class ClockedData(Dataset):
    """Its training rows are clocked."""

    train: Clocked

    def rows(self, part: str) -> RowReader:
        if part != "train":
            return super().rows(part)
        self.train = Clocked(self.prepared.folder / "train.parquet", [])
        return self.train


def work(rank: int, workers: int, folder: str, values: int, sparse: bool) -> None:
    """One worker: trains some steps, writes the median of their CPU time and its peak memory."""
    torch.set_num_threads(1)
    if workers > 1:
        dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=workers)
    rng = np.random.default_rng(0)
    sizes = {"user": int(0.7 * values), "item": values - int(0.7 * values), "scenario": 5}
    own = storage.path(f"{folder}/{rank}")
    for part, rows in (("train", STEPS * BATCH), ("valid", 1000)):
        columns = {name: rng.integers(size, size=rows) for name, size in sizes.items()}
        columns |= {"label": (columns["user"] % 2).astype("f4"), "seen": np.zeros(rows, int)}
        storage.write_table(own / f"{part}.parquet", pa.table(columns))
    fields = [Field("user_id", "user", sizes["user"], 1), Field("item_id", "item", sizes["item"], 1)]
    fields.append(Field("scenario_id", "scenario", 5, 1))
    tables = FeatureTables(fields, np.arange(sizes["user"])[:, None], np.arange(sizes["item"])[:, None], 5)
    built = StageResult(files={f"{part}.parquet": -1 for part in ("train", "valid")}, rows=0)
    made = storage.publish(own, "prepare", 1, {}, {}, lambda _: built, resumable=True)
    data = ClockedData(made, tables, [str(scenario) for scenario in range(5)], None)
    settings = {"epochs": 1, "batch_size": BATCH, "sparse": sparse, "checkpoint_batches": 0}
    source = {"kind": "table", "path": "made up"}
    document = {"name": "tables", "source": source, "model": {"knowledge": "none"}, "train": settings}
    fit(Config.model_validate(document), data)
    peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / (1 << 20)
    Path(folder, f"spent{rank}").write_text(f"{1000 * median(np.diff(data.train.marks)[2:])} {peak}")


def report(tables: Sequence[int], found: dict[tuple[int, str, int], tuple[float, float]]) -> str:
    """The page of results."""
    heads = [f"{kind}, {workers} worker{'s' * (workers > 1)}" for kind, workers in KINDS]
    lines = []
    for values in tables:
        cells = [found.get((values, *kind)) for kind in KINDS]
        shown = [f"{cell[0]:.0f} ms, {cell[1]:.1f} GiB" if cell else "not tried" for cell in cells]
        lines.append(f"| {values:,} | {' | '.join(shown)} |")
    return f"""# Large embedding tables

CPU time of a step and peak memory, each of one worker: our default model without knowledge (MMoE), two ids a row drawn
evenly over the table, embeddings of 16, global batch {BATCH:,}, medians of {STEPS - 3} steps. Sparse is
`train.sparse = true`.

| rows of the table | {" | ".join(heads)} |
| ---: | {" | ".join(["---:"] * len(heads))} |
{chr(10).join(lines)}

`python -m benchmarks.train_tables` on {described(("torch", "numpy", "pyarrow"))}, one thread a worker.
"""


if __name__ == "__main__":
    main()
