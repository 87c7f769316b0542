"""Ten million user codes: how long a replica takes to start, what it holds in memory, and how fast it looks one up.

Generated ids and codes in a bundle's own file. A replica here is a process that loads the bundle and looks up users,
as Ray Serve's replicas do: what the first of them brought into the page cache, the others share.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

from benchmarks import _bundles
from benchmarks._machine import describe
from llm4msr import storage
from llm4msr.bundle import files, id_table
from llm4msr.bundle.ranker import Ranker
from llm4msr.hashes import hash_ids, numbers_of
from llm4msr.storage.vectors import to_column

RESULT = Path(__file__).parent / "results" / "serve-codes.md"
PARTITIONS = 16
COLUMNS = (("start", ".1f"), ("rss", ".0f"), ("own", ".0f"), ("share", ".0f"), ("p50", ".4f"), ("p99", ".4f"))


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=10_000_000)
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--lookups", type=int, default=100_000)
    parser.add_argument("--output", type=Path, default=RESULT)
    return parser


def main(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        uri, codes, seconds = publish_codes(Path(folder), options.users)
        processes, replicas = [], []
        for _ in range(options.replicas):
            words = [sys.executable, "-m", "benchmarks.serve_codes", "--replica", uri, codes, str(options.lookups)]
            process = subprocess.Popen(
                [*words, str(options.users)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            assert process.stdout is not None
            replicas.append(json.loads(process.stdout.readline()) | _memory(process.pid))
            processes.append(process)  # it stays up while the next one starts
        for process in processes:
            process.communicate("")
    text = report(options, replicas, seconds)
    options.output.write_text(text)
    print(text)


def publish_codes(root: Path, users: int) -> tuple[str, str, float]:
    """URIs of a small bundle and of many users' codes for it, and the seconds that writing those took."""
    uri = _bundles.make_bundle(root, "both", knowledge="both")
    begun = time.perf_counter()

    def build(folder: Any) -> storage.StageResult:
        rows = id_table.write(folder / files.CODES, generate_codes(users), files.code_schema(storage.path(uri)))
        return storage.StageResult(files={files.CODES: rows}, rows=rows)

    out = storage.publish(storage.path(root) / "codes" / "many", "refresh", 1, {}, {}, build)
    return uri, str(out.folder), time.perf_counter() - begun


def generate_codes(users: int) -> Iterator[pa.Table]:
    """Codes of users `user-000000000` and so on, those of each partition."""
    rng = np.random.default_rng(0)
    hashes = hash_ids(f"user-{number:09d}" for number in range(users))
    home_N = numbers_of(hashes, PARTITIONS)
    for partition in range(PARTITIONS):
        number_N = np.flatnonzero(home_N == partition)
        ids = pa.array(np.char.mod("user-%09d", number_N), pa.large_string())
        codes = rng.random((len(number_N), 32), np.float32).astype(np.float16)
        yield pa.table({"id": ids, "code": to_column(codes)})


def replica(uri: str, codes: str, lookups: int, users: int) -> None:
    """Load, look up, say what it took, and stay until told to end."""
    begun = time.perf_counter()
    ranker = Ranker.load(uri, codes)
    loaded = time.perf_counter() - begun
    rng = np.random.default_rng()
    taken = []
    for number in rng.integers(users, size=lookups):
        raw = f"user-{number:09d}"
        at = time.perf_counter()
        place = ranker.knowledge.codes.find(raw)
        assert place is not None
        ranker.knowledge.codes.numbers("code", place).astype(np.float32)
        taken.append((time.perf_counter() - at) * 1e3)
    percentiles = {f"p{q}": float(np.percentile(taken, q)) for q in (50, 99)}
    print(json.dumps({"start": loaded} | percentiles), flush=True)
    sys.stdin.read()


def _memory(pid: int) -> dict[str, float]:
    """MiB of one process: all that is resident, and what no other process shares."""
    full = psutil.Process(pid).memory_full_info()
    return {"rss": full.rss / 2**20, "own": full.uss / 2**20, "share": full.pss / 2**20}


def report(options: argparse.Namespace, replicas: list[dict[str, float]], seconds: float) -> str:
    extra = max(one["own"] for one in replicas[1:])
    targets = [
        ("start-up under 20 s", max(one["start"] for one in replicas), 20, "s"),
        ("memory per extra replica under 300 MB", extra * 2**20 / 1e6, 300, "MB"),
        ("lookup p99 under 0.1 ms", max(one["p99"] for one in replicas), 0.1, "ms"),
    ]
    lines = [f"# {options.users:,} user codes", "", "| target | worst | held |", "| --- | --- | --- |"]
    lines += [f"| {what} | {v:.3g} {unit} | {'yes' if v < limit else '**no**'} |" for what, v, limit, unit in targets]
    lines += [
        "",
        f"Codes of 32 float16 numbers, written in {seconds:.0f} s. Start-up is `Ranker.load`: checksums of all files, "
        "the self-test, the codes mapped. Memory after the lookups, all replicas up: what a process has for itself "
        "(USS, the import of torch included) is what an extra one costs, since mapped pages are shared.",
        "",
        "| replica | start s | resident MiB | own MiB | proportional MiB | lookup p50 ms | p99 ms |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(
            f"| {i} | " + " | ".join(f"{one[key]:{form}}" for key, form in COLUMNS) + " |"
            for i, one in enumerate(replicas, 1)
        ),
        "",
        f"Command: `python -m benchmarks.serve_codes`. {describe(('torch', 'numpy', 'pyarrow'))}.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--replica"]:
        replica(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    else:
        main(parser().parse_args())
