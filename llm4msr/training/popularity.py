"""What every model has to beat before anything is said of it: item popularity, and a constant.

Popularity: an item's score in a scenario is the number of its positives there, of the training rows; items with equal
numbers are ordered by their positives in all scenarios. So an item that nobody liked in training, or that is unknown,
scores lowest, and all such tie. In scenario 0, which stands for those that the training rows lack, the positives of
all scenarios count. The score is no probability, so popularity has neither logloss nor calibration error.

Constant: the share of positives of the scenario's training rows (in scenario 0: of all), whatever user and item are.
It ranks nothing: its AUC is 0.5 wherever there are two classes.
"""

import functools
import io
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llm4msr.arrays import Array, Floats, Ints
from llm4msr.data import partitions
from llm4msr.storage import StageOutput
from llm4msr.text import number
from llm4msr.training.metrics import Metric, Metrics, Predictions, Report, Scores, Sums
from llm4msr.training.partition_tasks import in_order, run_partitions

Counts = tuple[Ints, Ints]
"""Sorted keys [K], and how often each came [K]."""

POPULARITY, CONSTANT, SHARE = "popularity", "constant", "share"
"""Ways to score rows; the share of positives is the constant's score where a probability counts, not an order."""
WAYS, BASELINES = (POPULARITY, CONSTANT, SHARE), (CONSTANT, POPULARITY)
ITEMS = 1 << 40
"""A key is scenario * ITEMS + item."""
PENDING = 1 << 22
"""Keys that wait to be added up: what is in memory is bounded by this and the pairs of scenario and item."""
KEPT = 4
"""Reports, and counts of prepared data, that a process keeps for the next training or stage."""


@dataclass(frozen=True)
class Popularity:
    """Counts of the training rows. S scenarios with the unknown one as row 0, B rows."""

    by_pair: Counts
    """Positives by scenario and item."""
    rows_S: Ints
    positives_S: Floats

    @functools.cached_property
    def by_item(self) -> Counts:
        """Positives by item, in all scenarios."""
        keys, times = self.by_pair
        return _add_up([(keys % ITEMS, times)])

    @classmethod
    def read(cls, prepared: StageOutput, scenarios: int) -> "Popularity":
        """Of all training rows; `scenarios` counts the unknown one."""
        return _read(_Prepared(prepared), scenarios)

    @classmethod
    def of(cls, prepared: StageOutput, partition: int, scenarios: int) -> "Popularity":
        """Of the training rows of a partition, read a row group at a time."""
        none = cls((np.empty(0, np.int64), np.empty(0, np.int64)), np.zeros(scenarios, np.int64), np.zeros(scenarios))
        groups = (cls._of_rows(*columns, scenarios) for columns in _train_rows(prepared, partition))
        return cls.add(itertools.chain([none], groups))

    @classmethod
    def _of_rows(cls, scenario_B: Array, item_B: Array, label_B: Array, scenarios: int) -> "Popularity":
        liked_B = label_B > 0.5
        by_pair = np.unique(scenario_B[liked_B] * ITEMS + item_B[liked_B], return_counts=True)
        rows_S = np.bincount(scenario_B, minlength=scenarios).astype(np.int64)
        positives_S = np.bincount(scenario_B, label_B.astype(np.float64), scenarios)
        return cls(by_pair, rows_S, np.asarray(positives_S, np.float64))

    @classmethod
    def add(cls, parts: Iterable["Popularity"]) -> "Popularity":
        """The counts of all parts together, which are added up as they come."""
        rows_NS, positives_NS, pending = list[Ints](), list[Floats](), list[Counts]()
        for part in parts:
            rows_NS.append(part.rows_S)
            positives_NS.append(part.positives_S)
            pending.append(part.by_pair)
            if sum(len(keys) for keys, _ in pending) > PENDING:
                pending = [_add_up(pending)]
        return cls(_add_up(pending), np.sum(rows_NS, 0), np.sum(positives_NS, 0))

    def to_bytes(self) -> bytes:
        """For `from_bytes`."""
        file = io.BytesIO()
        np.savez(file, *self.by_pair, self.rows_S, self.positives_S)
        return file.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Popularity":
        """Counts as they were; nothing is unpickled."""
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            keys, times, rows_S, positives_S = (arrays[name] for name in arrays.files)
        return cls((keys, times), rows_S, positives_S)

    def scores(self, scenario_B: Ints, item_B: Ints) -> Floats:
        """float64 [B]: what popularity ranks rows by, from their scenario and item numbers, int64 [B]."""
        all_B = _look_up(self.by_item, item_B)
        scenario_only_B = np.where(scenario_B > 0, _look_up(self.by_pair, scenario_B * ITEMS + item_B), all_B)
        return np.asarray(scenario_only_B + all_B / (1 + self.by_item[1].max(initial=0)), np.float64)

    def log_odds(self, scenario_B: Ints) -> Floats:
        """float64 [B]: the constant's logit; finite, as a share is kept half a row away from none and from all."""
        rows_S, positives_S = self.rows_S.copy(), self.positives_S.copy()
        rows_S[0], positives_S[0] = rows_S.sum(), positives_S.sum()
        rows_S = np.maximum(rows_S, 1)
        rate_S = np.clip(positives_S / rows_S, 0.5 / rows_S, 1 - 0.5 / rows_S)
        return np.asarray(np.log(rate_S / (1 - rate_S))[scenario_B], np.float64)


def reports(
    prepared: StageOutput, part: str, names: Sequence[str], numbers: Sequence[int] | None = None
) -> dict[str, Report]:
    """Of each baseline, the same as `metrics.report` gives of a model: on `valid` or `test` of prepared data.

    On the rows of the partitions of these numbers, or of all.
    """
    chosen = range(partitions.count(prepared)) if numbers is None else numbers
    return _reports(_Prepared(prepared), part, tuple(names), tuple(chosen))


def sums_of(prepared: StageOutput, part: str, partition: int, counts: Popularity) -> dict[str, Sums]:
    """What `reports_of` needs of the rows of one partition: the sums of each way to score them, by its name."""
    columns = ["user", "event", "scenario", "item", "label"]
    rows = partitions.read(prepared, part, partition, columns)
    user_B, event_B, scenario_B, item_B, label_B = (rows[name].to_numpy() for name in columns)
    user_B = partitions.people(prepared, user_B, event_B)
    scores = {
        POPULARITY: counts.scores(scenario_B, item_B),
        CONSTANT: np.zeros(len(label_B)),
        SHARE: counts.log_odds(scenario_B),
    }
    scenarios = len(counts.rows_S)
    return {name: Sums.of(Predictions(user_B, scenario_B, label_B, s_B), scenarios) for name, s_B in scores.items()}


def reports_of(by_score: Mapping[str, Report]) -> dict[str, Report]:
    """The reports of the baselines, from one of each way to score that `sums_of` names."""
    constant, popular = by_score[CONSTANT], by_score[POPULARITY]
    for place in _places(popular):
        place["logloss"] = place["ece"] = None
    for place, likely in zip(_places(constant), _places(by_score[SHARE]), strict=True):
        place["logloss"], place["ece"] = likely["logloss"], likely["ece"]
    return {CONSTANT: constant, POPULARITY: popular}


def warnings(name: str, model: Scores, baselines: Mapping[str, Scores], rows: str) -> list[str]:
    """What to say of a model that loses to a baseline; all are the overall metrics on the same `rows`."""
    lines = []
    for baseline, description in ((POPULARITY, "item popularity within the scenario"), (CONSTANT, "a constant")):
        losses = [
            f"{label} {number(model[metric])} against {number(baselines[baseline][metric])}"
            for metric, label, sign in _COMPARED
            if _loses(model[metric], baselines[baseline][metric], sign)
        ]
        if losses:
            lines.append(f"'{name}' loses to {description} on the {rows} rows: {', '.join(losses)}. {_REMEDY}")
    return lines


_COMPARED: tuple[tuple[Metric, str, int], ...] = (
    ("auc", "AUC", 1),
    ("gauc", "GAUC", 1),
    ("logloss", "logloss", -1),
)
"""Each metric, its label, and whether more of it is better (1) or worse (-1)."""
_REMEDY = (
    "Do not serve it as it is: look in its history.json whether valid_auc still rises (train.epochs, train.patience), "
    "try another train.learning_rate, and check labels and split of the prepared data"
)


def phrase(scores: Scores) -> str:
    """The overall metrics of a model or baseline, to stand within a sentence."""
    return f"AUC {number(scores['auc'])}, GAUC {number(scores['gauc'])}, logloss {number(scores['logloss'])}"


def _loses(model: float | None, baseline: float | None, sign: int) -> bool:
    """Whether the baseline is better; a model whose scores are not finite has no metric, which is worse than any."""
    return baseline is not None and (model is None or sign * model < sign * baseline)


def _places(report: Report) -> list[Metrics]:
    return [report["overall"], *report["scenarios"]]


class _Prepared:
    """Prepared data as a key of what is kept of it: equal if the content is."""

    def __init__(self, output: StageOutput):
        self.output = output
        self._content = output.content

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Prepared) and self._content == other._content

    def __hash__(self) -> int:
        return hash(self._content)


@functools.lru_cache(KEPT)
def _read(data: _Prepared, scenarios: int) -> Popularity:
    total = partitions.count(data.output)
    results = run_partitions(_count, total, prepared=data.output, scenarios=scenarios)
    return Popularity.add(Popularity.from_bytes(result["counts"]) for result in in_order(results, range(total)))


def _count(numbers: list[int], prepared: StageOutput, scenarios: int) -> dict[str, Any]:
    return {"counts": Popularity.add(Popularity.of(prepared, n, scenarios) for n in numbers).to_bytes()}


@functools.lru_cache(KEPT)
def _reports(data: _Prepared, part: str, names: tuple[str, ...], numbers: tuple[int, ...]) -> dict[str, Report]:
    total, counts = partitions.count(data.output), _read(data, len(names))
    results = run_partitions(_sum, total, numbers, prepared=data.output, part=part, counts=counts)
    parts = ({name: Sums.from_bytes(result[name]) for name in WAYS} for result in in_order(results, numbers))
    sums = functools.reduce(lambda one, other: {name: Sums.add([one[name], other[name]]) for name in WAYS}, parts)
    return reports_of({name: one.report(names) for name, one in sums.items()})


def _sum(numbers: list[int], prepared: StageOutput, part: str, counts: Popularity) -> dict[str, Any]:
    sums = [sums_of(prepared, part, number, counts) for number in numbers]
    return {name: Sums.add(one[name] for one in sums).to_bytes() for name in WAYS}


def _train_rows(prepared: StageOutput, partition: int) -> Iterator[tuple[Array, Array, Array]]:
    """Scenarios, items and labels of each row group of a partition."""
    with partitions.parquet(prepared, "train", partition) as parquet:
        for group in range(parquet.num_row_groups):
            table = parquet.read_row_group(group, ["scenario", "item", "label"])
            yield table["scenario"].to_numpy(), table["item"].to_numpy(), table["label"].to_numpy()


def _add_up(parts: Sequence[Counts]) -> Counts:
    keys, place = np.unique(np.concatenate([keys for keys, _ in parts]), return_inverse=True)
    counts = np.bincount(place, np.concatenate([counts for _, counts in parts]), len(keys))
    return keys, counts.astype(np.int64)


def _look_up(counts: Counts, key_B: Ints) -> Ints:
    """How often each key came; 0 where it did not."""
    keys, times = counts
    if not len(keys):
        return np.zeros(len(key_B), np.int64)
    place_B = np.minimum(np.searchsorted(keys, key_B), len(keys) - 1)
    return np.where(keys[place_B] == key_B, times[place_B], 0)
