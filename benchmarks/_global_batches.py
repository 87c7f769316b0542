"""One worker's part of an epoch's global batches, read as training reads them and not trained on.

    python -m benchmarks._global_batches CONFIG RANK WORLD

Prints JSON: a sum over the worker's rows for each global batch, in which every row counts by a hash of all its numbers,
so that the sums of all workers add up to the same for any number of workers; bytes read, CPU-seconds, peak memory.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._random_rows import peak_memory
from benchmarks._skewed_rows import mix
from llm4msr import load
from llm4msr.pipeline import prepared
from llm4msr.training.dataset import Dataset
from llm4msr.training.row_files import Rows


def read_part(config_file: str, rank: int, world: int) -> dict[str, Any]:
    """What this worker reads of the first epoch."""
    torch.set_num_threads(1)
    config = load(config_file)
    data = Dataset.open(config, prepared(config), None)
    bytes_before, begun, sums, rows = bytes_read(), time.process_time(), [], 0
    for part, _ in data.rows("train").batches(config.train.batch_size, config.seed, rank, world):
        sums.append(_sum(part))
        rows += len(part.user_B)
    return {
        "sums": sums,
        "rows": rows,
        "bytes": bytes_read() - bytes_before,
        "cpu_seconds": time.process_time() - begun,
        "peak": peak_memory(),
    }


def _sum(rows: Rows) -> int:
    """Modulo 2^64."""
    assert rows.seen_B is not None
    hash_B = np.zeros(len(rows.user_B), np.uint64)
    bits_B = rows.label_B.view(torch.int32)
    for salt, numbers_B in enumerate(
        (rows.user_B, rows.item_B, rows.scenario_B, rows.seen_B, bits_B, *rows.context_BC.T)
    ):
        hash_B = mix(hash_B + numbers_B.numpy().astype(np.uint64), salt)
    return int(hash_B.sum(dtype=np.uint64))


def bytes_read() -> int:
    """By this process so far, from files and whatever else it reads."""
    return int(Path("/proc/self/io").read_text().split("rchar:")[1].split()[0])


if __name__ == "__main__":
    print(json.dumps(read_part(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
