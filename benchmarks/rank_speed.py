"""CPU time of `Ranker.rank` in one process and thread, and what a match and a history in the request add to it.

Bundles have random weights, which cost what trained ones do. Requests of all kinds take turns, so that whatever else
the machine does meets each of them alike.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._bundles import make_bundle
from benchmarks._machine import describe
from llm4msr import Ranker, RankRequest
from llm4msr.bundle.id_table import Partition

RESULT = Path(__file__).parent / "results" / "rank-speed.md"
FULL = ("candidate", "cosines", "attention", "ids")
MODELS: dict[str, dict[str, Any]] = {
    f"{backbone} {knowledge}{' + match' * bool(match)}": {"backbone": backbone, "knowledge": knowledge, "match": match}
    for backbone in ("mmoe", "star")
    for knowledge in ("none", "both")
    for match in ((), FULL)
}
CANDIDATES = (100, 1000)
EVENTS = 20


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--models", nargs="+", choices=[*MODELS], default=[*MODELS])
    parser.add_argument("--output", type=Path, default=RESULT)
    return parser


def main(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rankers = {
            name: Ranker.load(make_bundle(Path(folder), f"m{at}", **MODELS[name]))
            for at, name in enumerate(options.models)
        }
        taken = measure(rankers, options.rounds)
    text = report(taken)
    options.output.write_text(text)
    print(text)


def requests(ranker: Ranker, candidates: int, round_: int) -> Iterator[tuple[str, RankRequest]]:
    """A user, whose past is kept or not, with and without a history in the request."""
    rng = np.random.default_rng(round_)
    items, users = ids(ranker.items), ids(ranker.users.partitions[0])
    scenario = ranker.description.scenarios[1]
    drawn = [items[i] for i in rng.integers(len(items), size=candidates)]
    history = [{"item_id": items[i], "scenario": scenario} for i in rng.integers(len(items), size=EVENTS)]
    fields = {"user_id": users[rng.integers(len(users))], "scenario": scenario, "items": drawn}
    kinds: dict[str, dict[str, Any]] = {
        "nothing known": {"user_id": "nobody"},
        "stored": {},
        "request": {"user_id": "nobody", "history": history},
        "both": {"history": history},
    }
    for name, changes in kinds.items():
        yield name, RankRequest.model_validate(fields | changes)


def ids(partition: Partition) -> list[str]:
    return [partition.texts["id"][row].decode() for row in range(len(partition))]


def measure(rankers: dict[str, Ranker], rounds: int) -> dict[tuple[str, int, str], list[float]]:
    """Microseconds of each request, by model, candidates and what is known of the user."""
    taken: dict[tuple[str, int, str], list[float]] = {}
    for round_ in range(rounds):
        for name, ranker in rankers.items():
            for candidates in CANDIDATES:
                for known, request in requests(ranker, candidates, round_):
                    ranker.rank(request)  # what another model has left in the CPU's caches counts for none
                    begun = time.process_time_ns()
                    ranker.rank(request)
                    spent = (time.process_time_ns() - begun) / 1e3
                    taken.setdefault((name, candidates, known), []).append(spent)
    return taken


def report(taken: dict[tuple[str, int, str], list[float]]) -> str:
    lines = [
        "# What ranking costs",
        "",
        "CPU time of `Ranker.rank` in microseconds, p50 / p99, one thread, random items of MovieLens-100K. *Stored*: a "
        "user of the bundle, of whom it keeps up to 50 events where the model matches pasts. *Request*: a stranger, "
        f"with {EVENTS} events in the request. *Both*: a user of the bundle, with these events.",
        "",
        "| model | candidates | nothing known | stored | request | both |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, candidates in dict.fromkeys((name, candidates) for name, candidates, _ in taken):
        figures = [
            f"{np.percentile(times, 50):,.0f} / {np.percentile(times, 99):,.0f}"
            for (one, count, _), times in taken.items()
            if (one, count) == (name, candidates)
        ]
        lines.append(f"| {name} | {candidates:,} | {' | '.join(figures)} |")
    return "\n".join([*lines, "", f"Command: `python -m benchmarks.rank_speed`. {describe(('torch', 'numpy'))}.", ""])


if __name__ == "__main__":
    main(parser().parse_args())
