"""A million and ten million items: what a replica holds of them, and how fast it finds the candidates of a request.

The table that serving maps, as `Ranker` uses it, beside two dictionaries and a matrix of each replica's own. Each way
is a process that stays up; rounds of lookups go to one and the other in turn, with ids that it has not met as objects.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks._machine import describe
from llm4msr import storage
from llm4msr.arrays import Array, strings
from llm4msr.bundle import id_table
from llm4msr.bundle.id_table import IdTable
from llm4msr.storage.vectors import to_column, to_matrix

RESULT = Path(__file__).parent / "results" / "serve-items.md"
SLOTS = 4
CANDIDATES = (100, 1000)
Lookup = Callable[[list[str]], Array]
"""Item ids -> their slots, int32 [B, SLOTS]."""


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--rounds", type=int, default=20, help="of 50 lookups for each way and number of candidates")
    parser.add_argument("--output", type=Path, default=RESULT)
    return parser


def main(options: argparse.Namespace) -> None:
    rows = [row for items in options.items for row in measure(items, options.rounds)]
    text = report(rows)
    options.output.write_text(text)
    print(text)


def measure(items: int, rounds: int) -> Iterator[dict[str, Any]]:
    """Figures of each way with so many items."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "items.arrow"
        begun = time.perf_counter()
        write_items(file, items)
        written = time.perf_counter() - begun
        replicas = {way: _start(way, file, items) for way in WAYS}
        opened = {way: json.loads(_line(process)) for way, process in replicas.items()}
        taken: dict[tuple[str, int], list[float]] = {(way, count): [] for way in WAYS for count in CANDIDATES}
        for _ in range(rounds):
            for (way, count), times in taken.items():
                times += _ask(replicas[way], count)
        for way, process in replicas.items():
            process.communicate("")
            found = {f"p{q} of {n}": float(np.percentile(taken[way, n], q)) for n in CANDIDATES for q in (50, 99)}
            yield {"items": items, "way": way, "written": written, "file": file.stat().st_size} | opened[way] | found


def write_items(file: Path, items: int) -> None:
    """Items `item-000000000` and so on, with a title of some 30 characters, in a bundle's own file."""
    number_I = np.arange(items)
    slots = to_column(np.random.default_rng(0).integers(1 << 24, size=(items, SLOTS), dtype=np.int32))
    ids = pa.array(np.char.mod("item-%09d", number_I), pa.large_string())
    titles = pa.array(np.char.mod("A title of some length %07d", number_I), pa.large_string())
    schema = id_table.table_schema({"title": pa.large_string(), "slots": slots.type}, {})
    id_table.write(storage.path(file), [pa.table({"id": ids, "title": titles, "slots": slots})], schema)


def open_table(file: Path) -> Lookup:
    """As the ranker does: nothing but the mapped file."""
    (items,) = IdTable(file).partitions
    slots_IS = items.numbers["slots"]
    return lambda ids: slots_IS.take(items.find_all(ids), axis=0)


def open_dictionaries(file: Path) -> Lookup:
    """Numbers and titles by id, and a matrix, in the process's own memory."""
    table = pa.ipc.open_file(str(file)).read_all()
    ids = strings(table["id"])
    numbers = {raw: number for number, raw in enumerate(ids)}
    titles = dict(zip(ids, strings(table["title"]), strict=True))
    slots_IS = to_matrix(table["slots"]).copy()

    def look_up(ids: list[str], keep: object = titles) -> Array:
        return slots_IS[np.fromiter(map(numbers.get, ids, repeat(0)), np.int64, len(ids))]

    return look_up


WAYS = {"table": open_table, "dictionaries": open_dictionaries}


def replica(way: str, file: Path, items: int) -> None:
    """Open the file, say what that took, and look up whenever told to."""
    pa.array([1]).to_numpy()  # loads pandas, which counts for neither way
    before, begun = _own_memory(), time.perf_counter()
    look_up = WAYS[way](file)
    print(json.dumps({"start": time.perf_counter() - begun, "own": _own_memory() - before}), flush=True)
    rng = np.random.default_rng(1)
    for line in sys.stdin:
        taken = []
        for _ in range(50):
            number_B = rng.integers(items, size=int(line))
            ids = [f"item-{number:09d}" for number in number_B]
            at = time.perf_counter()
            slots_BS = look_up(ids)
            taken.append((time.perf_counter() - at) * 1e3)
            assert slots_BS.shape == (len(ids), SLOTS)
        print(json.dumps(taken), flush=True)


def _start(way: str, file: Path, items: int) -> "subprocess.Popen[str]":
    words = [sys.executable, "-m", "benchmarks.serve_items", "--replica", way, str(file), str(items)]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _ask(process: "subprocess.Popen[str]", candidates: int) -> list[float]:
    """Milliseconds of 50 lookups of so many candidates."""
    assert process.stdin is not None
    process.stdin.write(f"{candidates}\n")
    process.stdin.flush()
    times: list[float] = json.loads(_line(process))
    return times


def _line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def _own_memory() -> int:
    """Bytes of this process that belong to no file and so can be no other process's."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("Anonymous:"))) * 1024


def report(rows: list[dict[str, Any]]) -> str:
    lines = [
        "# Items of a replica",
        "",
        f"Ids of 14 characters, titles of 30, {SLOTS} slots. `table` is `items.arrow`, which all replicas of a machine "
        "map; `dictionaries` are what each held before: numbers and titles by id, and a matrix of slots. What a "
        "process has for itself is its anonymous memory, less that before it opened the file. A lookup takes random "
        "known ids and gives their slots.",
        "",
        "| items | way | start s | own MB | own bytes an item | shared file MB | p50 of 100 ms | p99 | p50 of 1,000 ms "
        "| p99 |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        times = " | ".join(f"{row[f'p{q} of {n}']:.3f}" for n in CANDIDATES for q in (50, 99))
        lines.append(
            f"| {row['items']:,} | {row['way']} | {row['start']:.2f} | {row['own'] / 1e6:,.1f} "
            f"| {row['own'] / row['items']:,.1f} | {row['file'] / 1e6:,.0f} | {times} |"
        )
    written = ", ".join(f"{row['items']:,} in {row['written']:.0f} s" for row in rows if row["way"] == "table")
    lines += [
        "",
        f"Written: {written}.",
        "",
        f"Command: `python -m benchmarks.serve_items`. {describe(('numpy', 'pyarrow'))}.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--replica"]:
        replica(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
    else:
        main(parser().parse_args())
