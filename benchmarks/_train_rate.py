"""Trains as `llm4msr train` does and notes what a worker got done in training steps alone.

    python -m benchmarks._train_rate CONFIG RESULT

RESULT gets JSON: rows per CPU-second of a worker, and rows of all workers per second, between the first and the last
checkpoint within the first epoch.
"""

import json
import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112

from benchmarks._cpu_clock import train_with_clock
from llm4msr import load


def main(config_file: str, result: str) -> None:
    import ray

    config = load(config_file)
    workers = config.train.workers
    assert isinstance(workers, int)
    ray.init("local", num_cpus=max(workers, 2), include_dashboard=False, logging_level="error", log_to_driver=False)
    _, marks = train_with_clock(config)
    in_epoch = [[mark for mark in one if mark.batch] for one in marks]
    rows = (in_epoch[0][-1].batch - in_epoch[0][0].batch) * config.train.batch_size
    # time in checkpoints is left out
    pauses = [sum(mark.end - mark.begin for mark in one[1:-1]) for one in in_epoch]
    seconds = [one[-1].begin - one[0].end - pause for one, pause in zip(in_epoch, pauses, strict=True)]
    first = in_epoch[0]
    wall = first[-1].wall_begin - first[0].wall_end - sum(mark.wall_end - mark.wall_begin for mark in first[1:-1])
    rates = {"rows_per_cpu_second": rows / sum(seconds), "rows_per_second": rows / wall}
    Path(result).write_text(json.dumps(rates))


if __name__ == "__main__":
    main(*sys.argv[1:])
