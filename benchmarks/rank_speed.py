"""CPU time of `Ranker.rank` in one process and thread, and what a match and a history in the request add to it.

Each model is measured as it serves, folded to products of numpy, and with the net itself in torch; plain ones, which
export to ONNX, in onnxruntime too (extra `onnx`). Bundles have random weights, which cost what trained ones do.
Requests of all kinds take turns, so that whatever else the machine does meets each of them alike.
"""

import argparse
import copy
import gc
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from benchmarks._bundles import make_bundle
from benchmarks._machine import describe
from llm4msr import Ranker, RankRequest
from llm4msr.arrays import Singles
from llm4msr.bundle.id_table import Partition
from llm4msr.bundle.onnx import write_onnx
from llm4msr.bundle.scorer import Query
from llm4msr.bundle.torch_scorer import TorchScorer

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


class Kind(NamedTuple):
    """Requests of one kind to one ranker."""

    model: str
    candidates: int
    scorer: str
    known: str


class OnnxScorer(TorchScorer):
    """Scores with the exported graph: the same rows of slots, another runtime."""

    def __init__(self, ranker: Ranker, file: Path):
        super().__init__(ranker.net, ranker.items)
        write_onnx(ranker, file)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(file), options)

    def score(self, queries: Sequence[Query]) -> list[Singles]:
        counts = [len(query.item_B) for query in queries]
        owner_B = np.repeat(np.arange(len(queries)), counts)
        slots_BS = self._slots(queries, np.concatenate([query.item_B for query in queries]), owner_B).numpy()
        scenario_B = np.array([query.scenario for query in queries])[owner_B]
        (scores_B,) = self._session.run(None, {"slots": slots_BS, "scenario": scenario_B})
        return np.split(scores_B, np.cumsum(counts)[:-1])


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--models", nargs="+", choices=[*MODELS], default=[*MODELS])
    parser.add_argument("--output", type=Path, default=RESULT)
    return parser


def main(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    with threadpool_limits(1), tempfile.TemporaryDirectory() as folder:
        rankers = {
            name: load(make_bundle(Path(folder), f"m{at}", **MODELS[name])) for at, name in enumerate(options.models)
        }
        gc.collect()
        gc.freeze()  # as a replica does
        taken = measure(rankers, options.rounds)
    text = report(taken, options.rounds)
    options.output.write_text(text)
    print(text)


def load(uri: str) -> dict[str, Ranker]:
    """The bundle as it serves, scored by the net itself, and by its graph where it has one."""
    ranker = Ranker.load(uri)
    rankers: dict[str, Ranker] = {ranker.info().scorer: ranker, "torch": copy.copy(ranker)}
    rankers["torch"].scorer = TorchScorer(ranker.net, ranker.items)
    if ranker.description.model.variant == "none":
        rankers["onnxruntime"] = copy.copy(ranker)
        rankers["onnxruntime"].scorer = OnnxScorer(ranker, Path(uri).with_suffix(".onnx"))
    return rankers


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


def measure(rankers: dict[str, dict[str, Ranker]], rounds: int) -> dict[Kind, list[float]]:
    """Microseconds of each request."""
    taken: dict[Kind, list[float]] = {}
    for round_ in range(rounds):
        for name, by_scorer in rankers.items():
            for candidates in CANDIDATES:
                for known, request in requests(next(iter(by_scorer.values())), candidates, round_):
                    for scorer, ranker in by_scorer.items():
                        ranker.rank(request)  # what another model has left in the CPU's caches counts for none
                        begun = time.process_time_ns()
                        ranker.rank(request)
                        spent = (time.process_time_ns() - begun) / 1e3
                        taken.setdefault(Kind(name, candidates, scorer, known), []).append(spent)
    return taken


def report(taken: dict[Kind, list[float]], rounds: int) -> str:
    lines = [
        "# What ranking costs",
        "",
        "CPU time of `Ranker.rank` in microseconds, p50 / p99, one thread, random items of MovieLens-100K, folded to "
        "products of numpy as it serves, with the same net in torch and, if it is plain, in onnxruntime, and how many "
        "times longer these take, by p50. *Stored*: a user of the bundle, of whom it keeps up to 50 events where the "
        "model matches pasts. "
        f"*Request*: a stranger, with {EVENTS} events in the request. *Both*: a user of the bundle, with these events.",
        "",
        "| model | candidates | scorer | nothing known | stored | request | both |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for model, candidates in dict.fromkeys((kind.model, kind.candidates) for kind in taken):
        by_scorer: dict[str, list[list[float]]] = {}
        for kind, times in taken.items():
            if (kind.model, kind.candidates) == (model, candidates):
                by_scorer.setdefault(kind.scorer, []).append(times)
        for scorer, columns in by_scorer.items():
            figures = [f"{np.percentile(times, 50):,.0f} / {np.percentile(times, 99):,.0f}" for times in columns]
            lines.append(f"| {model} | {candidates:,} | {scorer} | {' | '.join(figures)} |")
        for scorer in [*by_scorer][1:]:
            pairs = zip(by_scorer[scorer], by_scorer["folded"], strict=True)
            ratios = [f"{np.median(slow) / np.median(fast):.1f}" for slow, fast in pairs]
            lines.append(f"| | | {scorer} to folded | {' | '.join(ratios)} |")
    blas = " and ".join(
        sorted({f"{b['internal_api']} {b['architecture']}" for b in threadpool_info() if "architecture" in b})
    )
    command = f"Command: `python -m benchmarks.rank_speed --rounds {rounds}`."
    machine = f"{describe(('torch', 'numpy', 'onnxruntime'))}; numpy's products by {blas}."
    return "\n".join([*lines, "", f"{command} {machine}", ""])


if __name__ == "__main__":
    main(parser().parse_args())
